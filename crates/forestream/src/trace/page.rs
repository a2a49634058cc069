//! The page of a trace: one HTML file with the passes as JSON, and a style and a script that show them.
//!
//! Texts get into the page as JSON alone, and the script makes them text nodes, so that no text can become markup.

use forestream_model::TokenId;
use forestream_text::SpecialTokens;
use serde::Serialize;

use super::{Stage, TracedPass};
use crate::{Engine, Error, Report};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What the script reads.
#[derive(Serialize)]
struct PageData<'a> {
    version: &'static str,
    model: &'a str,
    strategy: &'a str,
    seed: u64,
    threads: usize,
    finish_reason: &'a str,
    prompt: String,
    prompt_tokens: usize,
    stages: Vec<&'static str>,
    passes: Vec<PassData>,
}

#[derive(Serialize)]
struct PassData {
    is_prompt: bool,
    num_proposed: usize,
    nodes: Vec<NodeData>,
    path: Vec<usize>,
    emitted: Vec<EmittedData>,
    /// Milliseconds by stage.
    times: Vec<f64>,
}

#[derive(Serialize)]
struct NodeData {
    parent: Option<usize>,
    text: String,
    score: f64,
    is_probe: bool,
    is_pruned: bool,
}

#[derive(Serialize)]
struct EmittedData {
    /// What it adds to the answer: nothing where it only begins a character.
    text: String,
    /// The token by itself.
    piece: String,
    is_special: bool,
}

pub(super) fn render(
    engine: &Engine,
    prompt: &[TokenId],
    report: &Report,
    passes: &[TracedPass],
) -> Result<String, Error> {
    let data = PageData {
        version: env!("CARGO_PKG_VERSION"),
        model: &report.model,
        strategy: &report.speculative.strategy,
        seed: report.seed,
        threads: engine.threads(),
        finish_reason: &report.finish_reason,
        prompt: engine.tokenizer().decode(prompt, SpecialTokens::Keep)?,
        prompt_tokens: prompt.len(),
        stages: Stage::ALL.map(Stage::name).to_vec(),
        passes: passes_data(engine, prompt, passes)?,
    };
    let json = serde_json::to_string(&data).expect("a trace is made of text and numbers");
    // No `<` in the data: neither the end of the script element nor a comment can begin there.
    let json = json.replace('<', "\\u003c");
    Ok(PAGE.replacen("/* STYLE */", STYLE, 1).replacen("/* SCRIPT */", SCRIPT, 1).replacen("/* DATA */", &json, 1))
}

fn passes_data(engine: &Engine, prompt: &[TokenId], passes: &[TracedPass]) -> Result<Vec<PassData>, Error> {
    let tokenizer = engine.tokenizer();
    let piece = |token: TokenId| tokenizer.piece(token).unwrap_or_default();
    let mut detokenizer = tokenizer.detokenizer_after(prompt);
    let mut data = Vec::with_capacity(passes.len());
    for pass in passes {
        let mut emitted = Vec::with_capacity(pass.emitted.len());
        for &token in &pass.emitted {
            let (text, is_special) = (detokenizer.push(token)?, tokenizer.is_special(token));
            emitted.push(EmittedData { text, piece: piece(token), is_special });
        }
        let nodes = pass.nodes.iter().map(|node| NodeData {
            parent: node.parent,
            text: piece(node.token),
            score: (f64::from(node.score) * 1e3).round() / 1e3,
            is_probe: node.is_probe,
            is_pruned: node.is_pruned,
        });
        data.push(PassData {
            is_prompt: pass.is_prompt,
            num_proposed: pass.num_proposed,
            nodes: nodes.collect(),
            path: pass.path.clone(),
            emitted,
            times: pass.times.iter().map(|time| (time.as_secs_f64() * 1e6).round() / 1e3).collect(),
        });
    }
    let last = data.last_mut().and_then(|pass: &mut PassData| pass.emitted.last_mut());
    if let Some(last) = last {
        last.text.push_str(&detokenizer.finish());
    }
    Ok(data)
}
