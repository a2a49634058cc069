//! Generation as an iterator of tokens: one sequence, one round whenever the buffer of emitted tokens is empty.
//!
//! ```text
//! for token in Generation::new(&model, sequence, budget).stop_on(&[end_of_text]).max_tokens(100) { .. }
//! ```

use forestream_model::{KvCache, Model, TokenId};

use crate::{Budget, DecodeError, FinishReason, Round, Sequence, Stats, stats::Timings};

/// An emitted token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// Its place in prompt and answer.
    pub position: usize,
    /// Whether it ends the text as a stop token.
    pub is_stop: bool,
}

/// An answer in the making: an iterator of tokens. An error comes after all tokens that were emitted before it, so that the
/// text in front of it does not depend on what was drafted.
pub struct Generation<'m> {
    target: &'m dyn Model,
    round: Round,
    sequence: Sequence,
    /// Tokens of the answer that were handed out.
    num_yielded: usize,
    has_failed: bool,
    /// Of the round that failed, while tokens from before it are left to hand out.
    pending_error: Option<DecodeError>,
    timings: Timings,
}

impl<'m> Generation<'m> {
    /// Continues `sequence` with `target` under `budget`.
    pub fn new(target: &'m dyn Model, sequence: Sequence, budget: Budget) -> Self {
        let num_yielded = sequence.completion().len();
        let timings = Timings::default();
        let round = Round::new(budget);
        Self { target, round, sequence, num_yielded, has_failed: false, pending_error: None, timings }
    }

    /// Adds tokens that end the text; the one that does is the last item.
    pub fn stop_on(mut self, tokens: &[TokenId]) -> Self {
        self.sequence.stop_on(tokens);
        self
    }

    /// Sets the most tokens to emit.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.sequence.set_max_tokens(max_tokens);
        self
    }

    /// Sets how many prompt tokens go through a pass; never changes a token.
    ///
    /// # Panics
    /// If `prefill_chunk` is zero.
    pub fn prefill_chunk(mut self, prefill_chunk: usize) -> Self {
        self.round.set_prefill_chunk(prefill_chunk);
        self
    }

    /// The sequence: tokens, statistics, finish reason. It may be ahead of the tokens that were handed out.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Counts so far.
    pub fn stats(&self) -> &Stats {
        self.sequence.stats()
    }

    /// Wall time so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Why the text ended; `None` while it goes on or when the caller stopped asking.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.sequence.finish_reason()
    }

    /// The cache, for a later prompt with the same beginning.
    pub fn into_cache(self) -> KvCache {
        self.sequence.into_cache()
    }

    /// Runs one pass over the prompt, if any of it is left; whether more is left then.
    ///
    /// Nobody has to call this: the first token waits for the whole prompt. It lets a caller stop in between.
    ///
    /// # Errors
    /// If the pass fails; there are no tokens then.
    pub fn read_prompt(&mut self) -> Result<bool, DecodeError> {
        let is_left = |sequence: &Sequence| sequence.completion().is_empty() && sequence.finish_reason().is_none();
        if self.has_failed || !is_left(&self.sequence) {
            return Ok(false);
        }
        self.run_round()?;
        Ok(is_left(&self.sequence))
    }

    /// Runs passes until there is a token to hand out; `false` at the end of the text and of what precedes an error.
    fn fill(&mut self) -> bool {
        while self.num_yielded == self.sequence.completion().len() {
            if self.sequence.finish_reason().is_some() || self.has_failed {
                return false;
            }
            self.pending_error = self.run_round().err();
        }
        true
    }

    fn run_round(&mut self) -> Result<(), DecodeError> {
        let (is_first, rounds) = (self.sequence.completion().is_empty(), self.stats().rounds);
        let (result, elapsed) = Timings::measure(|| self.round.run(self.target, &mut [&mut self.sequence]));
        // A prompt with one token left is read by a round, which is counted as one.
        let is_prompt = is_first && self.stats().rounds == rounds;
        let phase = if is_prompt { &mut self.timings.prefill } else { &mut self.timings.decode };
        *phase += elapsed;
        self.has_failed = result.is_err();
        result
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Token, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.fill() {
            return self.pending_error.take().map(Err);
        }
        let completion = self.sequence.completion();
        let id = completion[self.num_yielded];
        self.num_yielded += 1;
        let is_last = self.num_yielded == completion.len();
        let is_stop = is_last && self.finish_reason() == Some(FinishReason::Stop);
        let position = self.sequence.stats().prompt_tokens + self.num_yielded - 1;
        Some(Ok(Token { id, position, is_stop }))
    }
}
