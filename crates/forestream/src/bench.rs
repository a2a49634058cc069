//! Speed of prompt reading, decoding and verification, each as the product does it.
//!
//! `pp512` reads a prompt of 512 tokens from an empty cache; `tg128` decodes 128 tokens one by one; `verify8` is one pass
//! over a tree of 8 nodes with logits of all of them. Tests take turns in every repetition, so that a disturbance
//! hits all alike. Medians are reported, because they do not care about the odd slow repetition.

use std::time::Instant;

use forestream_decode::strategies::Plain;
use forestream_decode::{Budget, Generation, Sequence, SequenceOptions};
use serde::Serialize;

use crate::statistics::{mean, median, standard_deviation};
use crate::tree_passes::{TreePasses, some_tokens};
use crate::{Engine, Error};

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// Prompt lengths.
    pub prompt_lens: Vec<usize>,
    /// Numbers of tokens to decode.
    pub gen_lens: Vec<usize>,
    /// Numbers of tree nodes.
    pub verify_lens: Vec<usize>,
    /// Tokens in the cache before decoding and verification.
    pub depth: usize,
    /// Times that each test is measured.
    pub repetitions: usize,
    /// Times that each test runs before that.
    pub warmups: usize,
}

/// The result of one test.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// `pp512`, `tg128`, `verify8` or the like.
    pub test: String,
    /// Tokens, or nodes, per second: the median.
    pub tokens_per_second: f64,
    /// Milliseconds of a pass, the median: of the whole prompt, of one decoded token, of one tree.
    pub ms_per_pass: f64,
    /// Standard deviation of the tokens per second.
    pub stddev: f64,
    /// Mean of the tokens per second.
    pub mean_tokens_per_second: f64,
    /// The fastest repetition's milliseconds of a pass.
    pub min_ms_per_pass: f64,
    /// Tokens in the cache before.
    pub depth: usize,
    /// Times measured.
    pub repetitions: usize,
    /// Threads in use.
    pub threads: usize,
    /// The instruction set of the kernels.
    pub isa: &'static str,
    /// The model's name.
    pub model: String,
}

/// A test.
#[derive(Clone, Copy, Debug)]
enum Test {
    Prompt(usize),
    Decode(usize),
    Verify(usize),
}

/// Runs all tests; `progress` is told the test that runs next.
///
/// # Errors
/// A test that the context has no room for, or a pass that fails.
pub fn bench(
    engine: &Engine,
    options: &BenchOptions,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Measurement>, Error> {
    let tests = tests(options);
    for test in &tests {
        let (needed, ctx_size) = (test.num_positions(options.depth), engine.ctx_size());
        if needed > ctx_size {
            let trained = engine.config().max_position_embeddings;
            return Err(Error::TestTooLong { test: test.name(), needed, ctx_size, trained });
        }
    }
    let largest = options.verify_lens.iter().copied().max().unwrap_or(0);
    let depth = if largest > 0 { options.depth } else { 0 }; // other tests fill caches of their own
    let mut passes = TreePasses::new(engine.model(), depth, largest)?;
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); tests.len()];
    for repetition in 0..options.warmups + options.repetitions {
        for (test, seconds) in tests.iter().zip(&mut seconds) {
            progress(&test.name());
            let measured = test.run(engine, options.depth, &mut passes)?;
            if repetition >= options.warmups {
                seconds.push(measured);
            }
        }
    }
    Ok(tests.iter().zip(&seconds).map(|(test, seconds)| test.measurement(engine, options, seconds)).collect())
}

/// The tests in their order; a length of 0 leaves one out.
fn tests(options: &BenchOptions) -> Vec<Test> {
    let prompts = options.prompt_lens.iter().copied().map(Test::Prompt);
    let decodes = options.gen_lens.iter().copied().map(Test::Decode);
    let trees = options.verify_lens.iter().copied().map(Test::Verify);
    prompts.chain(decodes).chain(trees).filter(|test| test.num_tokens() > 0).collect()
}

impl Test {
    fn num_tokens(self) -> usize {
        match self {
            Self::Prompt(len) | Self::Decode(len) | Self::Verify(len) => len,
        }
    }

    /// Positions of the context that a repetition fills.
    fn num_positions(self, depth: usize) -> usize {
        match self {
            Self::Prompt(len) => len,
            Self::Decode(len) | Self::Verify(len) => depth.saturating_add(len),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Prompt(len) => format!("pp{len}"),
            Self::Decode(len) => format!("tg{len}"),
            Self::Verify(len) => format!("verify{len}"),
        }
    }

    /// Seconds of one repetition.
    fn run(self, engine: &Engine, depth: usize, passes: &mut TreePasses<'_>) -> Result<f64, Error> {
        match self {
            Self::Prompt(len) => {
                let mut generation = plain(engine, len, 1)?;
                generation.next().transpose()?;
                let timings = generation.timings();
                Ok((timings.prefill + timings.decode).as_secs_f64()) // a prompt of one token is read by a round
            }
            Self::Decode(len) => {
                let prompt_len = depth.max(1);
                let by_prompt = usize::from(prompt_len > 1); // its last pass gives the first token, where it is no round
                let mut generation = plain(engine, prompt_len, len + by_prompt)?;
                for token in generation.by_ref() {
                    token?;
                }
                Ok(generation.timings().decode.as_secs_f64())
            }
            Self::Verify(nodes) => {
                let start = Instant::now();
                passes.run(nodes)?;
                Ok(start.elapsed().as_secs_f64())
            }
        }
    }

    fn measurement(self, engine: &Engine, options: &BenchOptions, seconds: &[f64]) -> Measurement {
        let num_passes = if let Self::Decode(len) = self { len } else { 1 };
        let ms = |seconds: f64| seconds * 1e3 / num_passes as f64;
        let rates: Vec<f64> = seconds.iter().map(|seconds| self.num_tokens() as f64 / seconds).collect();
        Measurement {
            test: self.name(),
            tokens_per_second: median(&rates),
            ms_per_pass: ms(median(seconds)),
            stddev: standard_deviation(&rates),
            mean_tokens_per_second: mean(&rates),
            min_ms_per_pass: ms(seconds.iter().copied().fold(f64::INFINITY, f64::min)),
            depth: if matches!(self, Self::Prompt(_)) { 0 } else { options.depth },
            repetitions: options.repetitions,
            threads: engine.threads(),
            isa: engine.isa(),
            model: engine.name().to_owned(),
        }
    }
}

/// Greedy plain decoding after a made-up prompt.
fn plain(engine: &Engine, prompt_len: usize, max_tokens: usize) -> Result<Generation<'_>, Error> {
    let prompt = some_tokens(prompt_len, engine.config().vocab_size);
    let options = SequenceOptions { max_tokens, ..SequenceOptions::default() };
    let cache = engine.model().new_cache(prompt_len + max_tokens + 1);
    let sequence = Sequence::new(engine.config(), &prompt, cache, Box::new(Plain), options)?;
    Ok(Generation::new(engine.model(), sequence, Budget::Fixed(1)))
}
