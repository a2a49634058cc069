//! `--backend`: the whole loop on the differentiable twin, and what a back end does not honour.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/adapter.rs"]
mod adapter;
mod support;

use std::path::Path;

use serde_json::Value;
use support::{Run, Sandbox, tiny_model};

const PROMPT: &str = "one two three one two three one two";

/// The report on an answer by `backend`, with a fixed budget: nothing is measured.
fn generate(sandbox: &Sandbox, backend: &str, more: &[&str]) -> Value {
    let model = tiny_model("tiny-llama");
    let arguments = ["generate", "-m", &model, "-p", PROMPT, "--backend", backend, "-n", "24", "-s", "3", "-o", "json"];
    sandbox.run(&[&arguments, ["--spec-tree-max-tokens", "6", "--ignore-eos"].as_slice(), more].concat()).json()
}

#[test]
fn every_strategy_gives_the_ids_of_plain_decoding_on_burn() {
    let sandbox = Sandbox::new();
    let adapter = sandbox.path("adapter");
    adapter::write_random_adapter(Path::new(&tiny_model("tiny-llama")), &adapter);
    let adapter = ["--adapter", adapter.to_str().unwrap()];
    let mut num_accepted = [0, 0];
    for temperature in ["0", "0.8"] {
        let run = |more: &[&str]| generate(&sandbox, "burn", &[&["--temp", temperature], more].concat());
        let plain = run(&["--spec-type", "none"]);
        assert_eq!(plain["usage"]["completion_tokens"], 24);
        let strategies: [&[&str]; 5] = [
            &["--spec-type", "ngram"],
            &["--spec-type", "streaming"],
            &["--spec-type", "streaming", "--spec-stream-pass", "fused", "--spec-tree-topk", "2"],
            &["--spec-type", "streaming", "--spec-prune-threshold", "0.02"],
            &["--spec-type", "auto"],
        ];
        for strategy in strategies {
            let drafted = run(&[&adapter, strategy].concat());
            assert_eq!(drafted["token_ids"], plain["token_ids"], "{temperature} {strategy:?}");
            assert!(drafted["timings"]["draft_n"].as_u64().unwrap() > 0, "{temperature} {strategy:?}: nothing drafted");
            let kind = usize::from(strategy[1] != "ngram");
            num_accepted[kind] += drafted["timings"]["draft_n_accepted"].as_u64().unwrap();
        }
    }
    assert!(num_accepted.iter().all(|&accepted| accepted > 0), "{num_accepted:?}");
}

#[test]
fn the_first_token_is_the_one_of_the_engine() {
    let sandbox = Sandbox::new();
    let ids = |backend| generate(&sandbox, backend, &["--temp", "0", "--spec-type", "none"])["token_ids"].clone();
    assert_eq!(ids("burn")[0], ids("cpu")[0]);
}

#[test]
fn chat_and_compare_have_back_ends_too() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let on_burn = ["-m", &model, "--backend", "burn", "--spec-tree-max-tokens", "4", "-n", "6"];
    let arguments = [&["chat", "--ignore-eos", "--temp", "0"], on_burn.as_slice()].concat();
    let chat = sandbox.run_with_input(&arguments, b"Hello\n");
    assert!(!chat.assert_success().stdout.trim().is_empty(), "an answer is printed");
    let data = sandbox.file("prompts.jsonl", "{\"prompt\": \"one two one two\"}\n");
    let arguments = ["compare", "--data", &data, "--spec-types", "ngram", "-o", "json"];
    let compared = sandbox.run(&[&arguments, on_burn.as_slice()].concat()).json();
    assert_eq!((&compared["arms"][1]["spec_type"], &compared["arms"][1]["identical"]), (&"ngram".into(), &true.into()));
}

#[test]
fn what_a_back_end_does_not_honour_is_an_error() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["--backend", "gpu"], 2, &["there is no such back end", "cpu", "burn"]),
        (&["--backend", "burn", "--device", "abacus"], 2, &["this build does not have it", "flex"]),
        (&["--backend", "burn", "-t", "2"], 1, &["`burn` has no --threads", "--backend cpu"]),
        (&["--backend", "burn", "--isa", "generic"], 1, &["`burn` has no --isa", "--backend cpu"]),
        (&["--device", "flex"], 1, &["`cpu` has no --device", "--backend burn"]),
        (&["--backend", "burn", "--spec-type", "streaming"], 1, &["--adapter"]),
    ];
    for (more, code, expected) in cases {
        let arguments = ["generate", "-m", &model, "-p", "hi", "-n", "2"];
        sandbox.run(&[&arguments, *more].concat()).assert_error(*code, expected);
    }
    let mut by_variable = sandbox.command(&["generate", "-m", &model, "-p", "hi", "-n", "2", "-t", "2"]);
    by_variable.env("FORESTREAM_BACKEND", "burn");
    Run::of(by_variable.output().unwrap()).assert_error(1, &["`burn` has no --threads"]);
    for command in ["bench", "distill", "train"] {
        sandbox.run(&[command, "--backend", "burn"]).assert_error(2, &["unexpected argument '--backend'"]);
    }
}
