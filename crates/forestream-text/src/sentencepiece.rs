//! SentencePiece-style BPE (`llama`): spaces become `▁`, the pair whose joined token scores best is merged first, and
//! characters outside the vocabulary fall back to byte tokens `<0xXX>`.
//!
//! The scores are turned into merge rules in the order of Hugging Face's own conversion, so that ids agree with it.

use std::collections::{HashMap, HashSet};
use std::mem;

use tokenizers::Tokenizer as Engine;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{NormalizerWrapper, Sequence};

use crate::{GgufVocabulary, TextError};

/// The name of SentencePiece BPE in `tokenizer.ggml.model`.
pub(crate) const MODEL: &str = "llama";

/// What stands for a space inside a token.
pub(crate) const SPACE: &str = "▁";

/// Builds the tokenizer of a `llama` vocabulary, without its added tokens, from the vocabulary's own tokens.
pub(crate) fn engine(vocabulary: &mut GgufVocabulary) -> Result<Engine, TextError> {
    let fail = |source| TextError::Engine { doing: "building the SentencePiece tokenizer", source };
    let merges = merges(vocabulary)?;
    let unknown = vocabulary.unknown.map(|unknown| vocabulary.tokens[unknown as usize].clone());
    let vocab: Vocab = mem::take(&mut vocabulary.tokens).into_iter().zip(0..).collect();
    let mut model = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown);
    }
    let mut engine = Engine::new(model.build().map_err(fail)?);
    let mut steps: Vec<NormalizerWrapper> = vec![Replace::new(" ", SPACE).map_err(fail)?.into()];
    if vocabulary.adds_space_prefix() {
        steps.insert(0, Prepend::new(SPACE.to_owned()).into());
    }
    engine.with_normalizer(Some(Sequence::new(steps))).map_err(fail)?;
    Ok(engine)
}

/// The bytes that a token stands for: one byte for `<0xXX>`, otherwise its text with spaces.
pub(crate) fn token_bytes(token: &str) -> Vec<u8> {
    byte_of(token).map_or_else(|| token.replace(SPACE, " ").into_bytes(), |byte| vec![byte])
}

fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_byte)
}

/// A rule that joins `left` and `right`, with what it is ordered by.
struct Rule<'a> {
    score: f32,
    left: &'a str,
    right: &'a str,
    ids: (u32, u32),
}

/// Every way of cutting a token into two tokens is a rule; better scores come first, then longer parts.
fn merges(vocabulary: &GgufVocabulary) -> Result<Vec<(String, String)>, TextError> {
    let scores = vocabulary
        .scores
        .as_ref()
        .ok_or_else(|| TextError::MissingField { field: "scores", model: MODEL.to_owned() })?;
    let ids: HashMap<&str, u32> = vocabulary.tokens.iter().map(String::as_str).zip(0..).collect();
    let text_id = |token: &str| ids.get(token).copied().filter(|id| vocabulary.is_text(*id as usize));
    // A part of a length that no token has is not looked up: that would read every part of a long token, byte by byte.
    let lengths: HashSet<usize> = vocabulary.tokens.iter().map(String::len).collect();
    let mut rules = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| vocabulary.is_text(*id)) {
        let start = rules.len();
        let is_possible = |cut: &usize| lengths.contains(cut) && lengths.contains(&(token.len() - cut));
        for cut in token.char_indices().map(|(cut, _)| cut).skip(1).filter(is_possible) {
            let (left, right) = token.split_at(cut);
            if let (Some(left_id), Some(right_id)) = (text_id(left), text_id(right)) {
                rules.push(Rule { score: scores[id], left, right, ids: (left_id, right_id) });
            }
        }
        rules[start..].sort_by_key(|rule| rule.ids);
    }
    let num_chars = |rule: &Rule<'_>| (rule.left.chars().count(), rule.right.chars().count());
    rules.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| num_chars(b).cmp(&num_chars(a))));
    Ok(rules.into_iter().map(|rule| (rule.left.to_owned(), rule.right.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stand_for_bytes() {
        for (token, expected) in
            [("▁the", &b" the"[..]), ("<0x0A>", b"\n"), ("<0xE2>", b"\xE2"), ("<0x0A", b"<0x0A"), ("<0x+1>", b"<0x+1>")]
        {
            assert_eq!(token_bytes(token), expected, "{token}");
        }
    }
}
