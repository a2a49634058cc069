//! Figures of a run as TensorBoard reads them: scalars in a file of records.
//!
//! A record is a length, a masked CRC-32C of it, a protocol buffer (`tensorflow.Event`) and a masked CRC-32C of that. Four
//! fields of three messages are all that scalars need, so they are written by hand.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::TrainError;

/// The name of the file in the output directory; TensorBoard looks for `tfevents` in names.
pub const EVENTS: &str = "events.out.tfevents.forestream";
/// What stands around a record's data: length, its check, the data's check.
const FRAME: [usize; 3] = [8, 4, 4];

/// The file, open at its end.
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Opens the events of a run that has done `step` steps; later events that are there become void.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub(crate) fn open(directory: &Path, step: usize) -> Result<Self, TrainError> {
        let path = directory.join(EVENTS);
        let open = || {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let len = if step == 0 { 0 } else { whole_records(&std::fs::read(&path)?) };
            file.set_len(len as u64)?; // a killed run may leave half a record
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(TrainError::write(&path))?;
        let mut events = Self { path, file };
        if step == 0 {
            events.write(&[text(3, b"brain.Event:2")].concat(), 0)?;
        } else {
            const START: u64 = 1;
            events.write(&text(7, &integer(1, START)), step + 1)?; // a session starts: what comes after is written again
        }
        Ok(events)
    }

    /// Adds figures of a step.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn scalars(&mut self, step: usize, figures: &[(String, f64)]) -> Result<(), TrainError> {
        let value = |(tag, value): &(String, f64)| {
            let value = [key(2, 5).as_slice(), &(*value as f32).to_le_bytes()].concat();
            text(1, &[text(1, tag.as_bytes()), value].concat())
        };
        let summary: Vec<u8> = figures.iter().flat_map(value).collect();
        self.write(&text(5, &summary), step)
    }

    /// Writes an event with this content.
    fn write(&mut self, content: &[u8], step: usize) -> Result<(), TrainError> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let wall_time = [key(1, 1).as_slice(), &since.as_secs_f64().to_le_bytes()].concat();
        let record = record(&[&wall_time, integer(2, step as u64).as_slice(), content].concat());
        self.file.write_all(&record).map_err(TrainError::write(&self.path))
    }
}

/// How many leading bytes are whole records.
fn whole_records(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Some(len) = bytes.get(end..).and_then(|rest| rest.first_chunk()) {
        let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
        match end.checked_add(len).and_then(|end| end.checked_add(FRAME.iter().sum())) {
            Some(next) if next <= bytes.len() => end = next,
            _ => break,
        }
    }
    end
}

fn record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    [&len, masked(&len).as_slice(), data, &masked(data)].concat()
}

/// The key of a protocol buffer field with its wire type.
fn key(field: u64, wire_type: u64) -> Vec<u8> {
    varint(field << 3 | wire_type)
}

fn integer(field: u64, value: u64) -> Vec<u8> {
    [key(field, 0), varint(value)].concat()
}

/// A field of bytes: text, or a message in another.
fn text(field: u64, bytes: &[u8]) -> Vec<u8> {
    [key(field, 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// Seven bits in each byte, the lowest first.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// CRC-32C as records hold it: rotated and shifted, so that a check of checks is no check of zeros.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// The Castagnoli polynomial, bit by bit: events are short.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_those_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa); // RFC 3720, B.4
        assert_eq!(varint(300), [0xac, 0x02]);
    }

    #[test]
    fn a_torn_record_is_cut_off_and_the_session_starts_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(EVENTS);
        let mut events = EventFile::open(directory.path(), 0).unwrap();
        events.scalars(1, &[("loss".to_owned(), 2.5)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole_records(&whole), whole.len());
        assert!(whole.windows(4).any(|bytes| bytes == 2.5_f32.to_le_bytes()));
        events.file.write_all(&record(b"half of this")[..9]).unwrap();
        EventFile::open(directory.path(), 1).unwrap();
        let resumed = std::fs::read(&path).unwrap();
        assert!(resumed.starts_with(&whole) && resumed.len() > whole.len());
        assert_eq!(whole_records(&resumed), resumed.len());
        assert_eq!(whole_records(&[0xff; 40]), 0, "a length beyond all memory");
    }
}
