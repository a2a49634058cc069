//! Read-only memory maps of weight files: the only `unsafe` of this crate.
//!
//! Owns the mapping and its pages; knows no format. Whoever shortens a mapped file makes later reads of the lost part
//! fail with a signal, as for every program that maps files; replacing a file by renaming is safe.
#![expect(unsafe_code, reason = "the contents of a mapped file cannot be vouched for by the compiler")]

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::ModelError;

/// A file in memory, read page by page when first touched.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let read_error = |source| ModelError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read_error)?;
        // SAFETY: the map is read-only, and its bytes are only ever read as plain numbers or checked text. Another
        // process that writes to the file can change those values, but no invariant of a Rust type rests on them.
        let map = unsafe { Mmap::map(&file) }.map_err(read_error)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole content.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives the pages back to the system; a later read brings them in again. Does nothing where that is unknown.
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        {
            // SAFETY: the map is file-backed and read-only, so dropped pages come back with the same bytes.
            // A refusal is harmless: the pages then stay until memory is short.
            let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}
