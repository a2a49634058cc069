//! The page of a trace: one HTML file with the passes as JSON, and a style and a script that show them.
//!
//! Texts get into the page as JSON alone, and the script makes them text nodes, so that no text can become markup.

use forestream_model::TokenId;
use forestream_text::SpecialTokens;
use serde::Serialize;

use super::{Stage, TracedPass};
use crate::{Engine, Error, FinishReason, Report};

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
    finish_reason: FinishReason,
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
    /// What became of it.
    kind: &'static str,
}

#[derive(Serialize)]
struct EmittedData {
    /// What it adds to the answer: nothing where it only begins a character.
    text: String,
    /// The token by itself.
    piece: String,
    is_special: bool,
    /// Whether the answer ended before it: at a stop string, or by the user.
    is_dropped: bool,
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
        finish_reason: report.finish_reason,
        prompt: engine.tokenizer().decode(prompt, SpecialTokens::Keep)?,
        prompt_tokens: prompt.len(),
        stages: Stage::ALL.map(Stage::name).to_vec(),
        passes: passes_data(engine, prompt, report, passes)?,
    };
    let json = serde_json::to_string(&data).expect("a trace is made of text and numbers");
    // No `<` in the data: neither the end of the script element nor a comment can begin there.
    let json = json.replace('<', "\\u003c");
    Ok(PAGE.replacen("/* STYLE */", STYLE, 1).replacen("/* SCRIPT */", SCRIPT, 1).replacen("/* DATA */", &json, 1))
}

fn passes_data(
    engine: &Engine,
    prompt: &[TokenId],
    report: &Report,
    passes: &[TracedPass],
) -> Result<Vec<PassData>, Error> {
    let tokenizer = engine.tokenizer();
    let piece = |token: TokenId| tokenizer.piece(token).unwrap_or_default();
    let mut detokenizer = tokenizer.detokenizer_after(prompt);
    let mut data = Vec::with_capacity(passes.len());
    let mut num_emitted = 0;
    for pass in passes {
        let mut emitted = Vec::with_capacity(pass.emitted.len());
        for &token in &pass.emitted {
            let (text, is_special) = (detokenizer.push(token)?, tokenizer.is_special(token));
            let is_dropped = num_emitted >= report.token_ids.len();
            emitted.push(EmittedData { text, piece: piece(token), is_special, is_dropped });
            num_emitted += 1;
        }
        let nodes = pass.nodes.iter().enumerate().map(|(index, node)| NodeData {
            parent: node.parent,
            text: piece(node.token),
            score: (f64::from(node.score) * 1e3).round() / 1e3,
            kind: kind(pass, index),
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
    cut_to(report.text.chars().count(), &mut data);
    Ok(data)
}

/// What became of a node of a pass: the class of its box.
fn kind(pass: &TracedPass, index: usize) -> &'static str {
    let node = &pass.nodes[index];
    // The walk does not go on to the guess of a stop token, which was right all the same.
    let is_end = node.parent == pass.path.last().copied() && pass.emitted.last() == Some(&node.token);
    match index {
        0 => "root",
        _ if pass.path.contains(&index) => "accepted",
        _ if node.is_probe => "probe",
        _ if node.is_pruned => "pruned",
        _ if is_end => "accepted",
        _ => "rejected",
    }
}

/// Drops the texts of tokens beyond the answer, which may end within one: the stop string is not part of it.
fn cut_to(num_letters: usize, data: &mut [PassData]) {
    let mut rest = num_letters;
    for token in data.iter_mut().flat_map(|pass| &mut pass.emitted) {
        token.text = token.text.chars().take(rest).collect();
        rest -= token.text.chars().count();
    }
}
