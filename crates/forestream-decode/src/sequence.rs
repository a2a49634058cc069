//! One text in the making: its tokens, cache, drafter and sampler, and when it ends.
//!
//! Invariant between rounds: the cache has committed a prefix of `tokens`, and at least the last token is not in it.
//! While more than one token is missing, the prompt is being read, chunk by chunk; after that every pass is a round.

use forestream_model::streams::Anchor;
use forestream_model::{DecoderConfig, Hidden, KvCache, Model, NodeId, Outputs, Row, TokenId};

use crate::acceptance::{Acceptance, SampleAndMatch, Stop, Walk};
use crate::draft::{DraftRequest, UnverifiedPass, VerifiedRound};
use crate::{CostCurve, DecodeError, Draft, Drafter, Limits, PassReport, Random, Sampler, SamplingSettings, Stats};

/// Tokens that room is made for at once; longer texts take what they need. Models that claim a million positions exist.
pub(crate) const LONGEST_RESERVED: usize = 1 << 17;

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was emitted; it is the last token.
    Stop,
    /// `max_tokens` were emitted, or the context is full.
    Length,
}

/// What is asked of one sequence.
pub struct SequenceOptions {
    /// How tokens are chosen.
    pub sampling: SamplingSettings,
    /// The most tokens to emit.
    pub max_tokens: usize,
    /// Before so many tokens no stop token is drawn.
    pub min_tokens: usize,
    /// Tokens that end the text; the one that does is emitted.
    pub stop_tokens: Vec<TokenId>,
    /// The greatest depth of a draft.
    pub max_draft_depth: usize,
    /// Which drafts are kept.
    pub acceptance: Box<dyn Acceptance>,
}

impl Default for SequenceOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingSettings::default(),
            max_tokens: usize::MAX,
            min_tokens: 0,
            stop_tokens: Vec::new(),
            max_draft_depth: usize::MAX,
            acceptance: Box::new(SampleAndMatch),
        }
    }
}

/// One text in the making.
pub struct Sequence {
    tokens: Vec<TokenId>,
    prompt_len: usize,
    vocab_size: usize,
    cache: KvCache,
    sampler: Sampler,
    drafter: Box<dyn Drafter>,
    options: SequenceOptions,
    finish_reason: Option<FinishReason>,
    stats: Stats,
    /// What the drafter proposed.
    proposal: Draft,
    /// What goes through the target: the proposal cut to the budget, or a part of the prompt.
    draft: Draft,
    /// How large the draft of this round may be.
    limits: Limits,
    phase: Phase,
    path: Vec<NodeId>,
    order: Vec<NodeId>,
    /// Tokens that the last pass emitted.
    num_emitted: usize,
}

/// What the next pass does for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Reads a part of the prompt.
    Prompt,
    /// Reads the end of the prompt and emits a token.
    PromptEnd,
    /// Verifies a draft.
    Round,
}

impl Sequence {
    /// A sequence that continues `prompt`. Rows of `cache` are reused as far as its tokens agree with the prompt.
    ///
    /// # Errors
    /// An empty prompt, one that leaves no room in the cache, an unknown token, or a setting out of range.
    pub fn new(
        config: &DecoderConfig,
        prompt: &[TokenId],
        mut cache: KvCache,
        drafter: Box<dyn Drafter>,
        options: SequenceOptions,
    ) -> Result<Self, DecodeError> {
        let (prompt_tokens, capacity, vocab_size) = (prompt.len(), cache.capacity(), config.vocab_size);
        Self::check(config, prompt, capacity, &options)?;
        // The last prompt token runs in any case: its hidden state decides the first answer token.
        let shared = cache.tokens().iter().zip(&prompt[..prompt_tokens - 1]).take_while(|(a, b)| a == b).count();
        cache.truncate(shared);
        let mut tokens = Vec::with_capacity(capacity.min(LONGEST_RESERVED).max(prompt_tokens) + 1);
        tokens.extend_from_slice(prompt);
        let sampler = Sampler::new(options.sampling.clone())?;
        let stats = Stats { prompt_tokens, reused_tokens: shared, ..Stats::default() };
        let finish_reason = (options.max_tokens == 0).then_some(FinishReason::Length);
        Ok(Self {
            tokens,
            prompt_len: prompt_tokens,
            vocab_size,
            cache,
            sampler,
            drafter,
            options,
            finish_reason,
            stats,
            proposal: Draft::default(),
            draft: Draft::default(),
            limits: Limits { max_nodes: 1, max_depth: 0, vocab_size, min_score: 0.0 },
            phase: Phase::Prompt,
            path: Vec::new(),
            order: Vec::new(),
            num_emitted: 0,
        })
    }

    /// Whether [`Sequence::new`] takes a prompt with a cache of this capacity. It drops a cache that it cannot use, so who
    /// wants to keep one asks first.
    ///
    /// # Errors
    /// As [`Sequence::new`].
    pub fn check(
        config: &DecoderConfig,
        prompt: &[TokenId],
        capacity: usize,
        options: &SequenceOptions,
    ) -> Result<(), DecodeError> {
        let (prompt_tokens, vocab_size) = (prompt.len(), config.vocab_size);
        if prompt.is_empty() {
            return Err(DecodeError::EmptyPrompt);
        }
        if prompt_tokens >= capacity {
            return Err(DecodeError::PromptTooLong { prompt_tokens, capacity });
        }
        let biased = options.sampling.logit_bias.iter().map(|&(token, _)| ("logit_bias", token));
        let mut named = prompt.iter().map(|&token| ("the prompt", token)).chain(biased);
        if let Some((place, token)) = named.find(|&(_, token)| token as usize >= vocab_size) {
            return Err(DecodeError::TokenOutOfRange { place, token, vocab_size });
        }
        if options.min_tokens > options.max_tokens {
            let (field, value) = ("min_tokens", options.min_tokens as f64);
            return Err(DecodeError::Setting { field, value, expected: "at most max_tokens" });
        }
        options.sampling.validate()
    }

    /// Prompt and answer so far.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The answer so far.
    pub fn completion(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }

    /// Why the sequence ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    /// Counts so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The options in use.
    pub fn options(&self) -> &SequenceOptions {
        &self.options
    }

    /// The tree of the last pass: a draft cut to the budget, or a part of the prompt.
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// The cache as it is between rounds.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The cache; its committed rows can serve a later prompt with the same beginning.
    pub fn into_cache(self) -> KvCache {
        self.cache
    }

    /// Adds tokens that end the text.
    pub fn stop_on(&mut self, tokens: &[TokenId]) {
        self.options.stop_tokens.extend_from_slice(tokens);
    }

    /// Sets the most tokens to emit; a limit that is reached already ends the text.
    pub fn set_max_tokens(&mut self, max_tokens: usize) {
        self.options.max_tokens = max_tokens;
        if self.completion().len() >= max_tokens {
            self.finish_reason.get_or_insert(FinishReason::Length);
        }
    }

    /// The most tokens that the text may have, prompt included.
    fn max_len(&self) -> usize {
        self.prompt_len.saturating_add(self.options.max_tokens).min(self.cache.capacity())
    }

    /// Begins to prepare the next pass: a part of the prompt, or a draft that may wait for its streams.
    pub(crate) fn plan(
        &mut self,
        target: &dyn Model,
        (max_nodes, cost): (usize, Option<&CostCurve>),
        prefill_chunk: usize,
    ) -> Result<(), DecodeError> {
        let pending = &self.tokens[self.cache.len()..];
        if pending.len() > 1 {
            let chunk = &pending[..pending.len().min(prefill_chunk)];
            self.phase = if chunk.len() == pending.len() { Phase::PromptEnd } else { Phase::Prompt };
            self.draft.set_chain(chunk);
            return Ok(());
        }
        self.phase = Phase::Round;
        // The token after the deepest node is emitted too, so a draft is one token shorter than the rest of the text.
        let rest = self.max_len() - self.tokens.len() - 1;
        let max_nodes = max_nodes.min(self.cache.capacity() - self.cache.len());
        self.limits = Limits {
            max_nodes,
            max_depth: self.options.max_draft_depth.min(rest).min(max_nodes.saturating_sub(1)),
            vocab_size: self.vocab_size,
            min_score: cost.map_or(0.0, CostCurve::min_score),
        };
        self.proposal.reset(pending[0]);
        self.reserve(max_nodes);
        if max_nodes > 1 && self.limits.max_depth > 0 {
            self.ask(target, cost, |drafter, request, proposal| drafter.draft(request, proposal))?;
        }
        Ok(())
    }

    /// Whether the draft waits for streams.
    pub(crate) fn is_waiting(&self) -> bool {
        self.drafter.awaited_streams().is_some()
    }

    /// The streams that the draft waits for.
    pub(crate) fn awaited_streams(&mut self) -> Option<(Row<'_>, Anchor<'_>)> {
        let awaited = self.drafter.awaited_streams()?;
        Some((Row { tree: awaited.chain, cache: &mut self.cache, outputs: Outputs::All }, awaited.anchor))
    }

    /// Goes on with the draft from the logits of the awaited streams; `seconds` is this sequence's part of what they cost.
    pub(crate) fn draft_from_streams(
        &mut self,
        target: &dyn Model,
        cost: Option<&CostCurve>,
        logits: &[f32],
        seconds: f64,
    ) -> Result<(), DecodeError> {
        self.proposal.add_seconds(seconds);
        self.ask(target, cost, |drafter, request, proposal| drafter.draft_from_streams(request, logits, proposal))
    }

    /// Lets the drafter work on the proposal.
    fn ask(
        &mut self,
        target: &dyn Model,
        cost: Option<&CostCurve>,
        work: impl FnOnce(&mut dyn Drafter, &mut DraftRequest<'_>, &mut Draft) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let mut request = DraftRequest {
            target,
            cache: &mut self.cache,
            context: &self.tokens,
            limits: self.limits,
            random: Random::draft(self.options.sampling.seed),
            cost,
            expected: 0.0,
        };
        work(&mut *self.drafter, &mut request, &mut self.proposal)
    }

    /// Makes room for trees of `max_nodes`, so that a tree larger than those before allocates nothing.
    fn reserve(&mut self, max_nodes: usize) {
        self.proposal.reserve(max_nodes);
        self.draft.reserve(max_nodes);
        for nodes in [&mut self.order, &mut self.path] {
            nodes.reserve(max_nodes.saturating_sub(nodes.len()));
        }
        let histogram = &mut self.stats.acceptance_histogram;
        histogram.reserve(max_nodes.saturating_sub(histogram.len()));
    }

    /// Takes over what the limits allow of the proposal. A drawn draft is never cut: that would bias its acceptance.
    pub(crate) fn finish_plan(&mut self) -> Result<(), DecodeError> {
        if self.phase != Phase::Round {
            return Ok(());
        }
        let limits = self.limits;
        let (nodes, depth) = (self.proposal.tree().len(), self.proposal.tree().max_depth());
        if !self.proposal.is_drawn() {
            self.proposal.cut_into(limits, &mut self.order, &mut self.draft);
        } else if nodes <= limits.max_nodes && depth <= limits.max_depth {
            std::mem::swap(&mut self.proposal, &mut self.draft);
        } else {
            let Limits { max_nodes, max_depth, .. } = limits;
            return Err(DecodeError::DraftTooLarge { nodes, depth, max_nodes, max_depth });
        }
        Ok(())
    }

    /// Keeps the best `num_nodes` of the planned draft.
    pub(crate) fn keep_best(&mut self, num_nodes: usize) {
        let (max_depth, vocab_size) = (usize::MAX, self.vocab_size);
        let limits = Limits { max_nodes: num_nodes, max_depth, vocab_size, min_score: 0.0 };
        std::mem::swap(&mut self.proposal, &mut self.draft);
        self.proposal.cut_into(limits, &mut self.order, &mut self.draft);
    }

    /// Whether the planned pass emits a token.
    pub(crate) fn will_emit(&self) -> bool {
        self.phase != Phase::Prompt
    }

    /// Whether the planned pass has draft tokens that may be cut by their score.
    pub(crate) fn has_choice(&self) -> bool {
        self.phase == Phase::Round && !self.draft.is_drawn()
    }

    /// Whether the planned pass verifies all nodes of a draft: reads no prompt, and ends no node early.
    pub(crate) fn is_verified_whole(&self) -> bool {
        self.phase == Phase::Round && self.draft.pruning().is_none()
    }

    /// This sequence's part of the planned pass.
    pub(crate) fn row(&mut self) -> Row<'_> {
        let outputs = match self.phase {
            Phase::Prompt => Outputs::None,
            Phase::PromptEnd => Outputs::Last,
            Phase::Round => self.draft.pruning().map_or(Outputs::All, Outputs::Pruned),
        };
        Row { tree: self.draft.tree(), cache: &mut self.cache, outputs }
    }

    /// Verifies and commits, after the pass.
    pub(crate) fn verify(
        &mut self,
        target: &dyn Model,
        hidden: &Hidden,
        logits: &mut [f32],
        sequence_index: usize,
    ) -> Result<(), DecodeError> {
        let old_len = self.tokens.len();
        let start = if self.phase == Phase::Round { NodeId::ROOT } else { self.draft.tree().last() };
        self.draft.tree().path_into(start, &mut self.path);
        if self.will_emit() {
            let (draft, cache) = (&self.draft, &mut self.cache);
            self.drafter.inspect(UnverifiedPass { target, draft, hidden, sequence_index, cache })?;
            let stop = Stop {
                tokens: &self.options.stop_tokens,
                min_len: self.prompt_len.saturating_add(self.options.min_tokens),
                max_len: self.max_len(),
            };
            self.options.acceptance.walk(&mut Walk {
                draft: &self.draft,
                logits,
                vocab_size: self.vocab_size,
                hidden,
                sequence_index,
                sampler: &mut self.sampler,
                tokens: &mut self.tokens,
                path: &mut self.path,
                stop,
            })?;
        }
        self.cache.commit(&self.path);
        self.num_emitted = self.tokens.len() - old_len;
        Ok(())
    }

    /// Tokens that the last pass emitted.
    pub(crate) fn num_emitted(&self) -> usize {
        self.num_emitted
    }

    /// Counts the verified pass, lets the drafter learn, and notices the end.
    pub(crate) fn observe(
        &mut self,
        target: &dyn Model,
        hidden: &Hidden,
        sequence_index: usize,
        report: Option<&PassReport<'_>>,
    ) -> Result<(), DecodeError> {
        let num_emitted = self.num_emitted;
        self.record(num_emitted, hidden.rows_of(sequence_index).len());
        if num_emitted == 0 {
            return Ok(());
        }
        self.drafter.observe(VerifiedRound {
            target,
            draft: &self.draft,
            hidden,
            sequence_index,
            path: &self.path,
            context: &self.tokens,
            num_emitted,
            cache: &mut self.cache,
            report,
        })
    }

    /// Counts the pass, which gave the states of `num_rows` nodes, and notices the end.
    fn record(&mut self, num_emitted: usize, num_rows: usize) {
        self.stats.completion_tokens += num_emitted;
        self.stats.read_tokens = self.cache.len().min(self.prompt_len) - self.stats.reused_tokens;
        if self.phase == Phase::Round {
            self.stats.record_round(self.draft.num_draft_tokens(), num_emitted - 1);
            self.stats.pruned += self.draft.tree().len() - num_rows;
        } else {
            self.stats.prefill_passes += 1;
            self.stats.prefill_emitted += num_emitted;
        }
        let last = self.tokens[self.tokens.len() - 1];
        if num_emitted > 0 && self.options.stop_tokens.contains(&last) {
            self.finish_reason = Some(FinishReason::Stop);
        } else if self.tokens.len() >= self.max_len() {
            self.finish_reason = Some(FinishReason::Length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategies::Plain;
    use crate::testing::FakeModel;

    #[test]
    fn a_long_context_is_not_reserved_as_a_whole() {
        let model = FakeModel::new(47, 18.0);
        for (capacity, expected) in [(1 << 12, (1 << 12) + 1), (1 << 30, LONGEST_RESERVED + 1)] {
            let cache = model.new_cache(capacity);
            let options = SequenceOptions::default();
            let sequence = Sequence::new(model.config(), &[1, 2], cache, Box::new(Plain), options).unwrap();
            assert_eq!(sequence.tokens.capacity(), expected);
        }
    }
}
