//! Puts a file together under a temporary name, part after part, and renames it when its checksum is right.
//!
//! The temporary file `NAME.part` holds whole parts only, so its length says where to go on. Nothing is ever written
//! under the final name. Must not know where parts come from.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Reporter, SourceError};

/// Bytes that are copied or hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Opens the temporary file for appending; tests put a full disk here.
pub type OpenForAppend = fn(&Path) -> io::Result<Box<dyn Write>>;

/// A file in the making.
#[derive(Debug)]
pub(super) struct Assembly {
    final_path: PathBuf,
    part_path: PathBuf,
    size_bytes: u64,
    open: OpenForAppend,
}

impl Assembly {
    /// Prepares to make a file of `size_bytes` at `final_path`.
    pub(super) fn new(final_path: PathBuf, size_bytes: u64, open: OpenForAppend) -> Self {
        let mut part_path = final_path.clone().into_os_string();
        part_path.push(".part");
        Self { final_path, part_path: part_path.into(), size_bytes, open }
    }

    /// How many leading parts are already there; a torn part is cut off.
    ///
    /// # Errors
    /// If the temporary file cannot be shortened.
    pub(super) fn num_complete(&self, part_sizes: &[u64]) -> Result<usize, SourceError> {
        let Ok(metadata) = fs::metadata(&self.part_path) else { return Ok(0) };
        let (mut num_complete, mut whole_bytes) = (0, 0);
        for size in part_sizes {
            if whole_bytes + size > metadata.len() {
                break;
            }
            whole_bytes += size;
            num_complete += 1;
        }
        self.shorten(whole_bytes)?;
        Ok(num_complete)
    }

    /// Bytes of the whole file.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes that are already there.
    pub(super) fn len_bytes(&self) -> u64 {
        fs::metadata(&self.part_path).map_or(0, |metadata| metadata.len())
    }

    /// Appends one part of `expected` bytes. On a failure the part is cut off again.
    ///
    /// # Errors
    /// A full disk, an unreadable part, or a part of another size.
    pub(super) fn append(
        &self,
        part: &mut dyn Read,
        expected: u64,
        reporter: &mut dyn Reporter,
    ) -> Result<(), SourceError> {
        let before = self.len_bytes();
        let result = self.copy(part, expected, before, reporter);
        if result.is_err() {
            self.shorten(before)?;
        }
        result
    }

    fn copy(
        &self,
        part: &mut dyn Read,
        expected: u64,
        before: u64,
        reporter: &mut dyn Reporter,
    ) -> Result<(), SourceError> {
        let mut file = (self.open)(&self.part_path).map_err(|error| self.write_error(error, before))?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut got = 0;
        loop {
            let len = part.read(&mut chunk).map_err(|cause| self.file_error("read a part of", cause))?;
            if len == 0 {
                break;
            }
            got += len as u64;
            if got > expected {
                break;
            }
            file.write_all(&chunk[..len]).map_err(|error| self.write_error(error, before))?;
            reporter.advance(before + got, self.size_bytes);
        }
        file.flush().map_err(|error| self.write_error(error, before))?;
        if got == expected {
            return Ok(());
        }
        Err(SourceError::Size { part: format!("a part of {}", self.final_path.display()), expected, got })
    }

    /// Checks the whole file and gives it its final name; a file with the wrong content is removed.
    ///
    /// # Errors
    /// A wrong checksum, or a failure to read or rename.
    pub(super) fn finish(self, sha256: &str) -> Result<PathBuf, SourceError> {
        let got = sha256_of(&self.part_path)?;
        if got != sha256 {
            fs::remove_file(&self.part_path).map_err(|cause| self.file_error("remove", cause))?;
            return Err(SourceError::Checksum { path: self.final_path, expected: sha256.to_owned(), got });
        }
        fs::rename(&self.part_path, &self.final_path).map_err(|cause| self.file_error("rename", cause))?;
        Ok(self.final_path)
    }

    fn shorten(&self, len_bytes: u64) -> Result<(), SourceError> {
        if self.len_bytes() <= len_bytes {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(&self.part_path);
        file.and_then(|file| file.set_len(len_bytes)).map_err(|cause| self.file_error("shorten", cause))
    }

    fn write_error(&self, error: io::Error, len_bytes: u64) -> SourceError {
        let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        if full {
            let directory = self.final_path.parent().map(Path::to_owned).unwrap_or_default();
            return SourceError::DiskFull { directory, needed_bytes: Some(self.size_bytes - len_bytes) };
        }
        self.file_error("write", error)
    }

    fn file_error(&self, action: &'static str, cause: io::Error) -> SourceError {
        SourceError::File { action, path: self.part_path.clone(), cause }
    }
}

/// Opens a real file for appending, and its directory if need be.
///
/// # Errors
/// Whatever the file system says.
pub fn open_for_append(path: &Path) -> io::Result<Box<dyn Write>> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    Ok(Box::new(OpenOptions::new().create(true).append(true).open(path)?))
}

/// The SHA-256 of a file, in lowercase hexadecimal digits.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256_of(path: &Path) -> Result<String, SourceError> {
    hash(path, &mut || ())
}

/// The same; `on_chunk` is called often.
pub(super) fn hash(path: &Path, on_chunk: &mut dyn FnMut()) -> Result<String, SourceError> {
    let read_error = |cause| SourceError::File { action: "read", path: path.to_owned(), cause };
    let mut file = File::open(path).map_err(read_error)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let len = file.read(&mut chunk).map_err(read_error)?;
        if len == 0 {
            break;
        }
        hasher.update(&chunk[..len]);
        on_chunk();
    }
    Ok(hasher.finalize().iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hex_digit).collect())
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).expect("a nibble is below 16")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of `abcdef`.
    const ABCDEF: &str = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721";

    struct FullDisk(Box<dyn Write>);

    impl Write for FullDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write_all(&bytes[..1])?; // the last byte that fits
            Err(io::Error::from(ErrorKind::StorageFull))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn open_full_disk(path: &Path) -> io::Result<Box<dyn Write>> {
        Ok(Box::new(FullDisk(open_for_append(path)?)))
    }

    fn assembly(directory: &Path, open: OpenForAppend) -> Assembly {
        Assembly::new(directory.join("model.gguf"), 6, open)
    }

    #[test]
    fn parts_are_joined_checked_and_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let assembly = assembly(directory.path(), open_for_append);
        assembly.append(&mut &b"abc"[..], 3, &mut ()).unwrap();
        assembly.append(&mut &b"def"[..], 3, &mut ()).unwrap();
        assert!(!directory.path().join("model.gguf").exists(), "the final name appears at the end only");
        let path = assembly.finish(ABCDEF).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"abcdef");
        assert!(!directory.path().join("model.gguf.part").exists());
    }

    #[test]
    fn a_torn_part_is_cut_off_before_going_on() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("model.gguf.part"), b"abcd").unwrap();
        let assembly = assembly(directory.path(), open_for_append);
        assert_eq!(assembly.num_complete(&[3, 3]).unwrap(), 1);
        assembly.append(&mut &b"def"[..], 3, &mut ()).unwrap();
        assembly.finish(ABCDEF).unwrap();
    }

    #[test]
    fn a_full_disk_keeps_whole_parts_and_no_final_file() {
        let directory = tempfile::tempdir().unwrap();
        assembly(directory.path(), open_for_append).append(&mut &b"abc"[..], 3, &mut ()).unwrap();
        let full = assembly(directory.path(), open_full_disk);
        let error = full.append(&mut &b"def"[..], 3, &mut ()).unwrap_err();
        assert!(matches!(error, SourceError::DiskFull { needed_bytes: Some(3), .. }), "{error}");
        assert_eq!(fs::read(directory.path().join("model.gguf.part")).unwrap(), b"abc");
        assert!(!directory.path().join("model.gguf").exists());
    }

    #[test]
    fn wrong_content_and_wrong_sizes_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let wrong = assembly(directory.path(), open_for_append);
        for (part, got) in [(&b"ab"[..], 2), (&b"abcd"[..], 4)] {
            let error = wrong.append(&mut &*part, 3, &mut ()).unwrap_err();
            assert!(matches!(error, SourceError::Size { expected: 3, got: size, .. } if size == got), "{error}");
            assert_eq!(wrong.len_bytes(), 0);
        }
        wrong.append(&mut &b"abcdeX"[..], 6, &mut ()).unwrap();
        assert!(matches!(wrong.finish(ABCDEF), Err(SourceError::Checksum { .. })));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing stays behind");
    }
}
