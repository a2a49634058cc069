//! `generate --trace`: a page that shows what happened, and no text that could become markup.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/adapter.rs"]
mod adapter;
mod support;

use std::path::Path;
use std::time::Duration;

use forestream::trace::{Stage, TracedPass};
use forestream::{
    AdapterChoice, Engine, EngineOptions, GenerateOptions, Pruning, Report, SamplingSettings, StreamingOptions,
    TokenId, Trace,
};
use serde_json::Value;
use support::{Sandbox, tiny_model};

const TEXT: &str = "one two three one two three </script><script>alert('x')</script> <!-- & \" one two";

/// A model with a prompt that repeats itself, and random streams.
fn engine(sandbox: &Sandbox) -> Engine {
    let (model, directory) = (tiny_model("tiny-llama"), sandbox.path("adapter"));
    adapter::write_random_adapter(Path::new(&model), &directory);
    let options = EngineOptions { adapter: AdapterChoice::Directory(directory), ..EngineOptions::default() };
    Engine::open(Path::new(&model), &options).unwrap()
}

fn options(strategy: &str) -> GenerateOptions {
    let sampling = SamplingSettings { seed: 3, ..SamplingSettings::default() };
    let max_tokens = Some(60);
    GenerateOptions { strategy: strategy.to_owned(), budget: Some(8), max_tokens, ..GenerateOptions::new(sampling) }
}

fn traced(engine: &Engine, prompt: &[TokenId], options: &GenerateOptions) -> (Report, Vec<TracedPass>, String) {
    let (trace, mut session) = (Trace::new(engine), engine.session());
    let mut answer = session.generate_traced(prompt, options, &trace).unwrap();
    answer.by_ref().for_each(|piece| drop(piece.unwrap()));
    let report = answer.finish();
    let page = trace.page(prompt, &report).unwrap();
    (report, trace.passes(), page)
}

/// The data that a page's script reads.
fn data(page: &str) -> Value {
    let (_, from_data) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(from_data.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn every_pass_of_every_strategy_is_recorded_and_changes_no_token() {
    let sandbox = Sandbox::new();
    let engine = engine(&sandbox);
    let mut session = engine.session();
    let prompt = session.plain_prompt(TEXT).unwrap();
    for (strategy, pruning) in [
        ("none", None),
        ("ngram", None),
        ("streaming", None),
        ("ngram,streaming", None),
        ("streaming", Some(Pruning::Best(3))),
    ] {
        let streaming = StreamingOptions { pruning, ..StreamingOptions::default() };
        let options = |strategy| GenerateOptions { streaming, ..options(strategy) };
        let mut answer = session.generate(&prompt, &options(strategy)).unwrap();
        answer.by_ref().for_each(|piece| drop(piece.unwrap()));
        let untraced = answer.finish();
        let (report, passes, _) = traced(&engine, &prompt, &options(strategy));
        assert_eq!(report.token_ids, untraced.token_ids, "{strategy}");
        assert_eq!(passes.iter().flat_map(|pass| pass.emitted.clone()).collect::<Vec<_>>(), report.token_ids);
        assert!(passes[0].is_prompt && passes[0].nodes.is_empty());
        let rounds = &passes[1..];
        assert_eq!(rounds.len(), report.speculative.rounds, "{strategy}");
        for pass in rounds {
            let tokens = |nodes: &[usize]| nodes.iter().map(|&node| pass.nodes[node].token).collect::<Vec<_>>();
            assert_eq!(tokens(&pass.path)[1..], pass.emitted[..pass.emitted.len() - 1], "{strategy}: {pass:?}");
            assert!(pass.num_proposed + 1 >= pass.nodes.len(), "{strategy}: {pass:?}");
            assert!(pass.times[Stage::Forward as usize] > Duration::ZERO);
        }
        let drafted: usize = rounds.iter().map(|pass| pass.nodes.len() - 1).sum();
        assert_eq!((drafted, drafted > 0), (report.timings.draft_n, strategy != "none"), "{strategy}");
        let pruned: usize = rounds.iter().flat_map(|pass| &pass.nodes).filter(|node| node.is_pruned).count();
        assert_eq!((pruned, pruned > 0), (report.speculative.pruned_tokens, pruning.is_some()), "{strategy}");
        let ran_streams = rounds.iter().any(|pass| pass.times[Stage::Streams as usize] > Duration::ZERO);
        assert_eq!(ran_streams, strategy.contains("streaming"), "{strategy}");
    }
}

#[test]
fn no_text_ends_the_script_of_the_page() {
    let sandbox = Sandbox::new();
    let engine = engine(&sandbox);
    let prompt = engine.session().plain_prompt(TEXT).unwrap();
    let (report, _, page) = traced(&engine, &prompt, &options("ngram"));
    let ends = |page: &str| page.matches("</script").count();
    assert_eq!((ends(&page), page.matches("<!--").count()), (2, 0), "the two scripts of the page itself");
    assert!(!page.contains("src=") && !page.contains("href="), "the page loads nothing");
    let data = data(&page);
    assert!(data["prompt"].as_str().unwrap().ends_with(TEXT), "{}", data["prompt"]);
    assert_eq!(data["prompt_tokens"], prompt.len());
    let emitted = data["passes"].as_array().unwrap().iter().flat_map(|pass| pass["emitted"].as_array().unwrap());
    let text: String = emitted.map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(text, report.text);
}

#[test]
fn the_command_writes_the_page_beside_the_answer() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let path = sandbox.path("trace.html");
    let generate = |path: &str| {
        sandbox.run(&["generate", "-m", &model, "-p", TEXT, "-n", "20", "-o", "json", "--temp", "0", "--trace", path])
    };
    let report = generate(path.to_str().unwrap()).json();
    let data = data(&std::fs::read_to_string(&path).unwrap());
    assert_eq!(data["model"], report["model"]);
    assert_eq!(data["strategy"], report["speculative"]["strategy"]);
    let num_passes = report["speculative"]["rounds"].as_u64().unwrap() + 1;
    assert_eq!(data["passes"].as_array().unwrap().len() as u64, num_passes);
    generate("/nowhere/trace.html").assert_error(1, &["cannot create the trace", "/nowhere/trace.html"]);
}
