//! Broken vocabularies and directories give errors that name the field or the file; none panics.

use std::path::Path;

use forestream_text::{GgufVocabulary, Tokenizer};

fn vocabulary() -> GgufVocabulary {
    GgufVocabulary {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens: ["a", "b", "ab", "<|end|>"].map(str::to_owned).into(),
        token_types: Some(vec![1, 1, 1, 3]),
        merges: Some(vec!["a b".to_owned()]),
        ..GgufVocabulary::default()
    }
}

/// The message of an error with all its causes.
fn message(result: Result<Tokenizer, forestream_text::TextError>) -> String {
    let error = result.expect_err("the input is broken");
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}

/// What breaks a vocabulary.
type Break = fn(&mut GgufVocabulary);

#[test]
fn contradictory_metadata_is_refused() {
    assert!(Tokenizer::from_gguf(vocabulary()).is_ok());
    let cases: [(Break, &str); 10] = [
        (|v| v.model = "bert".to_owned(), "tokenizer model `bert` is not supported (supported: gpt2, llama)"),
        (|v| v.pre = Some("tekken".to_owned()), "pre-tokenizer `tekken` is not supported (supported: smollm, qwen2"),
        (|v| v.tokens.clear(), "the vocabulary has no `tokens`, which a `gpt2` tokenizer needs"),
        (|v| v.merges = None, "the vocabulary has no `merges`, which a `gpt2` tokenizer needs"),
        (|v| v.model = "llama".to_owned(), "the vocabulary has no `scores`, which a `llama` tokenizer needs"),
        (|v| v.token_types = Some(vec![1]), "`token_types` has 1 entries, but the vocabulary has 4 tokens"),
        (|v| v.scores = Some(vec![0.0; 5]), "`scores` has 5 entries, but the vocabulary has 4 tokens"),
        (|v| v.eos = Some(4), "token id 4 (eos_token_id) is outside the vocabulary of 4 tokens"),
        (|v| v.merges = Some(vec!["ab ab".to_owned()]), "merge rule 0, \"ab ab\", does not join two tokens"),
        (|v| v.merges = Some(vec!["a b".to_owned(), "ab".to_owned()]), "merge rule 1, \"ab\", does not join"),
    ];
    for (break_it, expected) in cases {
        let mut broken = vocabulary();
        break_it(&mut broken);
        let message = message(Tokenizer::from_gguf(broken));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn broken_directories_are_refused() {
    let model = r#""model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}"#;
    let full = |decoder: &str| format!(r#"{{"version":"1.0",{model},"decoder":{decoder}}}"#);
    let byte_level = full(r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#);
    let cases = [
        (vec![], "cannot read"),
        (vec![("tokenizer.json", "{".to_owned())], "tokenizer.json is not valid tokenizer JSON: EOF"),
        (vec![("tokenizer.json", r#"{"model":7}"#.to_owned())], "tokenizer.json is not valid tokenizer JSON"),
        (
            vec![("tokenizer.json", byte_level.replace(r#"["a","b"]"#, r#"["ab","ab"]"#))],
            "merge rule 0, \"ab ab\", does not join two tokens",
        ),
        (
            vec![(
                "tokenizer.json",
                byte_level.replace(r#""type":"BPE""#, r###""type":"BPE","continuing_subword_prefix":"##""###),
            )],
            "merge rule 0, \"a b\", does not join two tokens",
        ),
        (
            vec![("tokenizer.json", byte_level.replace(r#""ab":2"#, r#""ab":2,"c":4000000000"#))],
            "token id 4000000000 (in tokenizer.json) is outside",
        ),
        (vec![("tokenizer.json", full("null"))], "decoder `none` is not supported"),
        (
            vec![("tokenizer.json", full(r#"{"type":"WordPiece","prefix":"","cleanup":true}"#))],
            "decoder `WordPiece(WordPiece { prefix: \"\", cleanup: true })` is not supported",
        ),
        (
            vec![("tokenizer.json", byte_level.clone()), ("tokenizer_config.json", "[".to_owned())],
            "tokenizer_config.json is not valid tokenizer JSON",
        ),
        (
            vec![("tokenizer.json", byte_level), ("generation_config.json", r#"{"eos_token_id":"x"}"#.to_owned())],
            "generation_config.json is not valid tokenizer JSON",
        ),
    ];
    for (files, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in &files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let message = message(Tokenizer::from_directory(directory.path()));
        assert!(message.contains(expected), "{message}");
    }
    let message = message(Tokenizer::from_directory(Path::new("/nowhere")));
    assert!(message.contains("/nowhere/tokenizer.json"), "{message}");
}

#[test]
fn one_long_token_does_not_take_long() {
    let long = "a".repeat(400_000);
    let vocabulary = GgufVocabulary {
        model: "llama".to_owned(),
        pre: None,
        tokens: ["a", "b", "aa", &long].map(str::to_owned).into(),
        token_types: Some(vec![1; 4]),
        scores: Some(vec![0.0, -1.0, -2.0, -3.0]),
        merges: None,
        ..GgufVocabulary::default()
    };
    let start = std::time::Instant::now();
    let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert_eq!(tokenizer.token_id("aa"), Some(2));
}
