//! Reads little-endian fields from a byte slice; nothing is read, counted or allocated beyond its end.

use std::fmt::Display;
use std::path::Path;

use crate::ModelError;

/// A position in a file, and the file's name for errors.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, position: 0 }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub(super) fn malformed(&self, problem: impl Into<String>) -> ModelError {
        ModelError::malformed(self.path, problem)
    }

    /// The next `len` bytes; `what` names them in the error.
    pub(super) fn take(&mut self, len: u64, what: impl Display) -> Result<&'a [u8], ModelError> {
        let end = usize::try_from(len).ok().and_then(|len| self.position.checked_add(len));
        let Some(bytes) = end.and_then(|end| self.bytes.get(self.position..end)) else {
            let (position, remaining) = (self.position, self.remaining());
            return Err(self.malformed(format!(
                "truncated or corrupt: {what} at byte {position} needs {len} bytes, but {remaining} are left"
            )));
        };
        self.position += bytes.len();
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self, what: impl Display) -> Result<[u8; N], ModelError> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("take returns as many bytes as it was asked for"))
    }

    pub(super) fn u32(&mut self, what: impl Display) -> Result<u32, ModelError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: impl Display) -> Result<u64, ModelError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things of at least `min_bytes` each, so that the rest of the file can hold them.
    pub(super) fn count(&mut self, what: impl Display, min_bytes: usize) -> Result<usize, ModelError> {
        let count = self.u64(&what)?;
        let most = self.remaining() / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(self.malformed(format!("{what} is {count}, but the rest of the file can hold at most {most}"))),
        }
    }

    /// A length and as many bytes of UTF-8.
    pub(super) fn string(&mut self, what: impl Display) -> Result<&'a str, ModelError> {
        let len = self.u64(format_args!("the length of {what}"))?;
        let position = self.position;
        let bytes = self.take(len, &what)?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed(format!("{what} at byte {position} is not valid UTF-8")))
    }
}
