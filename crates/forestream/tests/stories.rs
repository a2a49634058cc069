//! The golden text of stories260K, the checkpoint that llama2.c's own test uses: 200 tokens after BOS at temperature 0.
//!
//! Needs the two files, `stories260K.bin` and `tok512.bin`, in one folder:
//! `FORESTREAM_STORIES=FOLDER cargo test --package forestream --features slow-tests --test stories`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use forestream::{Engine, EngineOptions, GenerateOptions, SamplingSettings};

const MAX_TOKENS: usize = 200;

const TEXT: &str = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw \
a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I want to play with \
your ball, but I can't find it.\"
Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"
Lily didn't want to help her mom, so she";

#[test]
fn the_golden_text_at_temperature_0() {
    let folder = forestream::places::variable("FORESTREAM_STORIES").expect("FORESTREAM_STORIES names the folder");
    let engine = Engine::open(&Path::new(&folder).join("stories260K.bin"), &EngineOptions::default()).unwrap();
    for strategy in ["none", "ngram"] {
        let options = GenerateOptions {
            max_tokens: Some(MAX_TOKENS),
            strategy: strategy.to_owned(),
            ..GenerateOptions::new(SamplingSettings::default())
        };
        let mut session = engine.session();
        let prompt = session.plain_prompt("").unwrap();
        let mut answer = session.generate(&prompt, &options).unwrap();
        let text: String = answer.by_ref().map(Result::unwrap).collect();
        assert_eq!(text.trim_start(), TEXT, "{strategy}");
    }
}
