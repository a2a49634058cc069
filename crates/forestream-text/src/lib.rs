//! Text on one side, token ids on the other: tokenizer, chat template, detokenizer, stop strings.
//!
//! A leaf crate: it knows no model, no tensor and no file format but the tokenizer's own. A GGUF reader hands over its
//! metadata as a plain [`GgufVocabulary`].

mod byte_level;
mod chat_template;
mod detokenizer;
mod error;
mod gguf_vocabulary;
mod hugging_face;
mod llama2c;
mod sentencepiece;
mod stop_strings;
mod token_table;
mod tokenizer;

pub use chat_template::{ChatInputs, ChatTemplate, Message};
pub use detokenizer::{Detokenizer, Start};
pub use error::TextError;
pub use gguf_vocabulary::GgufVocabulary;
pub use stop_strings::{Scanned, StopStrings};
pub use token_table::SpecialTokens;
pub use tokenizer::{AddSpecial, ParseSpecial, Tokenizer};

/// `text` without the byte order mark that some programs put before UTF-8: it is no part of what somebody wrote.
pub fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}
