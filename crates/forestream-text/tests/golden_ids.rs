//! Ids and texts equal Hugging Face's on every sample, from `tokenizer.json` and from GGUF metadata alike.

#![expect(clippy::unwrap_used, reason = "a broken fixture is a failed test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use forestream_text::{AddSpecial, GgufVocabulary, ParseSpecial, SpecialTokens, Start, Tokenizer};
use serde::Deserialize;
use serde::de::DeserializeOwned;

const KINDS: [&str; 5] = ["gpt-2", "smollm", "qwen2", "llama-bpe", "llama"];

#[derive(Deserialize)]
struct Golden {
    parsed: Vec<Vec<u32>>,
    plain: Vec<Vec<u32>>,
    /// The text of the plain ids, where it is not the sample.
    decoded: BTreeMap<usize, String>,
}

fn data(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/text")).join(path)
}

fn read<T: DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&std::fs::read(data(path)).unwrap()).unwrap()
}

fn from_gguf(kind: &str) -> Tokenizer {
    Tokenizer::from_gguf(read::<GgufVocabulary>(&format!("{kind}/vocabulary.json"))).unwrap()
}

/// Both ways to the same tokenizer.
fn both(kind: &str) -> [(String, Tokenizer); 2] {
    let directory = Tokenizer::from_directory(&data(kind)).unwrap();
    [(format!("{kind} from a directory"), directory), (format!("{kind} from GGUF"), from_gguf(kind))]
}

#[test]
fn ids_are_those_of_hugging_face() {
    let sample: Vec<String> = read("sample.json");
    for kind in KINDS {
        let golden: Golden = read(&format!("{kind}/ids.json"));
        for (name, tokenizer) in both(kind) {
            for (index, text) in sample.iter().enumerate() {
                for (parse, expected) in [(ParseSpecial::Yes, &golden.parsed), (ParseSpecial::No, &golden.plain)] {
                    let ids = tokenizer.encode(text, AddSpecial::Never, parse).unwrap();
                    assert_eq!(ids, expected[index], "{name}, {parse:?}, {text:?}");
                }
            }
        }
    }
}

#[test]
fn texts_come_back() {
    let sample: Vec<String> = read("sample.json");
    for kind in KINDS {
        let golden: Golden = read(&format!("{kind}/ids.json"));
        for (name, tokenizer) in both(kind) {
            for (index, ids) in golden.plain.iter().enumerate() {
                let expected = golden.decoded.get(&index).unwrap_or(&sample[index]);
                assert_eq!(&tokenizer.decode(ids, SpecialTokens::Keep).unwrap(), expected, "{name}");
                let mut detokenizer = tokenizer.detokenizer(SpecialTokens::Keep, Start::OfText);
                let mut text: String = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
                text.push_str(&detokenizer.finish());
                assert_eq!(&text, expected, "{name}, token by token");
            }
        }
    }
}

#[test]
fn configured_special_tokens_surround_a_prompt() {
    for (kind, prefix) in [("gpt-2", vec![]), ("llama-bpe", vec![0]), ("llama", vec![1])] {
        for (name, tokenizer) in both(kind) {
            let bare = tokenizer.encode("one two", AddSpecial::Never, ParseSpecial::Yes).unwrap();
            let full = tokenizer.encode("one two", AddSpecial::AsConfigured, ParseSpecial::Yes).unwrap();
            assert_eq!(full, [prefix.clone(), bare].concat(), "{name}");
        }
    }
    let mut vocabulary: GgufVocabulary = read("gpt-2/vocabulary.json");
    (vocabulary.add_bos, vocabulary.add_eos) = (Some(true), Some(true));
    let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
    assert_eq!(tokenizer.encode("", AddSpecial::AsConfigured, ParseSpecial::Yes).unwrap(), [0, 2]);
}

#[test]
fn roles_and_ends_are_known() {
    for (name, tokenizer) in both("smollm") {
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(2)), "{name}");
        assert_eq!(tokenizer.end_of_generation().iter().copied().collect::<Vec<_>>(), [0, 2], "{name}");
        assert_eq!(tokenizer.token_id("<|im_start|>"), Some(1), "{name}");
        assert_eq!(tokenizer.token_id("<|eot_id|>"), None, "{name}");
        assert_eq!(tokenizer.vocab_size(), 561, "{name}");
        let tool = tokenizer.token_id("<tool>").unwrap();
        assert_eq!((tool, tokenizer.is_special(tool), tokenizer.is_special(1)), (560, false, true), "{name}");
        assert_eq!(tokenizer.token_bytes(1), Some(&b"<|im_start|>"[..]), "{name}");
        assert_eq!(tokenizer.token_bytes(561), None, "{name}");
    }
}

#[test]
fn generated_text_keeps_its_first_space_after_a_prompt_only() {
    let tokenizer = from_gguf("llama");
    let ids = tokenizer.encode("boat", AddSpecial::Never, ParseSpecial::No).unwrap();
    let text = |prompt: &[u32]| {
        let mut detokenizer = tokenizer.detokenizer_after(prompt);
        ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect::<String>()
    };
    assert_eq!(text(&[]), "boat");
    assert_eq!(text(&[1]), "boat", "BOS alone is no text");
    assert_eq!(text(&[1, ids[0]]), " boat");
}

#[test]
fn rows_that_pad_the_vocabulary_are_no_text_in_an_answer() {
    let tokenizer = from_gguf("llama");
    let padding = u32::try_from(tokenizer.vocab_size()).unwrap();
    let mut ids = tokenizer.encode("a boat 🐌", AddSpecial::Never, ParseSpecial::No).unwrap();
    (1..=ids.len()).rev().for_each(|index| ids.insert(index, padding + 100));
    let mut detokenizer = tokenizer.detokenizer_after(&[]);
    let text: String = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
    assert_eq!(text + &detokenizer.finish(), "a boat 🐌");
    assert!(tokenizer.decode(&ids, SpecialTokens::Keep).is_err());
}

#[test]
fn threads_may_share_a_tokenizer() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Tokenizer>();
    is_shared::<forestream_text::ChatTemplate>();
}

#[test]
fn special_tokens_show_only_when_asked_for() {
    for (name, tokenizer) in both("qwen2") {
        let ids = tokenizer.encode("<|im_start|>a<tool><|im_end|>", AddSpecial::Never, ParseSpecial::Yes).unwrap();
        assert_eq!(tokenizer.decode(&ids, SpecialTokens::Skip).unwrap(), "a<tool>", "{name}");
        assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep).unwrap(), "<|im_start|>a<tool><|im_end|>", "{name}");
    }
}
