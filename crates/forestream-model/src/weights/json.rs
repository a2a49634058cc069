//! A JSON file with an object in it, read key by key; every error names the file and the key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;

/// Characters that a printed value shows.
const PRINTED_CHARS: usize = 160;

/// An object in a JSON file, possibly a nested one.
#[derive(Clone, Debug)]
pub(crate) struct JsonFile {
    path: PathBuf,
    /// The keys that lead to the object, each followed by a dot.
    prefix: String,
    object: Map<String, Value>,
}

impl JsonFile {
    pub(crate) fn read(path: &Path) -> Result<Self, ModelError> {
        let bytes = std::fs::read(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| ModelError::malformed(path, format!("not valid JSON: {error}")))?;
        match value {
            Value::Object(object) => Ok(Self { path: path.to_owned(), prefix: String::new(), object }),
            _ => Err(ModelError::malformed(path, "expected a JSON object")),
        }
    }

    /// Reads the file where there is one.
    pub(crate) fn read_optional(path: &Path) -> Result<Option<Self>, ModelError> {
        if path.exists() { Self::read(path).map(Some) } else { Ok(None) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.object.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.present(key).is_some()
    }

    pub(crate) fn integer(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.typed(key, "a whole number that is not negative", Value::as_u64)
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a finite number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a text", Value::as_str)
    }

    /// Whole numbers, given as one or as a list.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<u64>>, ModelError> {
        self.typed(key, "a whole number or a list of them", |value| match value {
            Value::Array(elements) => elements.iter().map(Value::as_u64).collect(),
            single => single.as_u64().map(|number| vec![number]),
        })
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        self.typed(key, "a list of texts", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>, ModelError> {
        let object = self.typed(key, "an object", Value::as_object)?;
        Ok(object.map(|object| Self {
            path: self.path.clone(),
            prefix: format!("{}{key}.", self.prefix),
            object: object.clone(),
        }))
    }

    /// Turns a missing value into an error.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| ModelError::malformed(&self.path, format!("the key `{}{key}` is missing", self.prefix)))
    }

    /// Keys and values for people; long values are shortened.
    pub(crate) fn printable(&self) -> Vec<(String, String)> {
        let shorten = |text: String| match text.char_indices().nth(PRINTED_CHARS) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        };
        self.object.iter().map(|(key, value)| (key.clone(), shorten(value.to_string()))).collect()
    }

    /// The value of `key`; `null` counts as absent.
    fn present(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.present(key) else { return Ok(None) };
        let converted = convert(value).ok_or_else(|| {
            let shown: String = value.to_string().chars().take(PRINTED_CHARS).collect();
            ModelError::malformed(&self.path, format!("`{}{key}`: expected {expected}, got {shown}", self.prefix))
        })?;
        Ok(Some(converted))
    }
}
