//! Repositories in the cache that Hugging Face tools share: what is there, and whether it is complete and right.
//!
//! A snapshot has one link for each file, to a blob. The blob of a large file is called by its SHA-256. Must not ask the
//! network.

use std::cmp::Reverse;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo};

use super::choice::{Choice, INDEX, TOKENIZER, choose, shards};
use crate::pull::{SourceError, sha256_of};

/// The model that the newest complete commit of `repo` has; `None` unless one is complete.
pub(super) fn find(repo: &Repo, wanted: Option<&str>) -> Option<PathBuf> {
    let cache = Cache::from_env();
    let repository = cache.path().join(repo.folder_name());
    let commit = fs::read_to_string(repository.join("refs").join(repo.revision())).ok()?;
    let newest = cache.repo(repo.clone()).pointer_path(commit.trim());
    // Where a pull of a new commit was cut short, an old one still runs.
    let mut older: Vec<PathBuf> = newest
        .parent()
        .and_then(|snapshots| fs::read_dir(snapshots).ok())?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    older.sort_by_key(|snapshot| Reverse(fs::metadata(snapshot).and_then(|metadata| metadata.modified()).ok()));
    [newest].into_iter().chain(older).find_map(|snapshot| find_in(snapshot, wanted))
}

fn find_in(snapshot: PathBuf, wanted: Option<&str>) -> Option<PathBuf> {
    let mut files = Vec::new();
    list(&snapshot, "", &mut files).ok()?;
    files.sort_unstable(); // a directory is read in any order
    match choose(&files, wanted).ok()? {
        Choice::File(file) => Some(snapshot.join(file)),
        Choice::Directory(chosen) => is_complete(&snapshot, &chosen).then_some(snapshot),
    }
}

/// Whether nothing is missing that running the checkpoint needs, besides what is in `chosen` already.
fn is_complete(snapshot: &Path, chosen: &[String]) -> bool {
    let has = |name: &str| chosen.iter().any(|file| file == name);
    let has_shards = || shards(&snapshot.join(INDEX)).is_ok_and(|s| s.iter().all(|s| snapshot.join(s).is_file()));
    has(TOKENIZER) && (!has(INDEX) || has_shards())
}

/// The files below `directory`, as the Hub calls them; links to nothing do not count.
fn list(directory: &Path, prefix: &str, files: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        if path.is_dir() {
            list(&path, &format!("{prefix}{name}/"), files)?;
        } else if path.is_file() {
            files.push(format!("{prefix}{name}"));
        }
    }
    Ok(())
}

/// How many files were looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::pull) struct Comparison {
    /// Files that have the SHA-256 that they must have.
    pub(in crate::pull) num_right: usize,
    /// Files that are there, and whose SHA-256 nobody has said.
    pub(in crate::pull) num_unknown: usize,
}

impl Comparison {
    /// What is true of a model that was not fetched.
    pub(in crate::pull) fn describe(self) -> String {
        let Self { num_right, num_unknown } = self;
        match num_unknown {
            0 => "it is already on this machine, and its content is right".to_owned(),
            _ => format!(
                "it is already on this machine, and complete; SHA-256 compared and right: {num_right} of {} files, the Hub \
                 gives none for the others",
                num_right + num_unknown
            ),
        }
    }
}

/// Compares the file, or all files of the directory, at `path` with the SHA-256 that their blobs are called by.
///
/// # Errors
/// A file that is damaged, or that cannot be read.
pub(in crate::pull) fn compare(path: &Path) -> Result<Comparison, SourceError> {
    let files = if path.is_dir() { files_in(path)? } else { vec![path.to_owned()] };
    let mut comparison = Comparison::default();
    for file in files {
        let Some(expected) = name_of_blob(&file).filter(|name| is_sha256(name)) else {
            comparison.num_unknown += 1;
            continue;
        };
        let got = sha256_of(&file)?;
        if got != expected {
            return Err(SourceError::Damaged { path: file, expected, got });
        }
        comparison.num_right += 1;
    }
    Ok(comparison)
}

fn files_in(directory: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let mut files = Vec::new();
    let file_error = |cause| SourceError::File { action: "list", path: directory.to_owned(), cause };
    list(directory, "", &mut files).map_err(file_error)?;
    Ok(files.into_iter().map(|file| directory.join(file)).collect())
}

fn name_of_blob(file: &Path) -> Option<String> {
    let blob = file.canonicalize().ok()?;
    let is_blob = blob.parent()?.file_name()? == "blobs";
    if is_blob { blob.file_name()?.to_str().map(str::to_owned) } else { None }
}

/// Whether the Hub calls a file by its SHA-256; it calls small ones otherwise.
pub(super) fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Lets `pointer`, a file of a snapshot, lead to `blob`.
pub(super) fn link(blob: &Path, pointer: &Path) -> io::Result<()> {
    if pointer.canonicalize().ok() == Some(blob.canonicalize()?) {
        return Ok(());
    }
    if let Some(directory) = pointer.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::remove_file(pointer) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => make_link(blob, pointer),
    }
}

/// A relative link, as other tools make it, so that the cache can be moved.
#[cfg(unix)]
fn make_link(blob: &Path, pointer: &Path) -> io::Result<()> {
    let repository = blob.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let inside = |path: &Path| path.strip_prefix(repository).map(Path::to_owned).map_err(io::Error::other);
    let num_up = inside(pointer)?.components().count() - 1;
    let target: PathBuf = std::iter::repeat_n(PathBuf::from(".."), num_up).chain([inside(blob)?]).collect();
    std::os::unix::fs::symlink(target, pointer)
}

/// Links need rights that users rarely have.
#[cfg(not(unix))]
fn make_link(blob: &Path, pointer: &Path) -> io::Result<()> {
    fs::rename(blob, pointer)
}
