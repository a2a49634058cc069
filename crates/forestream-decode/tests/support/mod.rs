//! What the integration tests share: the fake model, prompts, settings, and plain decoding to compare with.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use forestream_decode::strategies::{self, Resources, StreamingOptions};
use forestream_decode::testing::FakeModel;
use forestream_decode::{
    Budget, CostCurve, DecodeError, Draft, DraftRequest, Drafter, Generation, LiveCurve, SamplingSettings, Sequence,
    SequenceOptions, Stats,
};
use forestream_model::{Model, TokenId};

pub(crate) const CAPACITY: usize = 256;
pub(crate) const MAX_TOKENS: usize = 72;

pub(crate) fn model() -> FakeModel {
    FakeModel::new(48, 18.0)
}

/// Prompts that share words, of lengths around a small prefill chunk.
pub(crate) fn prompt(index: usize) -> Vec<TokenId> {
    (0..=index * 13 % 40).map(|i| ((i * 7 + index * 3) % 11 + i % 2 * 20) as TokenId).collect()
}

/// Greedy, nucleus sampling, penalties with min-p, and the remaining filters.
pub(crate) fn samplings() -> Vec<SamplingSettings> {
    let greedy = SamplingSettings::default();
    let nucleus = SamplingSettings { temperature: 0.8, top_p: 0.95, ..greedy.clone() };
    let penalized = SamplingSettings {
        temperature: 1.0,
        min_p: 0.02,
        repeat_penalty: 1.1,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        penalty_last_n: Some(20),
        logit_bias: vec![(5, -1.0), (7, 1.5)],
        ..greedy.clone()
    };
    let filtered = SamplingSettings { temperature: 1.0, top_k: Some(12), typical_p: 0.9, ..greedy.clone() };
    vec![greedy, nucleus, penalized, filtered]
}

pub(crate) fn budgets() -> Vec<Budget> {
    let curve = CostCurve::new(&[(1, 1.0), (4, 1.05), (8, 1.3), (16, 2.2), (32, 4.0)]).unwrap();
    let restless = LiveCurve::new(curve.clone(), restless_clock());
    vec![Budget::Fixed(1), Budget::Fixed(4), Budget::Fixed(16), Budget::Auto(curve), Budget::Live(Arc::new(restless))]
}

/// A clock by which passes take any time from a tenth of a second to ten, whatever they do.
fn restless_clock() -> impl Fn() -> f64 + Send + Sync {
    let (calls, now) = (AtomicU64::new(0), Mutex::new(0.0));
    move || {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let mut now = now.lock().unwrap();
        *now += 0.1 * 10.0_f64.powf((call * 7919 % 1000) as f64 / 500.0);
        *now
    }
}

pub(crate) fn drafter(names: &str) -> Box<dyn Drafter> {
    let model = FakeModel::new(8, 1.0);
    strategies::build(names, &Resources::of(&model, StreamingOptions::default())).unwrap()
}

pub(crate) fn options(sampling: &SamplingSettings) -> SequenceOptions {
    SequenceOptions { sampling: sampling.clone(), max_tokens: MAX_TOKENS, ..SequenceOptions::default() }
}

pub(crate) fn sequence(
    model: &FakeModel,
    prompt: &[TokenId],
    drafter: Box<dyn Drafter>,
    options: SequenceOptions,
) -> Sequence {
    Sequence::new(model.config(), prompt, model.new_cache(CAPACITY), drafter, options).unwrap()
}

pub(crate) fn ids(generation: &mut Generation<'_>) -> Vec<TokenId> {
    generation.map(|token| token.unwrap().id).collect()
}

/// The ids of plain decoding.
pub(crate) fn plain(model: &FakeModel, prompt: &[TokenId], sampling: &SamplingSettings) -> Vec<TokenId> {
    let sequence = sequence(model, prompt, drafter("none"), options(sampling));
    ids(&mut Generation::new(model, sequence, Budget::Fixed(1)))
}

/// The counts describe the tokens that came out.
pub(crate) fn assert_counts(stats: &Stats, num_emitted: usize) {
    assert_eq!(stats.completion_tokens, num_emitted);
    assert_eq!(stats.prefill_emitted + stats.rounds + stats.accepted, num_emitted);
    assert_eq!(stats.acceptance_histogram.iter().sum::<usize>(), stats.rounds);
    let accepted: usize = stats.acceptance_histogram.iter().enumerate().map(|(j, rounds)| j * rounds).sum();
    assert_eq!(accepted, stats.accepted);
    assert_eq!(stats.accepted_per_position().iter().sum::<usize>(), stats.accepted);
    assert!(stats.accepted <= stats.drafted);
}

/// Drafts what plain decoding will say, as one chain: every draft token within the limits is accepted.
pub(crate) struct Oracle {
    /// Prompt and answer.
    pub(crate) text: Vec<TokenId>,
}

impl Drafter for Oracle {
    fn draft(&mut self, request: &mut DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError> {
        for &token in self.text[request.context.len()..].iter().take(request.limits.max_nodes - 1) {
            draft.push(draft.tree().last(), token, 0.9);
        }
        Ok(())
    }
}

/// A drafter that knows the answer to `prompt`.
pub(crate) fn oracle(prompt: &[TokenId], answer: &[TokenId]) -> Box<dyn Drafter> {
    Box::new(Oracle { text: [prompt, answer].concat() })
}
