//! Metadata values: what they are, and how they are shown to people.

use std::fmt;

/// Elements that a printed array shows.
const PRINTED_ELEMENTS: usize = 6;
/// Characters that a printed string shows.
const PRINTED_CHARS: usize = 160;

/// A metadata value; integers and floats of all widths are widened.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// An unsigned integer.
    Unsigned(u64),
    /// A signed integer.
    Signed(i64),
    /// A float; of single precision in practice.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// A list of values of one type.
    Array(GgufArray),
}

/// A metadata array.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufArray {
    /// Unsigned integers.
    Unsigned(Vec<u64>),
    /// Signed integers.
    Signed(Vec<i64>),
    /// Floats.
    Floats(Vec<f64>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Strings(GgufStrings),
}

/// Many short texts in one allocation: a vocabulary has 150,000 of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufStrings {
    text: String,
    ends: Vec<usize>,
}

impl GgufStrings {
    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text at `index`.
    ///
    /// # Panics
    /// If there are not so many texts.
    pub fn text(&self, index: usize) -> &str {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.text[start..self.ends[index]]
    }

    /// All texts in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.text(index))
    }
}

impl fmt::Display for GgufValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(number) => number.fmt(f),
            Self::Signed(number) => number.fmt(f),
            Self::Float(number) => write_float(f, *number),
            Self::Bool(flag) => flag.fmt(f),
            Self::String(text) => write_text(f, text),
            Self::Array(array) => array.fmt(f),
        }
    }
}

impl fmt::Display for GgufArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(numbers) => write_list(f, numbers.iter(), |f, number| write!(f, "{number}")),
            Self::Signed(numbers) => write_list(f, numbers.iter(), |f, number| write!(f, "{number}")),
            Self::Floats(numbers) => write_list(f, numbers.iter(), |f, number| write_float(f, *number)),
            Self::Bools(flags) => write_list(f, flags.iter(), |f, flag| write!(f, "{flag}")),
            Self::Strings(strings) => write_list(f, strings.iter(), write_text),
        }
    }
}

/// Floats that came from single precision are printed with its digits.
fn write_float(f: &mut fmt::Formatter<'_>, number: f64) -> fmt::Result {
    let single = number as f32;
    if f64::from(single).to_bits() == number.to_bits() { write!(f, "{single:?}") } else { write!(f, "{number:?}") }
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    match text.char_indices().nth(PRINTED_CHARS) {
        Some((end, _)) => write!(f, "{:?}... ({} characters)", &text[..end], text.chars().count()),
        None => write!(f, "{text:?}"),
    }
}

fn write_list<T>(
    f: &mut fmt::Formatter<'_>,
    elements: impl ExactSizeIterator<Item = T>,
    write_one: impl Fn(&mut fmt::Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    let len = elements.len();
    f.write_str("[")?;
    for (index, element) in elements.take(PRINTED_ELEMENTS).enumerate() {
        f.write_str(if index == 0 { "" } else { ", " })?;
        write_one(f, element)?;
    }
    if len > PRINTED_ELEMENTS { write!(f, ", ... ({len} elements)]") } else { f.write_str("]") }
}
