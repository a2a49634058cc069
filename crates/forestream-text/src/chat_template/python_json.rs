//! `tojson` as Hugging Face's templates know it: Python's `json.dumps`, `ensure_ascii=False` unless told otherwise.
//!
//! minijinja's own filter escapes HTML characters, which changes the text that the model reads.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::limits;

/// The longest indent or separator, which a file repeats many times.
const MAX_SPACING: usize = 64;
/// Values in each other; Python's own recursion ends, too.
const MAX_DEPTH: usize = 256;

/// The filter: `value | tojson` or `value | tojson(indent=4, separators=(',', ':'), sort_keys=true)`.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands keyword arguments over by value")]
pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let style = Style::of(&options)?;
    let is_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let is_sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let limit = limits::printable_bytes(state);
    let json = if is_sorted {
        // Written twice: the first time shows that the value is not too large to be copied, which takes more than its text.
        style.write(value, limit / 8)?;
        style.write(&sorted(serde_json::to_value(value).map_err(not_json)?), limit)?
    } else {
        style.write(value, limit)?
    };
    limits::pay_for_printing(state, json.len())?;
    Ok(Value::from(if is_ascii { ascii(&json) } else { json }))
}

fn not_json(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, "cannot serialize to JSON").with_source(error)
}

fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Array(elements) => elements.into_iter().map(sorted).collect(),
        serde_json::Value::Object(mut object) => {
            object.sort_keys();
            object.into_iter().map(|(key, value)| (key, sorted(value))).collect()
        }
        other => other,
    }
}

/// Writes characters outside ASCII as `\uXXXX`, in pairs where UTF-16 needs two.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            text.extend(character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    text
}

/// What stands between values.
struct Style {
    /// `None` writes one line.
    indent: Option<String>,
    /// Between elements, and between a key and its value.
    separators: [String; 2],
}

impl Style {
    fn of(options: &Kwargs) -> Result<Self, Error> {
        let indent = options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none());
        let indent = indent.map(|indent| spacing_of(&indent)).transpose()?;
        let usual = if indent.is_some() { [",", ": "] } else { [", ", ": "] };
        let separators = match options.get::<Option<Value>>("separators")?.filter(|given| !given.is_none()) {
            Some(given) => separators(&given)?,
            None => usual.map(str::to_owned),
        };
        Ok(Self { indent, separators })
    }

    /// Writes a value in at most `limit` bytes.
    fn write(&self, value: &impl Serialize, limit: usize) -> Result<String, Error> {
        let mut json = Limited { bytes: Vec::new(), limit };
        let written = value.serialize(&mut Serializer::with_formatter(&mut json, Writer::new(self)));
        match written {
            Ok(()) => Ok(String::from_utf8(json.bytes).expect("serde_json writes UTF-8")),
            Err(_) if json.bytes.len() >= limit => Err(limits::out_of_fuel()),
            Err(error) => Err(not_json(error)),
        }
    }
}

/// An indent is a number of spaces, or the text itself.
fn spacing_of(indent: &Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return short("indent", text);
    }
    let width = i64::try_from(indent.clone())?.max(0);
    // One space too many is refused as any longer indent.
    short("indent", &" ".repeat(width.min(MAX_SPACING as i64 + 1) as usize))
}

fn separators(given: &Value) -> Result<[String; 2], Error> {
    let wrong = || Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two texts");
    if given.len() != Some(2) {
        return Err(wrong());
    }
    let texts = given.try_iter()?.map(|text| short("a separator", text.as_str().ok_or_else(wrong)?));
    let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
    texts.try_into().map_err(|_| wrong())
}

fn short(what: &str, text: &str) -> Result<String, Error> {
    if text.len() <= MAX_SPACING {
        return Ok(text.to_owned());
    }
    let message = format!("tojson: {what} must not be longer than {MAX_SPACING}");
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Bytes in memory, up to a limit.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    /// Takes what fits; nothing fits a full one, which `write_all` makes an error.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.limit - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes in a style.
struct Writer<'a> {
    style: &'a Style,
    depth: usize,
    /// Whether the innermost list or object has nothing in it so far.
    is_empty: bool,
}

impl<'a> Writer<'a> {
    fn new(style: &'a Style) -> Self {
        Self { style, depth: 0, is_empty: true }
    }

    fn open<W: io::Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        if self.depth == MAX_DEPTH {
            return Err(io::Error::other(format!("more than {MAX_DEPTH} lists and objects in each other")));
        }
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn close<W: io::Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.start_line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn start_element<W: io::Write + ?Sized>(&self, writer: &mut W, is_first: bool) -> io::Result<()> {
        if !is_first {
            writer.write_all(self.style.separators[0].as_bytes())?;
        }
        self.start_line(writer)
    }

    fn start_line<W: io::Write + ?Sized>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.style.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for Writer<'_> {
    fn begin_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.start_element(writer, first)
    }

    fn end_array_value<W: io::Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.start_element(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.style.separators[1].as_bytes())
    }

    fn end_object_value<W: io::Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }
}
