//! The project's own files: what tidy reads and what a mutated copy consists of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Folders that hold no source of ours, wherever they lie.
const SKIPPED: &[&str] = &[".git", "target"];

/// A folder and the files below it.
#[derive(Debug)]
pub(crate) struct SourceTree {
    root: PathBuf,
    /// Relative to `root`, sorted.
    files: Vec<PathBuf>,
}

impl SourceTree {
    /// Lists the files below `root`, build output left out.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        collect(root, Path::new(""), &mut files)?;
        files.sort();
        Ok(Self { root: root.to_owned(), files })
    }

    /// All files, relative to the root, sorted.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The files whose names end in `.extension`.
    pub(crate) fn with_extension(&self, extension: &str) -> impl Iterator<Item = &Path> {
        self.files.iter().map(PathBuf::as_path).filter(move |file| file.extension().is_some_and(|e| e == extension))
    }

    /// A file's text.
    ///
    /// # Errors
    /// If it cannot be read or is not UTF-8.
    pub(crate) fn text(&self, file: &Path) -> Result<String> {
        let path = self.root.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Whether a file or folder lies at `path`.
    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.root.join(path).exists()
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let path = root.join(folder);
    for entry in fs::read_dir(&path).with_context(|| format!("cannot read folder {}", path.display()))? {
        let entry = entry?;
        let relative = folder.join(entry.file_name());
        if SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(root, &relative, files)?;
        } else {
            files.push(relative);
        }
    }
    Ok(())
}
