//! The key/value pairs of a GGUF file, typed and owned.
//!
//! Values are copied out when the file is opened, so that nothing that was checked can change afterwards.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::RESERVED;
use super::cursor::Cursor;
use super::value::{GgufArray, GgufStrings, GgufValue};
use crate::ModelError;

/// The fewest bytes of a pair: key length, type, a one-byte value.
pub(super) const MIN_PAIR_BYTES: usize = 8 + 4 + 1;
/// Most numbers of an array, several times the largest vocabulary: they take eight bytes each in memory.
const MAX_NUMBERS: usize = 1 << 22;

/// The key/value pairs of one file; errors of the accessors name the file and the key.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufMetadata {
    path: PathBuf,
    entries: Vec<(String, GgufValue)>,
}

impl GgufMetadata {
    /// Reads `count` pairs; the file is known to be long enough for so many.
    pub(super) fn read(cursor: &mut Cursor<'_>, count: usize) -> Result<Self, ModelError> {
        let mut entries = Vec::with_capacity(count.min(RESERVED));
        let mut keys = HashSet::new();
        for index in 0..count {
            let key = cursor.string(format_args!("metadata key {index}"))?;
            if !keys.insert(key) {
                return Err(cursor.malformed(format!("the metadata key `{key}` occurs twice")));
            }
            entries.push((key.to_owned(), read_value(cursor, key)?));
        }
        Ok(Self { path: cursor.path().to_owned(), entries })
    }

    /// The file that the pairs come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All pairs in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &GgufValue)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The text at `key`.
    ///
    /// # Errors
    /// The value is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "text", |value| match value {
            GgufValue::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The whole number at `key`, not negative.
    ///
    /// # Errors
    /// The value is something else.
    pub fn integer(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.typed(key, "a whole number that is not negative", |value| match *value {
            GgufValue::Unsigned(number) => Some(number),
            GgufValue::Signed(number) => number.try_into().ok(),
            _ => None,
        })
    }

    /// The number at `key`.
    ///
    /// # Errors
    /// The value is not a finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a finite number", |value| match *value {
            GgufValue::Unsigned(number) => Some(number as f64),
            GgufValue::Signed(number) => Some(number as f64),
            GgufValue::Float(number) => number.is_finite().then_some(number),
            _ => None,
        })
    }

    /// The truth value at `key`.
    ///
    /// # Errors
    /// The value is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "a truth value", |value| match *value {
            GgufValue::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    /// The texts at `key`.
    ///
    /// # Errors
    /// The value is something else.
    pub fn strings(&self, key: &str) -> Result<Option<&GgufStrings>, ModelError> {
        self.typed(key, "an array of texts", |value| match value {
            GgufValue::Array(GgufArray::Strings(strings)) => Some(strings),
            _ => None,
        })
    }

    /// The whole numbers at `key`.
    ///
    /// # Errors
    /// The value is something else.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, ModelError> {
        self.typed(key, "an array of whole numbers", |value| match value {
            GgufValue::Array(GgufArray::Signed(numbers)) => Some(numbers.clone()),
            GgufValue::Array(GgufArray::Unsigned(numbers)) => {
                numbers.iter().map(|&number| number.try_into().ok()).collect()
            }
            _ => None,
        })
    }

    /// The floats at `key`.
    ///
    /// # Errors
    /// The value is something else.
    pub fn floats(&self, key: &str) -> Result<Option<&[f64]>, ModelError> {
        self.typed(key, "an array of floats", |value| match value {
            GgufValue::Array(GgufArray::Floats(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// Turns a missing value into an error.
    ///
    /// # Errors
    /// `value` is `None`.
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| {
            ModelError::malformed(&self.path, format!("the metadata lacks `{key}`; convert the model again"))
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let converted = convert(value).ok_or_else(|| {
            ModelError::malformed(&self.path, format!("metadata `{key}`: expected {expected}, got {value}"))
        })?;
        Ok(Some(converted))
    }
}

fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<GgufValue, ModelError> {
    let value_type = cursor.u32(format_args!("the type of `{key}`"))?;
    match ValueType::from_id(value_type) {
        Some(ValueType::String) => {
            Ok(GgufValue::String(cursor.string(format_args!("the value of `{key}`"))?.to_owned()))
        }
        Some(ValueType::Array) => read_array(cursor, key).map(GgufValue::Array),
        Some(ValueType::Scalar(scalar, width)) => {
            let bytes = cursor.take(width as u64, format_args!("the value of `{key}`"))?;
            Ok(match scalar {
                Scalar::Unsigned => GgufValue::Unsigned(unsigned(bytes)),
                Scalar::Signed => GgufValue::Signed(signed(bytes)),
                Scalar::Float => GgufValue::Float(float(bytes)),
                Scalar::Bool => GgufValue::Bool(bytes[0] != 0),
            })
        }
        None => Err(cursor.malformed(format!("metadata `{key}` has the unknown value type {value_type}"))),
    }
}

fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<GgufArray, ModelError> {
    let element_type = cursor.u32(format_args!("the element type of `{key}`"))?;
    let what = format!("the element count of `{key}`");
    match ValueType::from_id(element_type) {
        Some(ValueType::String) => {
            let mut strings = GgufStrings::default();
            for index in 0..cursor.count(what, size_of::<u64>())? {
                strings.push(cursor.string(format_args!("element {index} of `{key}`"))?);
            }
            Ok(GgufArray::Strings(strings))
        }
        Some(ValueType::Scalar(scalar, width)) => {
            let count = cursor.count(&what, width)?;
            if count > MAX_NUMBERS {
                return Err(cursor.malformed(format!("{what} is {count}; arrays of at most {MAX_NUMBERS} are read")));
            }
            let elements = cursor.take((count * width) as u64, format_args!("the elements of `{key}`"))?;
            let elements = elements.chunks_exact(width);
            Ok(match scalar {
                Scalar::Unsigned => GgufArray::Unsigned(elements.map(unsigned).collect()),
                Scalar::Signed => GgufArray::Signed(elements.map(signed).collect()),
                Scalar::Float => GgufArray::Floats(elements.map(float).collect()),
                Scalar::Bool => GgufArray::Bools(elements.map(|bytes| bytes[0] != 0).collect()),
            })
        }
        Some(ValueType::Array) => Err(cursor.malformed(format!("metadata `{key}` is an array of arrays"))),
        None => Err(cursor.malformed(format!("metadata `{key}` has the unknown element type {element_type}"))),
    }
}

/// The value types of the format, by what they are and how many bytes they take.
#[derive(Clone, Copy)]
enum ValueType {
    Scalar(Scalar, usize),
    String,
    Array,
}

#[derive(Clone, Copy)]
enum Scalar {
    Unsigned,
    Signed,
    Float,
    Bool,
}

impl ValueType {
    /// Source: the GGUF specification's `gguf_metadata_value_type`.
    fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::Scalar(Scalar::Unsigned, 1),
            1 => Self::Scalar(Scalar::Signed, 1),
            2 => Self::Scalar(Scalar::Unsigned, 2),
            3 => Self::Scalar(Scalar::Signed, 2),
            4 => Self::Scalar(Scalar::Unsigned, 4),
            5 => Self::Scalar(Scalar::Signed, 4),
            6 => Self::Scalar(Scalar::Float, 4),
            7 => Self::Scalar(Scalar::Bool, 1),
            8 => Self::String,
            9 => Self::Array,
            10 => Self::Scalar(Scalar::Unsigned, 8),
            11 => Self::Scalar(Scalar::Signed, 8),
            12 => Self::Scalar(Scalar::Float, 8),
            _ => return None,
        })
    }
}

fn unsigned(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(wide)
}

fn signed(bytes: &[u8]) -> i64 {
    let unused_bits = 64 - 8 * bytes.len();
    ((unsigned(bytes) << unused_bits) as i64) >> unused_bits
}

fn float(bytes: &[u8]) -> f64 {
    match bytes.len() {
        4 => f32::from_bits(unsigned(bytes) as u32).into(),
        _ => f64::from_bits(unsigned(bytes)),
    }
}
