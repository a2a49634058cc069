//! Token ids to text, one id at a time.
//!
//! Emits a character only when all its bytes are there, so that the pieces joined equal the text decoded at once.

use std::sync::Arc;

use crate::TextError;
use crate::token_table::{SpecialTokens, TokenTable};

/// Where the first id stands in its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the start: the space that SentencePiece puts there is taken away.
    OfText,
    /// After other text, such as a prompt: a leading space belongs to the text.
    AfterText,
}

/// Turns a growing list of token ids into text.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    table: Arc<TokenTable>,
    specials: SpecialTokens,
    strips_space: bool,
    /// Whether an id outside the vocabulary is no text instead of an error.
    skips_unknown: bool,
    /// The bytes of a character that is not complete yet; at most 3 between calls.
    held: Vec<u8>,
}

impl Detokenizer {
    pub(crate) fn new(table: Arc<TokenTable>, specials: SpecialTokens, start: Start) -> Self {
        let strips_space = table.strips_leading_space() && start == Start::OfText;
        Self { table, specials, strips_space, skips_unknown: false, held: Vec::new() }
    }

    /// Takes ids outside the vocabulary as no text.
    pub(crate) fn without_unknown(self) -> Self {
        Self { skips_unknown: true, ..self }
    }

    /// Takes the next id and returns the text that is now complete, possibly none.
    ///
    /// # Errors
    /// The id is outside the vocabulary, unless this is [`crate::Tokenizer::detokenizer_after`] a prompt.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let mut text = String::new();
        self.push_to(id, &mut text)?;
        Ok(text)
    }

    /// Takes the next id and appends the text that is now complete.
    ///
    /// # Errors
    /// The id is outside the vocabulary, unless this is [`crate::Tokenizer::detokenizer_after`] a prompt.
    pub fn push_to(&mut self, id: u32, text: &mut String) -> Result<(), TextError> {
        let vocab_size = self.table.len();
        let bytes = match self.table.bytes(id) {
            Some(bytes) => bytes,
            None if self.skips_unknown => return Ok(()),
            None => return Err(TextError::UnknownToken { id, role: "to decode", vocab_size }),
        };
        if bytes.is_empty() || (self.specials == SpecialTokens::Skip && self.table.is_special(id)) {
            return Ok(());
        }
        let strips_space = std::mem::replace(&mut self.strips_space, false);
        let bytes = bytes.strip_prefix(b" ").filter(|_| strips_space).unwrap_or(bytes);
        self.held.extend_from_slice(bytes);
        release(&mut self.held, text);
        Ok(())
    }

    /// Ends the text; bytes that never became a character turn into one U+FFFD.
    pub fn finish(&mut self) -> String {
        if std::mem::take(&mut self.held).is_empty() { String::new() } else { char::REPLACEMENT_CHARACTER.to_string() }
    }
}

/// Moves all complete characters to `text`, impossible byte sequences as U+FFFD, and leaves an incomplete one.
fn release(held: &mut Vec<u8>, text: &mut String) {
    let mut rest = held.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                rest = after;
                let Some(invalid) = error.error_len() else { break };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &rest[invalid..];
            }
        }
    }
    let kept = held.len() - rest.len();
    held.drain(..kept);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token_table::TokenKind;

    /// Byte tokens 0 to 255, then a text token and a special one.
    fn table(strips_leading_space: bool) -> Arc<TokenTable> {
        let mut table = TokenTable::new(strips_leading_space);
        (0..=255u8).for_each(|byte| table.push(&[byte], TokenKind::Byte));
        table.push(" Öl".as_bytes(), TokenKind::Text);
        table.push(b"<|end|>", TokenKind::Special);
        Arc::new(table)
    }

    fn pieces(ids: &[u32], specials: SpecialTokens, start: Start) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(table(true), specials, start);
        let mut pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn half_characters_are_held_back() {
        let snail = [0xF0, 0x9F, 0x90, 0x8C];
        assert_eq!(pieces(&snail, SpecialTokens::Keep, Start::OfText), ["", "", "", "🐌", ""]);
        assert_eq!(pieces(&snail[..3], SpecialTokens::Keep, Start::OfText), ["", "", "", "\u{FFFD}"]);
        assert_eq!(pieces(&[0xF0, 0x9F, 0x41], SpecialTokens::Keep, Start::OfText), ["", "", "\u{FFFD}A", ""]);
    }

    #[test]
    fn only_the_space_before_the_text_goes() {
        let cases: [(&[u32], SpecialTokens, Start, &str); 6] = [
            (&[256, 256], SpecialTokens::Skip, Start::OfText, "Öl Öl"),
            (&[256, 256], SpecialTokens::Skip, Start::AfterText, " Öl Öl"),
            (&[257, 256], SpecialTokens::Skip, Start::OfText, "Öl"),
            (&[257, 256], SpecialTokens::Keep, Start::OfText, "<|end|> Öl"),
            (&[65, 256, 257], SpecialTokens::Skip, Start::OfText, "A Öl"),
            (&[32, 32, 65], SpecialTokens::Skip, Start::OfText, " A"),
        ];
        for (ids, specials, start, expected) in cases {
            assert_eq!(pieces(ids, specials, start).concat(), expected, "{ids:?}");
        }
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_an_error() {
        let error = Detokenizer::new(table(false), SpecialTokens::Keep, Start::OfText).push(258).unwrap_err();
        assert_eq!(error.to_string(), "token id 258 (to decode) is outside the vocabulary of 258 tokens");
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_lossy_text_of_all_bytes(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let ids: Vec<u32> = bytes.iter().map(|byte| u32::from(*byte)).collect();
            let joined = pieces(&ids, SpecialTokens::Keep, Start::AfterText).concat();
            prop_assert_eq!(joined, String::from_utf8_lossy(&bytes));
        }
    }
}
