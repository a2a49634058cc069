//! Perplexity of a model on a text file, by the protocol of llama.cpp's `llama-perplexity` at its default settings.
//!
//! The text is cut into windows of 512 tokens; each is read from an empty cache, and the tokens of its second half are
//! scored. `cargo run --release --package forestream --example perplexity -- MODEL.gguf FILE.txt`

use std::io::{Write, stdout};
use std::path::Path;

use forestream::{Engine, EngineOptions};
use forestream_model::{Hidden, Model, Outputs, Row, TokenTree};
use forestream_text::{AddSpecial, ParseSpecial};

/// Tokens of a window.
const WINDOW_LEN: usize = 512;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, file] = arguments.as_slice() else { return Err("two arguments: MODEL and FILE".into()) };
    let engine = Engine::open(Path::new(model), &EngineOptions::default())?;
    let text = std::fs::read_to_string(file)?;
    let tokens = engine.tokenizer().encode(&text, AddSpecial::Never, ParseSpecial::No)?;
    let (mut total, mut count) = (0.0, 0);
    for window in tokens.chunks_exact(WINDOW_LEN) {
        total += negative_log_likelihood(engine.model(), window)?;
        count += WINDOW_LEN / 2 - 1;
    }
    let perplexity = (total / f64::from(u32::try_from(count)?)).exp();
    writeln!(stdout(), "perplexity {perplexity:.4} over {count} tokens")?;
    Ok(())
}

/// The sum over the second half of `window`, in nats.
fn negative_log_likelihood(model: &dyn Model, window: &[u32]) -> Result<f64, Box<dyn std::error::Error>> {
    let (mut cache, mut hidden, mut logits) = (model.new_cache(WINDOW_LEN), Hidden::new(), Vec::new());
    let tree = TokenTree::chain(window);
    model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden)?;
    let mut total = 0.0;
    for position in WINDOW_LEN / 2..WINDOW_LEN - 1 {
        model.logits(&hidden, position..position + 1, &mut logits);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        total += sum.ln() - f64::from(logits[window[position + 1] as usize] - largest);
    }
    Ok(total)
}
