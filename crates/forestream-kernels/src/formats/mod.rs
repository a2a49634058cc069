//! Weight formats as they lie in files: names, block sizes, and conversion to and from `f32`.
//!
//! Each quantized format knows one thing: which stored integers and scales its bytes hold, 32 elements at a time
//! ([`Format::unpack_block32`], [`Format::scales32`]). Values follow from those through one formula ([`Scales32`]), so
//! that dequantization and packing cannot disagree. Knows no files and no tensors. The layouts are those of ggml's
//! `ggml-common.h`; `docs/formats.md` describes them.

mod decode;
#[cfg(test)]
mod golden_tests;
mod k_quants;
mod quantize;
mod simple;

use std::str::FromStr;

pub use decode::{PART_LEN, Scales32};
pub use quantize::QuantizeError;

/// How the elements of a weight tensor are stored. Names are those of ggml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, reason = "the formats' established names")]
#[allow(missing_docs, reason = "the names are the documentation; see `docs/formats.md`")]
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// A name that is not one of [`Format::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown weight format `{name}`; known are {}", names(&Format::ALL))]
pub struct UnknownFormat {
    /// The name as it was given.
    pub name: String,
}

/// The formats' names as one list for a message.
fn names(formats: &[Format]) -> String {
    formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
}

impl Format {
    /// Every format, from the widest to the narrowest of each family.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_1,
        Self::Q4_0,
        Self::Q6_K,
        Self::Q5_K,
        Self::Q4_K,
        Self::Q3_K,
        Self::Q2_K,
    ];

    /// The name as ggml writes it, for example `Q4_1`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// The number that stands for this format in a GGUF tensor header (`enum ggml_type`).
    pub const fn ggml_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }

    /// The format of a GGUF tensor header's type number; `None` for numbers that this crate cannot read.
    pub fn from_ggml_type(ggml_type: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.ggml_type() == ggml_type)
    }

    /// Whether the elements are integers with shared scales.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Elements per block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Bytes of a row of `len` elements; `None` when `len` is not a whole number of blocks or overflows.
    pub const fn row_bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    /// Reads a name in any case: `q4_1`, `Q4_K`, `bf16`.
    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let matching = Self::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name));
        matching.ok_or_else(|| UnknownFormat { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_type_numbers_lead_back_to_the_format() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            assert_eq!(format.name().to_lowercase().parse(), Ok(format));
            assert_eq!(format.to_string(), format!("{format:?}"));
            assert_eq!(Format::from_ggml_type(format.ggml_type()), Some(format));
        }
    }

    #[test]
    fn unknown_names_and_type_numbers_are_refused() {
        let error = "Q4_2".parse::<Format>().unwrap_err();
        assert!(error.to_string().starts_with("unknown weight format `Q4_2`; known are F32, F16"), "{error}");
        assert!("".parse::<Format>().is_err());
        // Q4_2, Q8_1, Q8_K, IQ2_XXS, beyond the end.
        for ggml_type in [4, 9, 15, 16, u32::MAX] {
            assert_eq!(Format::from_ggml_type(ggml_type), None);
        }
    }

    #[test]
    fn row_bytes_counts_whole_blocks_only() {
        assert_eq!(Format::Q4_1.row_bytes(576), Some(360));
        assert_eq!(Format::Q6_K.row_bytes(512), Some(420));
        assert_eq!(Format::Q6_K.row_bytes(576), None);
        assert_eq!(Format::F32.row_bytes(usize::MAX), None);
        assert_eq!(Format::F16.row_bytes(0), Some(0));
    }
}
