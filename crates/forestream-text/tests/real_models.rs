//! The vocabularies of real models give Hugging Face's ids, where `forestream pull` has left a model on this machine.
//!
//! Reads GGUF metadata by itself: this crate knows no other.

#![expect(clippy::unwrap_used, reason = "a broken file is a failed test")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use forestream_text::{AddSpecial, GgufVocabulary, ParseSpecial, SpecialTokens, Tokenizer};
use serde::Deserialize;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/text");

/// File name, and the directory of its ids.
const MODELS: [(&str, &str); 2] = [
    ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
    ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "qwen2.5-coder-1.5b-instruct"),
];

#[derive(Deserialize)]
struct Golden {
    parsed: Vec<Vec<u32>>,
    plain: Vec<Vec<u32>>,
    decoded: BTreeMap<usize, String>,
}

#[test]
fn ids_of_pulled_models_are_those_of_hugging_face() {
    let sample: Vec<String> =
        serde_json::from_slice(&std::fs::read(Path::new(DATA).join("sample.json")).unwrap()).unwrap();
    for (file, ids) in MODELS {
        let Some(path) = pulled(file) else {
            eprintln!("{file} is not on this machine; `forestream pull` fetches it");
            continue;
        };
        let golden = std::fs::read(Path::new(DATA).join(ids).join("ids.json")).unwrap();
        let golden: Golden = serde_json::from_slice(&golden).unwrap();
        let tokenizer = Tokenizer::from_gguf(Metadata::read(&path).vocabulary()).unwrap();
        for (index, text) in sample.iter().enumerate() {
            for (parse, expected) in [(ParseSpecial::Yes, &golden.parsed), (ParseSpecial::No, &golden.plain)] {
                let ids = tokenizer.encode(text, AddSpecial::Never, parse).unwrap();
                assert_eq!(ids, expected[index], "{file}, {parse:?}, {text:?}");
            }
            let decoded = tokenizer.decode(&golden.plain[index], SpecialTokens::Keep).unwrap();
            assert_eq!(&decoded, golden.decoded.get(&index).unwrap_or(text), "{file}");
        }
    }
}

fn pulled(file: &str) -> Option<PathBuf> {
    let path = std::env::home_dir()?.join(".cache/forestream/models").join(file);
    path.is_file().then_some(path)
}

/// The metadata values that a vocabulary is made of.
struct Metadata(BTreeMap<String, Value>);

enum Value {
    Number(i64),
    Text(String),
    Numbers(Vec<i64>),
    Texts(Vec<String>),
    Other,
}

impl Metadata {
    fn read(path: &Path) -> Self {
        let mut file = BufReader::new(File::open(path).unwrap());
        let _magic_version_and_tensors: [u8; 16] = bytes(&mut file);
        let count = u64::from_le_bytes(bytes(&mut file));
        let entry = |_| {
            let key = text(&mut file);
            let kind = u32::from_le_bytes(bytes(&mut file));
            (key, value(&mut file, kind))
        };
        Self((0..count).map(entry).collect())
    }

    fn vocabulary(mut self) -> GgufVocabulary {
        let mut take = |key: &str| self.0.remove(&format!("tokenizer.{key}")).unwrap_or(Value::Other);
        let mut vocabulary = GgufVocabulary::default();
        if let (Value::Text(model), Value::Text(pre)) = (take("ggml.model"), take("ggml.pre")) {
            (vocabulary.model, vocabulary.pre) = (model, Some(pre));
        }
        if let (Value::Texts(tokens), Value::Texts(merges)) = (take("ggml.tokens"), take("ggml.merges")) {
            (vocabulary.tokens, vocabulary.merges) = (tokens, Some(merges));
        }
        if let Value::Numbers(types) = take("ggml.token_type") {
            vocabulary.token_types = Some(types.into_iter().map(|kind| kind as i32).collect());
        }
        if let Value::Number(eos) = take("ggml.eos_token_id") {
            vocabulary.eos = Some(eos as u32);
        }
        vocabulary
    }
}

fn bytes<const N: usize>(file: &mut impl Read) -> [u8; N] {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).unwrap();
    bytes
}

fn text(file: &mut impl Read) -> String {
    let mut text = vec![0; u64::from_le_bytes(bytes(file)) as usize];
    file.read_exact(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// Value types by their numbers in the GGUF specification; floats are of no use here.
fn value(file: &mut impl Read, kind: u32) -> Value {
    match kind {
        0 | 1 | 7 => Value::Number(i64::from(bytes::<1>(file)[0])),
        2 | 3 => Value::Number(i64::from(u16::from_le_bytes(bytes(file)))),
        4 | 5 => Value::Number(i64::from(i32::from_le_bytes(bytes(file)))),
        6 => {
            let _: [u8; 4] = bytes(file);
            Value::Other
        }
        8 => Value::Text(text(file)),
        9 => {
            let kind = u32::from_le_bytes(bytes(file));
            let count = u64::from_le_bytes(bytes(file));
            array((0..count).map(|_| value(file, kind)).collect())
        }
        10 | 11 => Value::Number(i64::from_le_bytes(bytes(file))),
        12 => {
            let _: [u8; 8] = bytes(file);
            Value::Other
        }
        _ => panic!("value type {kind} is not in the specification"),
    }
}

fn array(items: Vec<Value>) -> Value {
    match items.first() {
        Some(Value::Text(_)) => Value::Texts(
            items.into_iter().filter_map(|item| if let Value::Text(text) = item { Some(text) } else { None }).collect(),
        ),
        Some(Value::Number(_)) => Value::Numbers(
            items
                .into_iter()
                .filter_map(|item| if let Value::Number(number) = item { Some(number) } else { None })
                .collect(),
        ),
        _ => Value::Other,
    }
}
