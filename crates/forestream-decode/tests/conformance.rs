//! The exactness contract: whatever the strategy, budget and company in a pass, the ids are those of plain decoding.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use forestream_decode::strategies::{self, Resources};
use forestream_decode::testing::FakeModel;
use forestream_decode::{
    Budget, CostCurve, Drafter, FinishReason, Generation, Round, STRATEGIES, SamplingSettings, Sequence,
    SequenceOptions, Stats,
};
use forestream_model::{Model, TokenId};

const CAPACITY: usize = 256;
const MAX_TOKENS: usize = 72;

fn model() -> FakeModel {
    FakeModel::new(48, 18.0)
}

/// Prompts that share words, of lengths around the prefill chunk.
fn prompt(index: usize) -> Vec<TokenId> {
    (0..=index * 13 % 40).map(|i| ((i * 7 + index * 3) % 11 + i % 2 * 20) as TokenId).collect()
}

/// Greedy, nucleus sampling, and penalties with min-p.
fn samplings() -> Vec<SamplingSettings> {
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

fn budgets() -> Vec<Budget> {
    let curve = CostCurve::new(&[(1, 1.0), (4, 1.05), (8, 1.3), (16, 2.2), (32, 4.0)]).unwrap();
    vec![Budget::Fixed(1), Budget::Fixed(4), Budget::Fixed(16), Budget::Auto(curve)]
}

fn sequence(model: &FakeModel, prompt: &[TokenId], drafter: Box<dyn Drafter>, sampling: &SamplingSettings) -> Sequence {
    let options = SequenceOptions { sampling: sampling.clone(), max_tokens: MAX_TOKENS, ..SequenceOptions::default() };
    Sequence::new(model.config(), prompt, model.new_cache(CAPACITY), drafter, options).unwrap()
}

fn drafter(strategy: &str) -> Box<dyn Drafter> {
    strategies::build(strategy, &Resources::default()).unwrap()
}

fn plain(model: &FakeModel, prompt: &[TokenId], sampling: &SamplingSettings) -> Vec<TokenId> {
    let sequence = sequence(model, prompt, drafter("none"), sampling);
    let generation = Generation::new(model, sequence, Budget::Fixed(1));
    generation.map(|token| token.unwrap().id).collect()
}

/// The counts describe the tokens that came out.
fn assert_counts(stats: &Stats, num_emitted: usize) {
    assert_eq!(stats.completion_tokens, num_emitted);
    assert_eq!(stats.prefill_emitted + stats.rounds + stats.accepted, num_emitted);
    assert_eq!(stats.acceptance_histogram.iter().sum::<usize>(), stats.rounds);
    let accepted: usize = stats.acceptance_histogram.iter().enumerate().map(|(j, rounds)| j * rounds).sum();
    assert_eq!(accepted, stats.accepted);
    assert_eq!(stats.accepted_per_position().iter().sum::<usize>(), stats.accepted);
    assert!(stats.accepted <= stats.drafted);
}

#[test]
fn every_strategy_gives_the_ids_of_plain_decoding() {
    let model = model();
    for sampling in samplings() {
        for seed in 0..6 {
            let sampling = SamplingSettings { seed, ..sampling.clone() };
            let prompt = prompt(seed as usize + 1);
            let expected = plain(&model, &prompt, &sampling);
            assert_eq!(expected.len(), MAX_TOKENS);
            for names in STRATEGIES.iter().map(|strategy| strategy.name).chain(["ngram,none,ngram"]) {
                for budget in budgets() {
                    let max_nodes = budget.max_nodes();
                    let sequence = sequence(&model, &prompt, drafter(names), &sampling);
                    let mut generation = Generation::new(&model, sequence, budget).prefill_chunk(7);
                    let got: Vec<TokenId> = generation.by_ref().map(|token| token.unwrap().id).collect();
                    assert_eq!(got, expected, "{names}, {max_nodes} nodes, {sampling:?}");
                    assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
                    assert_counts(generation.stats(), got.len());
                }
            }
        }
    }
}

#[test]
fn drafting_saves_passes() {
    let model = model();
    for sampling in samplings() {
        let run = |names| {
            let sequence = sequence(&model, &prompt(3), drafter(names), &sampling);
            let mut generation = Generation::new(&model, sequence, Budget::Fixed(16));
            assert_eq!(generation.by_ref().count(), MAX_TOKENS);
            generation.stats().clone()
        };
        let (plain, ngram) = (run("none"), run("ngram"));
        assert_eq!((plain.accepted, plain.drafted), (0, 0));
        assert!(ngram.accepted > 5 && ngram.rounds < plain.rounds, "{ngram:?}");
    }
}

#[test]
fn sequences_of_one_pass_do_not_touch_each_other() {
    let model = model();
    for budget in budgets() {
        let cases: Vec<_> = samplings().into_iter().enumerate().collect();
        let mut sequences: Vec<Sequence> = cases
            .iter()
            .map(|(index, sampling)| {
                sequence(&model, &prompt(index + 2), drafter(if index % 2 == 0 { "ngram" } else { "none" }), sampling)
            })
            .collect();
        let mut round = Round::new(budget);
        round.set_prefill_chunk(5);
        while sequences.iter().any(|sequence| sequence.finish_reason().is_none()) {
            let mut pass: Vec<&mut Sequence> = sequences.iter_mut().collect();
            round.run(&model, &mut pass).unwrap();
        }
        for ((index, sampling), sequence) in cases.iter().zip(&sequences) {
            assert_eq!(sequence.completion(), plain(&model, &prompt(index + 2), sampling), "sequence {index}");
            assert_counts(sequence.stats(), MAX_TOKENS);
        }
    }
}
