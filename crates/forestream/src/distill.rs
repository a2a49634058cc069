//! Self-distillation: a model's own answers to prompts, the text on which its speculative streams are trained.
//!
//! Streams learn to foresee what the model itself would say, so that the model writes their training data. Several
//! answers share each pass: when one ends, the next prompt takes its place. An answer depends on its prompt, the
//! settings and its index alone, never on what runs beside it. Must not know where prompts come from.

mod error;
mod file;
mod own_prompts;

use std::collections::BTreeMap;
use std::iter::Zip;
use std::ops::RangeFrom;
use std::slice;

use forestream_decode::strategies::Plain;
use forestream_decode::{Budget, Round, SamplingSettings, Sequence, SequenceOptions};
use forestream_model::{KvCache, TokenId};
use serde::{Deserialize, Serialize};

use crate::{Engine, Error, FinishReason};

pub use error::DistillError;
pub use file::{AnswerFile, Header, Prompts};
pub use own_prompts::OwnPrompts;

/// Between the seeds of neighboring answers: an odd number, so that no two of them are equal.
const SEED_STEP: u64 = 0xd134_2543_de82_ef95;

/// A prompt to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistillPrompt {
    /// What the user asks.
    pub text: String,
    /// What the model reads.
    pub tokens: Vec<TokenId>,
    /// Where the model wrote it: the number of the draw.
    pub draw: Option<usize>,
}

/// How answers are made.
#[derive(Clone, Debug)]
pub struct DistillOptions {
    /// How tokens are drawn; the seed is that of the first answer.
    pub sampling: SamplingSettings,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Answers in one pass.
    pub batch_size: usize,
}

/// A prompt with the model's answer, as a line of the file holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DistilledAnswer {
    /// The prompt's number, from 0.
    pub index: usize,
    /// What the user asked.
    pub prompt: String,
    /// Where the model wrote the prompt: the number of the draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draw: Option<usize>,
    /// The answer's text, without stop token.
    pub completion: String,
    /// What the model read.
    pub prompt_token_ids: Vec<TokenId>,
    /// What the model wrote, a stop token included.
    pub completion_token_ids: Vec<TokenId>,
    /// `stop`, or `length` where the answer was cut.
    pub finish_reason: FinishReason,
}

/// The seed of answer `index`; that of answer 0 is `seed` itself.
pub fn seed_of(seed: u64, index: usize) -> u64 {
    seed.wrapping_add((index as u64).wrapping_mul(SEED_STEP))
}

/// Answers in the making: runs passes, and hands answers out in the order of their prompts.
pub struct Distillation<'e, 'p> {
    engine: &'e Engine,
    options: DistillOptions,
    stop_tokens: Vec<TokenId>,
    round: Round,
    waiting: Zip<RangeFrom<usize>, slice::Iter<'p, DistillPrompt>>,
    running: Vec<Running<'p>>,
    /// Caches of answers that have ended; most prompts begin alike, and what they share is not computed again.
    caches: Vec<KvCache>,
    ended: BTreeMap<usize, DistilledAnswer>,
    next_index: usize,
    num_tokens: usize,
}

/// An answer in the making.
struct Running<'p> {
    index: usize,
    prompt: &'p DistillPrompt,
    sequence: Sequence,
}

impl<'e, 'p> Distillation<'e, 'p> {
    /// Answers to `prompts`, which are numbered from `first` on.
    pub fn new(engine: &'e Engine, prompts: &'p [DistillPrompt], first: usize, options: DistillOptions) -> Self {
        Self {
            engine,
            stop_tokens: engine.stop_tokens(),
            round: Round::new(Budget::Fixed(1)),
            waiting: (first..).zip(prompts),
            running: Vec::with_capacity(options.batch_size),
            caches: Vec::new(),
            ended: BTreeMap::new(),
            next_index: first,
            num_tokens: 0,
            options,
        }
    }

    /// Tokens written so far, those of answers in the making included.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Runs one pass; `false` when every answer has ended.
    ///
    /// # Errors
    /// A prompt that cannot be used, or a pass that fails; nothing can go on after it.
    pub fn step(&mut self) -> Result<bool, Error> {
        self.start_waiting()?;
        if self.running.is_empty() {
            return Ok(false);
        }
        let written =
            |running: &[Running<'_>]| running.iter().map(|one| one.sequence.completion().len()).sum::<usize>();
        let before = written(&self.running);
        let mut sequences: Vec<&mut Sequence> = self.running.iter_mut().map(|one| &mut one.sequence).collect();
        self.round.run(self.engine.model(), &mut sequences)?;
        self.num_tokens += written(&self.running) - before;
        self.collect_ended()?;
        Ok(true)
    }

    /// The next answer in the order of the prompts, where it has ended.
    pub fn next_answer(&mut self) -> Option<DistilledAnswer> {
        let answer = self.ended.remove(&self.next_index)?;
        self.next_index += 1;
        Some(answer)
    }

    /// Fills the batch.
    fn start_waiting(&mut self) -> Result<(), Error> {
        while self.running.len() < self.options.batch_size {
            let Some((index, prompt)) = self.waiting.next() else { break };
            let sampling =
                SamplingSettings { seed: seed_of(self.options.sampling.seed, index), ..self.options.sampling.clone() };
            let sequence_options = SequenceOptions {
                sampling,
                max_tokens: self.options.max_tokens,
                stop_tokens: self.stop_tokens.clone(),
                ..SequenceOptions::default()
            };
            let cache = self.caches.pop().unwrap_or_else(|| self.engine.new_cache());
            let sequence =
                Sequence::new(self.engine.config(), &prompt.tokens, cache, Box::new(Plain), sequence_options)
                    .map_err(|error| Error::Prompt { number: index + 1, source: Box::new(error.into()) })?;
            self.running.push(Running { index, prompt, sequence });
        }
        Ok(())
    }

    fn collect_ended(&mut self) -> Result<(), Error> {
        let is_ended = |one: &mut Running<'_>| one.sequence.finish_reason().is_some();
        let ended: Vec<Running<'p>> = self.running.extract_if(.., is_ended).collect();
        for one in ended {
            self.ended.insert(one.index, self.answer(&one)?);
            self.caches.push(one.sequence.into_cache());
        }
        Ok(())
    }

    fn answer(&self, one: &Running<'_>) -> Result<DistilledAnswer, Error> {
        let tokens = one.sequence.completion();
        let finish_reason = one.sequence.finish_reason().map_or(FinishReason::Length, FinishReason::from);
        let num_said = tokens.len() - usize::from(finish_reason == FinishReason::Stop);
        let mut detokenizer = self.engine.tokenizer().detokenizer_after(&one.prompt.tokens);
        let mut completion = String::new();
        for &token in &tokens[..num_said] {
            detokenizer.push_to(token, &mut completion)?;
        }
        completion.push_str(&detokenizer.finish());
        Ok(DistilledAnswer {
            index: one.index,
            prompt: one.prompt.text.clone(),
            draw: one.prompt.draw,
            completion,
            prompt_token_ids: one.prompt.tokens.clone(),
            completion_token_ids: tokens.to_vec(),
            finish_reason,
        })
    }
}
