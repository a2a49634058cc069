//! Answers several prompts side by side, then one after the other: the same ids, from fewer passes over the weights.
//!
//! `cargo run --release --package forestream --example together -- "Why is the sky blue?" "Name three rivers."`
#![expect(clippy::print_stdout, reason = "the report of an example")]

use std::time::Instant;

use forestream::pull::{DEFAULT_MODEL, ModelStore, Network};
use forestream::{Engine, EngineOptions, Error, Message};
use forestream_decode::strategies::{self, Resources, StreamingOptions};
use forestream_decode::{Round, Sequence, SequenceOptions};

/// Where no prompts are given.
const PROMPTS: [&str; 4] = [
    "Why is the sky blue?",
    "Name three rivers.",
    "Write a Python function that adds two numbers.",
    "What is a prime?",
];
/// Most tokens of an answer.
const MAX_TOKENS: usize = 128;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut prompts: Vec<String> = std::env::args().skip(1).collect();
    if prompts.is_empty() {
        prompts.extend(PROMPTS.map(str::to_owned));
    }
    let path = ModelStore::for_user(Network::Online).locate(DEFAULT_MODEL, &mut ()).map_err(Error::from)?;
    let engine = Engine::open(&path, &EngineOptions::default())?;
    engine.auto_budget()?; // measured before the clock starts

    let begin = Instant::now();
    let together = answer(&engine, &prompts)?;
    let seconds = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.extend(answer(&engine, std::slice::from_ref(prompt))?);
    }
    let seconds_alone = begin.elapsed().as_secs_f64();

    for (prompt, ids) in prompts.iter().zip(&together) {
        println!("> {prompt}\n{}\n", engine.tokenizer().decode(ids, forestream_text::SpecialTokens::Skip)?);
    }
    let tokens = together.iter().map(Vec::len).sum::<usize>() as f64;
    println!("together {:.1} tokens/s, one after the other {:.1}", tokens / seconds, tokens / seconds_alone);
    if together == alone { Ok(()) } else { Err("an answer depends on its company".into()) }
}

/// The ids of greedy answers to `prompts`, all in one loop.
fn answer(engine: &Engine, prompts: &[String]) -> Result<Vec<Vec<u32>>> {
    let template = engine.chat_template()?.ok_or("the model has no chat template")?;
    let resources = Resources::of(engine.model(), StreamingOptions::default());
    let mut sequences = Vec::new();
    for prompt in prompts {
        let tokens = engine.session().chat_prompt(&template, &[Message::new("user", prompt)], None)?;
        let drafter = strategies::build(engine.default_strategy(), &resources)?;
        let options =
            SequenceOptions { max_tokens: MAX_TOKENS, stop_tokens: engine.stop_tokens(), ..SequenceOptions::default() };
        sequences.push(Sequence::new(engine.config(), &tokens, engine.new_cache(), drafter, options)?);
    }
    let mut round = Round::new(engine.auto_budget()?);
    while sequences.iter().any(|sequence| sequence.finish_reason().is_none()) {
        round.run(engine.model(), &mut sequences.iter_mut().collect::<Vec<_>>())?;
    }
    Ok(sequences.iter().map(|sequence| sequence.completion().to_vec()).collect())
}
