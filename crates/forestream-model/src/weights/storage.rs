//! How a file stores a tensor: in a format of this build, or in another one that it can only describe.

use std::fmt;

use forestream_kernels::formats::Format;

/// A format of ggml that no kernel here reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignFormat {
    ggml_type: u32,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
}

/// Numbers, names and block sizes of `enum ggml_type`, without the formats of [`Format`].
const FOREIGN: &[ForeignFormat] = &[
    foreign(9, "Q8_1", [32, 40]),
    foreign(15, "Q8_K", [256, 292]),
    foreign(16, "IQ2_XXS", [256, 66]),
    foreign(17, "IQ2_XS", [256, 74]),
    foreign(18, "IQ3_XXS", [256, 98]),
    foreign(19, "IQ1_S", [256, 50]),
    foreign(20, "IQ4_NL", [32, 18]),
    foreign(21, "IQ3_S", [256, 110]),
    foreign(22, "IQ2_S", [256, 82]),
    foreign(23, "IQ4_XS", [256, 136]),
    foreign(24, "I8", [1, 1]),
    foreign(25, "I16", [1, 2]),
    foreign(26, "I32", [1, 4]),
    foreign(27, "I64", [1, 8]),
    foreign(28, "F64", [1, 8]),
    foreign(29, "IQ1_M", [256, 56]),
    foreign(34, "TQ1_0", [256, 54]),
    foreign(35, "TQ2_0", [256, 66]),
    foreign(39, "MXFP4", [32, 17]),
    foreign(40, "NVFP4", [64, 36]),
    foreign(41, "Q1_0", [128, 18]),
];

const fn foreign(ggml_type: u32, name: &'static str, [block_len, block_bytes]: [usize; 2]) -> ForeignFormat {
    ForeignFormat { ggml_type, name, block_len, block_bytes }
}

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In a format that this build reads.
    Readable(Format),
    /// In another one: the size is known, the values are not.
    Foreign(ForeignFormat),
}

impl Storage {
    /// What a type number in a GGUF tensor table stands for; `None` for numbers that stand for nothing known.
    pub(super) fn from_ggml_type(ggml_type: u32) -> Option<Self> {
        let foreign = || FOREIGN.iter().find(|format| format.ggml_type == ggml_type).copied().map(Self::Foreign);
        Format::from_ggml_type(ggml_type).map(Self::Readable).or_else(foreign)
    }

    /// The format, if this build reads it.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::Readable(format) => Some(format),
            Self::Foreign(_) => None,
        }
    }

    /// Elements of a block.
    pub(super) fn block_len(self) -> usize {
        match self {
            Self::Readable(format) => format.block_len(),
            Self::Foreign(format) => format.block_len,
        }
    }

    /// Bytes of a row of `cols` elements; `None` where it is not a whole number of blocks, or too long.
    pub(super) fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Self::Readable(format) => format.row_bytes(cols),
            Self::Foreign(format) if !cols.is_multiple_of(format.block_len) => None,
            Self::Foreign(format) => (cols / format.block_len).checked_mul(format.block_bytes),
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Readable(format) => format.name(),
            Self::Foreign(format) => format.name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_number_stands_for_one_format() {
        for number in 0..64 {
            let readable = Format::from_ggml_type(number).is_some();
            let foreign = FOREIGN.iter().filter(|format| format.ggml_type == number).count();
            assert_eq!(usize::from(readable) + foreign, usize::from(Storage::from_ggml_type(number).is_some()));
        }
        let name = |number| Storage::from_ggml_type(number).map(|storage| storage.to_string());
        assert_eq!(name(3).as_deref(), Some("Q4_1"));
        assert_eq!(name(20).as_deref(), Some("IQ4_NL"));
        assert_eq!((name(4), name(63)), (None, None), "removed from ggml, and beyond the end");
    }

    #[test]
    fn rows_are_whole_blocks() {
        let iq4 = Storage::from_ggml_type(20).unwrap();
        assert_eq!((iq4.row_bytes(64), iq4.row_bytes(33), iq4.format()), (Some(36), None, None));
        let largest = Storage::from_ggml_type(27).unwrap();
        assert_eq!(largest.row_bytes(usize::MAX), None);
    }
}
