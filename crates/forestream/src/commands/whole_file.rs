//! A file that gets its name when it is complete, where the name is one of a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::console;

/// As many links in a row as systems follow.
const MAX_LINKS: usize = 40;

/// A place that a text can be written to. Until [`WholeFile::write`] nothing there changes, and nothing lies beside it.
pub(super) enum WholeFile {
    /// A file, there already or not, that the complete one replaces.
    Replaced {
        /// Where links lead; they stay.
        path: PathBuf,
        /// The name of what is not complete.
        part: PathBuf,
    },
    /// A device or a pipe: written as it is.
    Opened(File),
    /// Where the results go too, and each of them stays.
    StandardOutput,
}

impl WholeFile {
    /// Looks whether `path` can be written to.
    ///
    /// # Errors
    /// If neither it nor a file beside it can be written.
    pub(super) fn prepare(path: &Path) -> io::Result<Self> {
        if path == Path::new("/dev/stdout") {
            return Ok(Self::StandardOutput);
        }
        let is_file = match fs::metadata(path) {
            Ok(metadata) => metadata.is_file(),
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        if !is_file {
            return Ok(Self::Opened(OpenOptions::new().append(true).open(path)?));
        }
        let path = followed(path);
        if path.exists() {
            OpenOptions::new().write(true).open(&path)?; // a file that must not be written is not replaced either
        }
        let mut part = path.clone().into_os_string();
        part.push(format!(".{}.part", std::process::id()));
        let part = PathBuf::from(part);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", part.display()));
        File::create(&part).and_then(|_| fs::remove_file(&part)).map_err(named)?;
        Ok(Self::Replaced { path, part })
    }

    /// Writes all of the file.
    ///
    /// # Errors
    /// Whatever the system says, such as that the disk is full; a file that was there before is then there still.
    pub(super) fn write(self, text: &str) -> io::Result<()> {
        let (path, part) = match self {
            Self::Replaced { path, part } => (path, part),
            Self::Opened(mut file) => return file.write_all(text.as_bytes()),
            Self::StandardOutput => return console::print_if_read(text),
        };
        let written = write_part(&part, text, &path).and_then(|()| fs::rename(&part, &path));
        if written.is_err() {
            let _ = fs::remove_file(&part); // nothing half-written stays behind
        }
        written
    }
}

/// Writes what is to replace `path`, with the permissions that it has.
fn write_part(part: &Path, text: &str, path: &Path) -> io::Result<()> {
    let mut file = File::create(part)?;
    if let Ok(metadata) = fs::metadata(path) {
        file.set_permissions(metadata.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Where links lead, also to a file that is not there yet.
fn followed(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(link) = path.read_link() else { break };
        path.pop();
        path.push(link);
    }
    path
}
