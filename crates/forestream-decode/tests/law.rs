//! Acceptance rules other than sample and match: rejection is exact in law, typical acceptance is not.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use forestream_decode::acceptance::{Acceptance, Rejection, Typical};
use forestream_decode::testing::FakeModel;
use forestream_decode::{
    Budget, DecodeError, Draft, DraftRequest, Drafter, Generation, SampleAndMatch, Sampler, SamplingSettings,
    SequenceOptions,
};
use forestream_model::{Hidden, Model, NodeId, Outputs, Row, TokenId, TokenTree};
use support::{drafter, ids, plain, samplings, sequence};

const VOCAB_SIZE: usize = 5;
const PROMPT: [TokenId; 3] = [0, 1, 2];
/// Tokens whose joint law is compared: one from the prompt's pass, the others from drafted rounds.
const NUM_TOKENS: usize = 3;
const NUM_RUNS: usize = 100_000;
/// The law of every drawn child, far from the target's.
const DRAFT_PROBS: [f64; VOCAB_SIZE] = [0.05, 0.4, 0.3, 0.15, 0.1];

/// Draws two children of the root without replacement, and two children of the first one.
struct Drawing;

impl Drawing {
    fn draw_children(request: &mut DraftRequest<'_>, parent: NodeId, draft: &mut Draft) -> NodeId {
        let mut law: Vec<(TokenId, f64)> = (0..).zip(DRAFT_PROBS).collect();
        let position = request.context.len() + draft.tree().depth(parent);
        draft.set_draft_probs(parent, law.iter().copied());
        for index in 0..2 {
            let total: f64 = law.iter().map(|(_, p)| p).sum();
            let goal = request.random.uniform(position, index) * total;
            let mut sum = 0.0;
            let passes = |&(_, p): &(TokenId, f64)| {
                sum += p;
                sum > goal
            };
            let drawn = law.iter().position(passes).unwrap_or(law.len() - 1);
            draft.push(parent, law.remove(drawn).0, 0.5);
        }
        NodeId(draft.tree().last().0 - 1)
    }
}

impl Drafter for Drawing {
    fn draft(&mut self, request: &mut DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError> {
        let first = Self::draw_children(request, NodeId::ROOT, draft);
        if request.limits.max_depth > 1 {
            Self::draw_children(request, first, draft);
        }
        Ok(())
    }
}

fn sampled() -> SamplingSettings {
    SamplingSettings { temperature: 1.0, presence_penalty: 0.2, ..SamplingSettings::default() }
}

/// The target's probabilities after `context`, by running the model over it.
fn target_law(model: &FakeModel, context: &[TokenId]) -> Vec<f64> {
    let mut cache = model.new_cache(64);
    let tree = TokenTree::chain(context);
    let (mut hidden, mut logits) = (Hidden::new(), Vec::new());
    model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::Last }], &mut hidden).unwrap();
    model.logits(&hidden, 0..1, &mut logits);
    let mut sampler = Sampler::new(sampled()).unwrap();
    let law = sampler.distribution(&mut logits, context).unwrap();
    (0..VOCAB_SIZE).map(|token| law.probability(token as TokenId)).collect()
}

/// The probability of every text of [`NUM_TOKENS`] tokens; texts are numbers in base [`VOCAB_SIZE`].
fn joint_law(model: &FakeModel) -> Vec<f64> {
    let mut laws = vec![(PROMPT.to_vec(), 1.0)];
    for _ in 0..NUM_TOKENS {
        laws = laws
            .into_iter()
            .flat_map(|(context, probability)| {
                let law = target_law(model, &context);
                law.into_iter().zip(0..).map(move |(p, token)| ([&context[..], &[token]].concat(), probability * p))
            })
            .collect();
    }
    laws.into_iter().map(|(_, probability)| probability).collect()
}

/// How often each text comes out, over many seeds; and how many draft tokens were accepted.
fn sample(model: &FakeModel, rule: impl Fn() -> Box<dyn Acceptance>) -> (Vec<usize>, usize) {
    let mut counts = vec![0; VOCAB_SIZE.pow(NUM_TOKENS as u32)];
    let mut accepted = 0;
    for seed in 0..NUM_RUNS as u64 {
        let options = SequenceOptions {
            sampling: SamplingSettings { seed, ..sampled() },
            max_tokens: NUM_TOKENS,
            acceptance: rule(),
            ..SequenceOptions::default()
        };
        let sequence = sequence(model, &PROMPT, Box::new(Drawing), options);
        let mut generation = Generation::new(model, sequence, Budget::Fixed(8));
        let text = ids(&mut generation).into_iter().fold(0, |text, token| text * VOCAB_SIZE + token as usize);
        counts[text] += 1;
        accepted += generation.stats().accepted;
    }
    (counts, accepted)
}

/// Half the sum of absolute differences.
fn total_variation(counts: &[usize], law: &[f64]) -> f64 {
    counts.iter().zip(law).map(|(&count, p)| (count as f64 / NUM_RUNS as f64 - p).abs()).sum::<f64>() / 2.0
}

/// The chi-square statistic over texts that are expected at least five times, in units of its standard deviation.
fn surprise(counts: &[usize], law: &[f64]) -> f64 {
    let cells = counts.iter().zip(law).map(|(&count, p)| (count as f64, p * NUM_RUNS as f64));
    let terms: Vec<f64> =
        cells.filter(|&(_, expected)| expected >= 5.0).map(|(count, e)| (count - e).powi(2) / e).collect();
    let freedom = terms.len() as f64 - 1.0;
    (terms.iter().sum::<f64>() - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn rejection_has_the_law_of_plain_decoding() {
    let model = FakeModel::new(VOCAB_SIZE, 3.5);
    let law = joint_law(&model);
    let first = target_law(&model, &PROMPT);
    let distance: f64 = first.iter().zip(DRAFT_PROBS).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0;
    let peak = first.iter().copied().fold(0.0, f64::max);
    assert!(peak > 0.45 && distance > 0.25, "peak {peak}, distance {distance}: errors would stay unseen");
    let (counts, accepted) = sample(&model, || Box::new(Rejection::default()));
    assert!(accepted > NUM_RUNS / 2, "{accepted} accepted in {NUM_RUNS} runs");
    let surprise_of_rejection = surprise(&counts, &law);
    assert!(surprise_of_rejection < 4.0, "{surprise_of_rejection}");
    // The yardstick itself: the same drafts under sample and match.
    let (counts, _) = sample(&model, || Box::new(SampleAndMatch));
    assert!(surprise(&counts, &law) < 4.0);
}

#[test]
fn typical_acceptance_keeps_more_and_changes_the_law() {
    let model = FakeModel::new(VOCAB_SIZE, 3.5);
    let law = joint_law(&model);
    let (_, exact) = sample(&model, || Box::new(SampleAndMatch));
    let (counts, accepted) = sample(&model, || Box::new(Typical::default()));
    assert!(accepted > exact, "{accepted} accepted, {exact} by sample and match");
    assert!(total_variation(&counts, &law) > 0.03);
}

#[test]
fn rejection_of_chosen_drafts_is_sample_and_match() {
    let model = support::model();
    for sampling in samplings() {
        let prompt = support::prompt(3);
        let options = SequenceOptions { acceptance: Box::new(Rejection::default()), ..support::options(&sampling) };
        let sequence = sequence(&model, &prompt, drafter("ngram"), options);
        let mut generation = Generation::new(&model, sequence, Budget::Fixed(16));
        assert_eq!(ids(&mut generation), plain(&model, &prompt, &sampling));
    }
}

#[test]
fn a_drawn_draft_beyond_its_limits_is_an_error() {
    let model = FakeModel::new(VOCAB_SIZE, 3.5);
    let options = SequenceOptions { sampling: sampled(), ..SequenceOptions::default() };
    let mut generation =
        Generation::new(&model, sequence(&model, &PROMPT, Box::new(Drawing), options), Budget::Fixed(4));
    generation.next().unwrap().unwrap();
    let error = generation.next().unwrap().unwrap_err();
    assert!(matches!(error, DecodeError::DraftTooLarge { nodes: 5, max_nodes: 4, .. }), "{error}");
}
