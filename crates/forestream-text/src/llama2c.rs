//! Reads llama2.c's `tokenizer.bin` (`tok512.bin`): an i32 maximum length, then for each token an f32 score, an i32
//! length and the bytes, all little-endian.
//!
//! Ids 0 to 2 are unknown, BOS and EOS, the next 256 are bytes; spaces are spaces there and `▁` here.

use crate::sentencepiece::{MODEL, SPACE};
use crate::{GgufVocabulary, TextError};

impl GgufVocabulary {
    /// Reads llama2.c's tokenizer format.
    ///
    /// # Errors
    /// The file ends inside a token, a length is negative, a token is not UTF-8, or there are fewer than 259 tokens.
    pub fn from_llama2c(file: &[u8]) -> Result<Self, TextError> {
        let mut reader = Reader { file, offset: 0 };
        reader.number()?;
        let mut tokens = Vec::new();
        let mut scores = Vec::new();
        while reader.offset < file.len() {
            scores.push(f32::from_le_bytes(reader.number()?));
            tokens.push(reader.text()?.replace(' ', SPACE));
        }
        if tokens.len() < FIRST_TEXT {
            return Err(reader.corrupt("259 or more tokens", tokens.len().to_string()));
        }
        for (token, name) in tokens.iter_mut().zip(["<unk>", "<s>", "</s>"]) {
            name.clone_into(token);
        }
        let token_types = (0..tokens.len()).map(|id| match id {
            0 => 2,
            1 | 2 => 3,
            3..FIRST_TEXT => 6,
            _ => 1,
        });
        Ok(Self {
            model: MODEL.to_owned(),
            token_types: Some(token_types.collect()),
            tokens,
            scores: Some(scores),
            unknown: Some(0),
            bos: Some(1),
            eos: Some(2),
            ..Self::default()
        })
    }
}

/// The first id after the special and the byte tokens.
const FIRST_TEXT: usize = 3 + 256;

struct Reader<'a> {
    file: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn number(&mut self) -> Result<[u8; 4], TextError> {
        let bytes = self.bytes(4, "a 4-byte number")?;
        Ok(bytes.try_into().expect("4 bytes were asked for"))
    }

    fn text(&mut self) -> Result<&'a str, TextError> {
        let length = i32::from_le_bytes(self.number()?);
        let length = usize::try_from(length).map_err(|_| self.corrupt("a token length", length.to_string()))?;
        let bytes = self.bytes(length, "a token")?;
        std::str::from_utf8(bytes).map_err(|error| self.corrupt("a UTF-8 token", error.to_string()))
    }

    fn bytes(&mut self, length: usize, expected: &'static str) -> Result<&'a [u8], TextError> {
        let rest = &self.file[self.offset..];
        let bytes = rest.get(..length).ok_or_else(|| self.corrupt(expected, format!("{} bytes", rest.len())))?;
        self.offset += length;
        Ok(bytes)
    }

    fn corrupt(&self, expected: &'static str, got: String) -> TextError {
        TextError::Corrupt { expected, offset: self.offset, got }
    }
}
