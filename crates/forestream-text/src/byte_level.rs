//! Byte-level BPE: text is cut into words by regular expressions, each byte of a word becomes one printable character,
//! and merge rules join these.
//!
//! Owns the pre-tokenizers by the names that GGUF files use. The expressions are those of the models' published
//! `tokenizer.json`; `default` is what llama.cpp does for a file that names no pre-tokenizer.

use std::mem;
use std::sync::LazyLock;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Engine};

use crate::{GgufVocabulary, TextError};

/// The name of byte-level BPE in `tokenizer.ggml.model`.
pub(crate) const MODEL: &str = "gpt2";

const GPT2_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// One way of cutting text into words.
struct PreTokenizer {
    /// The names in `tokenizer.ggml.pre`, the canonical one first.
    names: &'static [&'static str],
    /// Expressions applied one after the other; a match and what lies between matches become words.
    words: &'static [&'static str],
    /// Whether the text is brought to Unicode's composed form first.
    composes: bool,
    /// Whether a word that is a token skips the merge rules.
    ignores_merges: bool,
    /// Whether a text starts with the BOS token unless the file says otherwise.
    adds_bos: bool,
}

const PRE_TOKENIZERS: [PreTokenizer; 5] = [
    PreTokenizer {
        names: &["smollm"],
        words: &[r"\p{N}", GPT2_WORDS],
        composes: false,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        words: &[QWEN2_WORDS],
        composes: true,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        words: &[LLAMA3_WORDS],
        composes: false,
        ignores_merges: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["gpt-2", "gpt2"],
        words: &[GPT2_WORDS],
        composes: false,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["default"],
        words: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ],
        composes: false,
        ignores_merges: false,
        adds_bos: false,
    },
];

/// Builds the tokenizer of a `gpt2` vocabulary, without its added tokens, from the vocabulary's own tokens and rules.
pub(crate) fn engine(vocabulary: &mut GgufVocabulary) -> Result<Engine, TextError> {
    let pre_tokenizer = find(vocabulary.pre.as_deref())?;
    let fail = |source| TextError::Engine { doing: "building the byte-level tokenizer", source };
    let no_merges = || TextError::MissingField { field: "merges", model: MODEL.to_owned() };
    let rules = vocabulary.merges.take().ok_or_else(no_merges)?;
    let vocab: Vocab = mem::take(&mut vocabulary.tokens).into_iter().zip(0..).collect();
    let merges = merges(rules, &vocab)?;
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre_tokenizer.ignores_merges);
    let mut engine = Engine::new(model.build().map_err(fail)?);
    if pre_tokenizer.composes {
        engine.with_normalizer(Some(NFC)).map_err(fail)?;
    }
    let mut steps = Vec::new();
    for words in pre_tokenizer.words {
        let pattern = SplitPattern::Regex((*words).to_owned());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(fail)?.into());
    }
    steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
    engine.with_pre_tokenizer(Some(Sequence::new(steps)));
    Ok(engine)
}

/// Whether texts start with BOS when the file does not say so.
pub(crate) fn adds_bos(name: Option<&str>) -> bool {
    find(name).is_ok_and(|pre_tokenizer| pre_tokenizer.adds_bos)
}

/// The bytes that a token of printable characters stands for; a token with other characters stands for itself.
pub(crate) fn token_bytes(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

fn find(name: Option<&str>) -> Result<&'static PreTokenizer, TextError> {
    let name = name.unwrap_or("default");
    PRE_TOKENIZERS.iter().find(|candidate| candidate.names.contains(&name)).ok_or_else(|| {
        let supported: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|candidate| candidate.names).copied().collect();
        TextError::UnsupportedPreTokenizer { got: name.to_owned(), supported: supported.join(", ") }
    })
}

/// Splits the rules; the check that each joins two tokens to a third is what `BPE::builder` relies on.
fn merges(rules: Vec<String>, vocab: &Vocab) -> Result<Vec<(String, String)>, TextError> {
    let split = |(index, mut rule): (usize, String)| {
        let space = rule.split_once(' ').filter(|(left, right)| {
            vocab.contains_key(*left) && vocab.contains_key(*right) && vocab.contains_key(&format!("{left}{right}"))
        });
        let Some(space) = space.map(|(left, _)| left.len()) else { return Err(TextError::BadMerge { index, rule }) };
        let right = rule[space + 1..].to_owned();
        rule.truncate(space);
        Ok((rule, right))
    };
    rules.into_iter().enumerate().map(split).collect()
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for characters from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    static SHIFTED: LazyLock<Vec<u8>> = LazyLock::new(|| (0..=255).filter(|byte| !is_printable(*byte)).collect());
    match u8::try_from(character) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => SHIFTED.get(character as usize - 0x100).copied(),
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_that_of_the_tokenizers_crate() {
        let mut bytes: Vec<u8> = ByteLevel::alphabet().into_iter().map(|c| byte_of(c).unwrap()).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        for (token, expected) in [("Ġthe", " the"), ("Ċ", "\n"), ("Ã©", "é"), ("<|im_end|>", "<|im_end|>"), ("▁", "▁")]
        {
            assert_eq!(token_bytes(token), expected.as_bytes(), "{token}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = find(Some("tekken")).err().unwrap().to_string();
        for part in ["tekken", "smollm", "qwen2", "llama-bpe", "gpt-2", "default"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
