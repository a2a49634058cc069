//! A vocabulary as GGUF metadata describes it, and the tokenizer that it stands for.
//!
//! Owns the field names (`tokenizer.ggml.*`) and the token types. Knows no GGUF file: whoever reads one fills the struct.

use serde::Deserialize;
use tokenizers::AddedToken;

use crate::TextError;
use crate::byte_level;
use crate::chat_template::TemplateSources;
use crate::sentencepiece;
use crate::token_table::{TokenKind, TokenTable};
use crate::tokenizer::{Parts, Roles};

/// The names of `tokenizer.ggml.model` that can be built.
const MODELS: [&str; 2] = [byte_level::MODEL, sentencepiece::MODEL];

/// The values of `tokenizer.ggml.token_type`.
mod token_type {
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// The `tokenizer.*` metadata of a GGUF file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `tokenizer.ggml.pre`: how byte-level BPE cuts text into words.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, by id; SentencePiece merges the best score first.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.token_type`, by id.
    pub token_types: Option<Vec<i32>>,
    /// `tokenizer.ggml.merges`: two tokens separated by a space, best first.
    pub merges: Option<Vec<String>>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: the end of a turn.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`: the end of a message.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub padding: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`: SentencePiece puts a space before the text.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

impl GgufVocabulary {
    /// Builds everything that a [`crate::Tokenizer`] is made of.
    pub(crate) fn build(mut self) -> Result<Parts, TextError> {
        self.check()?;
        let (table, added_tokens) = (self.table(), self.added_tokens()); // before the engine takes the tokens over
        let mut engine = match self.model.as_str() {
            byte_level::MODEL => byte_level::engine(&mut self)?,
            _ => sentencepiece::engine(&mut self)?,
        };
        engine
            .add_tokens(added_tokens)
            .map_err(|source| TextError::Engine { doing: "adding the special tokens", source })?;
        let origin = "the GGUF metadata `tokenizer.chat_template`";
        let templates = self.chat_template.take().map(|source| TemplateSources::one(origin, source));
        Ok(Parts {
            engine,
            table,
            prefix: self.bos.into_iter().filter(|_| self.adds_bos()).collect(),
            suffix: self.eos.into_iter().filter(|_| self.add_eos.unwrap_or(false)).collect(),
            roles: Roles { bos: self.bos, eos: self.eos, unknown: self.unknown, padding: self.padding },
            end_of_generation: [self.eos, self.eot, self.eom].into_iter().flatten().collect(),
            templates,
        })
    }

    /// Whether a normal token of the vocabulary, one that text can be merged to.
    pub(crate) fn is_text(&self, id: usize) -> bool {
        self.kind(id) == TokenKind::Text
    }

    /// Whether SentencePiece puts a space before the text.
    pub(crate) fn adds_space_prefix(&self) -> bool {
        self.model == sentencepiece::MODEL && self.add_space_prefix.unwrap_or(true)
    }

    fn check(&self) -> Result<(), TextError> {
        if !MODELS.contains(&self.model.as_str()) {
            return Err(TextError::UnsupportedModel { got: self.model.clone(), supported: MODELS.join(", ") });
        }
        if self.tokens.is_empty() {
            return Err(TextError::MissingField { field: "tokens", model: self.model.clone() });
        }
        let expected = self.tokens.len();
        let lengths =
            [("scores", self.scores.as_ref().map(Vec::len)), ("token_types", self.token_types.as_ref().map(Vec::len))];
        for (field, got) in lengths.into_iter().filter_map(|(field, length)| Some((field, length?))) {
            if got != expected {
                return Err(TextError::LengthMismatch { field, expected, got });
            }
        }
        let roles = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("eot_token_id", self.eot),
            ("eom_token_id", self.eom),
            ("unknown_token_id", self.unknown),
            ("padding_token_id", self.padding),
        ];
        for (role, id) in roles.into_iter().filter_map(|(role, id)| Some((role, id?))) {
            if id as usize >= expected {
                return Err(TextError::UnknownToken { id, role, vocab_size: expected });
            }
        }
        Ok(())
    }

    fn kind(&self, id: usize) -> TokenKind {
        match self.token_types.as_ref().map(|types| types[id]) {
            Some(token_type::CONTROL | token_type::UNKNOWN) => TokenKind::Special,
            Some(token_type::USER_DEFINED) => TokenKind::Added,
            Some(token_type::BYTE) => TokenKind::Byte,
            Some(token_type::UNUSED) => TokenKind::Unused,
            _ => TokenKind::Text,
        }
    }

    fn added_tokens(&self) -> Vec<AddedToken> {
        let added = |(id, token): (usize, &String)| match self.kind(id) {
            TokenKind::Special => Some(AddedToken::from(token.clone(), true)),
            TokenKind::Added => Some(AddedToken::from(token.clone(), false).normalized(false)),
            _ => None,
        };
        self.tokens.iter().enumerate().filter_map(added).collect()
    }

    fn table(&self) -> TokenTable {
        let mut table = TokenTable::new(self.adds_space_prefix());
        for (id, token) in self.tokens.iter().enumerate() {
            let kind = self.kind(id);
            let bytes = match kind {
                TokenKind::Special | TokenKind::Added => token.as_bytes().to_vec(),
                _ if self.model == byte_level::MODEL => byte_level::token_bytes(token),
                _ => sentencepiece::token_bytes(token),
            };
            table.push(&bytes, kind);
        }
        table
    }

    fn adds_bos(&self) -> bool {
        let usual = || self.model == sentencepiece::MODEL || byte_level::adds_bos(self.pre.as_deref());
        self.add_bos.unwrap_or_else(usual)
    }
}
