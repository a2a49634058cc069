//! The exactness contract: whatever the strategy, draft, budget and company in a pass, the ids are those of plain
//! decoding.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::sync::{Arc, Mutex};

use forestream_decode::strategies::{StreamPass, Streaming, StreamingOptions, TreeShape};
use forestream_decode::testing::FakeModel;
use forestream_decode::{
    Budget, CostCurve, DecodeError, Draft, DraftRequest, Drafter, FinishReason, Generation, LiveCurve, Random, Round,
    STRATEGIES, SamplingSettings, Sequence, SequenceOptions, VerifiedRound,
};
use forestream_model::{Model, NodeId, Pruning, TokenId};
use support::{MAX_TOKENS, assert_counts, budgets, drafter, ids, model, options, plain, prompt, samplings, sequence};

#[test]
fn every_strategy_gives_the_ids_of_plain_decoding() {
    let model = model();
    for (sampling, seed) in
        samplings().into_iter().flat_map(|sampling| (0..6).map(move |seed| (sampling.clone(), seed)))
    {
        let sampling = SamplingSettings { seed, ..sampling };
        let prompt = prompt(seed as usize + 1);
        let expected = plain(&model, &prompt, &sampling);
        assert_eq!(expected.len(), MAX_TOKENS);
        for names in STRATEGIES.iter().map(|strategy| strategy.name).chain(["ngram,none,ngram"]) {
            for budget in budgets() {
                let max_nodes = budget.max_nodes();
                let sequence = sequence(&model, &prompt, drafter(names), options(&sampling));
                let mut generation = Generation::new(&model, sequence, budget).prefill_chunk(max_nodes.min(7));
                model.take_max_nodes();
                assert_eq!(ids(&mut generation), expected, "{names}, {max_nodes} nodes, {sampling:?}");
                assert!(model.take_max_nodes() <= max_nodes, "{names} exceeds its budget of {max_nodes}");
                assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
                assert_counts(generation.stats(), expected.len());
            }
        }
    }
}

#[test]
fn drafting_saves_passes() {
    let model = model();
    for (index, sampling) in samplings().iter().enumerate() {
        let run = |names, budget| {
            let sequence = sequence(&model, &prompt(3), drafter(names), options(sampling));
            let mut generation = Generation::new(&model, sequence, budget);
            assert_eq!(ids(&mut generation).len(), MAX_TOKENS);
            generation.stats().clone()
        };
        let plain = run("none", Budget::Fixed(16));
        assert_eq!((plain.accepted, plain.drafted, plain.rounds), (0, 0, MAX_TOKENS - 1));
        for budget in &budgets()[1..] {
            let ngram = run("ngram", budget.clone());
            assert!(ngram.accepted > 4, "sampling {index}: {ngram:?}");
        }
    }
}

#[test]
fn drafting_stops_where_a_node_costs_a_pass() {
    fn assert_send<T: Send>(_: &T) {}
    let model = model();
    let steep = CostCurve::new(&[(1, 1.0), (2, 2.0), (16, 16.0)]).unwrap();
    let sequence = sequence(&model, &prompt(3), drafter("ngram"), options(&samplings()[0]));
    assert_send(&sequence); // a server keeps sequences on a thread of its own
    let mut generation = Generation::new(&model, sequence, Budget::Auto(steep));
    assert_eq!(ids(&mut generation).len(), MAX_TOKENS);
    assert_eq!((generation.stats().drafted, generation.stats().rounds), (0, MAX_TOKENS - 1));
}

#[test]
fn sequences_of_one_pass_do_not_touch_each_other() {
    let model = model();
    for budget in budgets() {
        let cases: Vec<_> = samplings().into_iter().chain(samplings()).enumerate().collect();
        let build = |(index, sampling): &(usize, SamplingSettings)| {
            let names = STRATEGIES[index % STRATEGIES.len()].name;
            sequence(&model, &prompt(index + 2), drafter(names), options(sampling))
        };
        let mut sequences: Vec<Sequence> = cases.iter().map(build).collect();
        let mut round = Round::new(budget);
        round.set_prefill_chunk(5);
        while sequences.iter().any(|sequence| sequence.finish_reason().is_none()) {
            let mut pass: Vec<&mut Sequence> = sequences.iter_mut().collect();
            round.run(&model, &mut pass).unwrap();
        }
        let passes = model.num_passes();
        round.run(&model, &mut sequences.iter_mut().collect::<Vec<_>>()).unwrap();
        assert_eq!(model.num_passes(), passes, "sequences that have ended take part in no pass");
        for ((index, sampling), sequence) in cases.iter().zip(&sequences) {
            assert_eq!(sequence.completion(), plain(&model, &prompt(index + 2), sampling), "sequence {index}");
            assert_counts(sequence.stats(), MAX_TOKENS);
        }
    }
}

#[test]
fn sequences_share_their_stream_passes_and_draft_as_they_do_alone() {
    let model = model();
    let names = ["streaming", "ngram,streaming", "streaming,ngram"];
    let build = |index: usize| {
        let options = SequenceOptions { max_draft_depth: index % 4 + 1, ..options(&samplings()[index % 4]) };
        sequence(&model, &prompt(index + 2), drafter(names[index % 3]), options)
    };
    let run = |sequences: &mut [Sequence]| {
        let (passes, stream_passes) = (model.num_passes(), model.num_stream_passes());
        let mut round = Round::new(Budget::Fixed(6));
        while sequences.iter().any(|sequence| sequence.finish_reason().is_none()) {
            round.run(&model, &mut sequences.iter_mut().collect::<Vec<_>>()).unwrap();
        }
        (model.num_passes() - passes, model.num_stream_passes() - stream_passes)
    };
    let mut together: Vec<Sequence> = (0..6).map(build).collect();
    let (passes, stream_passes) = run(&mut together);
    assert!((1..=passes).contains(&stream_passes), "{stream_passes} stream passes in {passes} rounds");
    for (index, sequence) in together.iter().enumerate() {
        let mut alone = [build(index)];
        run(&mut alone);
        assert_eq!(sequence.completion(), alone[0].completion(), "sequence {index}");
        let (shared, own) = (sequence.stats(), alone[0].stats());
        assert!(own.accepted > 5, "sequence {index} shows little: {own:?}");
        assert_eq!((shared.drafted, shared.accepted), (own.drafted, own.accepted), "sequence {index}");
    }
}

#[test]
fn sequences_may_join_while_others_run() {
    let model = model();
    let sampling = &samplings()[1];
    let mut round = Round::new(Budget::Fixed(8));
    let mut first = sequence(&model, &prompt(4), drafter("ngram"), options(sampling));
    let mut second = sequence(&model, &prompt(5), drafter("ngram"), options(sampling));
    for _ in 0..10 {
        round.run(&model, &mut [&mut first]).unwrap();
    }
    while second.finish_reason().is_none() {
        round.run(&model, &mut [&mut second, &mut first]).unwrap();
    }
    assert_eq!(first.completion(), plain(&model, &prompt(4), sampling));
    assert_eq!(second.completion(), plain(&model, &prompt(5), sampling));
}

/// Drafts nonsense around the true continuation: duplicates, probes, deep chains, impossible tokens, silly scores.
struct Hostile {
    truth: Vec<TokenId>,
    noise: u64,
}

impl Hostile {
    fn number(&mut self, below: usize) -> usize {
        self.noise += 1;
        (Random::draft(17).uniform(self.noise as usize, 0) * below as f64) as usize
    }

    fn score(&mut self) -> f32 {
        [f32::NAN, f32::INFINITY, -1.0, 0.0, 0.3, 0.5, 0.9, 2.0][self.number(8)]
    }
}

impl Drafter for Hostile {
    fn draft(&mut self, request: &mut DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError> {
        let mut on_path = NodeId::ROOT;
        for step in 0..30 {
            let random_parent = NodeId(self.number(draft.tree().len()) as u32);
            let random_token = self.number(60) as TokenId; // the vocabulary has 48
            let score = self.score();
            let next_true = self.truth.get(request.context.len() + draft.tree().depth(on_path)).copied();
            match (self.number(6), next_true) {
                (0, Some(token)) => {
                    draft.push_probe(on_path, token, score);
                }
                (1..=3, Some(token)) => {
                    on_path = draft.push(on_path, token, 0.9);
                    draft.push(random_parent, token, score);
                }
                (4, _) if step < 8 => {
                    for _ in 0..20 {
                        draft.push(draft.tree().last(), random_token, score);
                    }
                }
                _ => {
                    draft.push(random_parent, random_token, score);
                }
            }
        }
        Ok(())
    }

    fn observe(&mut self, round: VerifiedRound<'_>) -> Result<(), DecodeError> {
        assert_eq!(round.cache.tokens(), &round.context[..round.context.len() - 1]);
        assert!(round.hidden.row_of(round.sequence_index, *round.path.last().unwrap()).is_some());
        assert!(round.num_emitted >= 1 && round.path.iter().all(|&node| !round.draft.tree().is_probe(node)));
        Ok(())
    }
}

#[test]
fn a_hostile_drafter_cannot_change_the_text() {
    let model = FakeModel::new(48, 18.0);
    for (index, sampling) in samplings().iter().enumerate() {
        let prompt = prompt(index + 6);
        let expected = plain(&model, &prompt, sampling);
        for budget in budgets() {
            for noise in 0..4 {
                let truth = [&prompt[..], &expected].concat();
                let hostile = Box::new(Hostile { truth, noise: noise * 100_000 });
                let sequence = sequence(&model, &prompt, hostile, options(sampling));
                let max_nodes = budget.max_nodes();
                let mut generation = Generation::new(&model, sequence, budget.clone()).prefill_chunk(1);
                model.take_max_nodes();
                assert_eq!(ids(&mut generation), expected, "sampling {index}, {max_nodes} nodes, noise {noise}");
                assert!(model.take_max_nodes() <= max_nodes);
                assert_counts(generation.stats(), MAX_TOKENS);
                let accepted = generation.stats().accepted;
                assert!(max_nodes == 1 || accepted > 20, "the test must accept drafts, accepted {accepted}");
            }
        }
    }
}

#[test]
fn streams_draft_the_same_text_in_every_pass_and_tree() {
    let model = FakeModel::new(48, 18.0);
    let mut accepted = Vec::new();
    for pass in [StreamPass::Deferred, StreamPass::Fused] {
        let trees = [TreeShape::BestFirst, TreeShape::Static { top_k: 1 }, TreeShape::Static { top_k: 3 }];
        for (tree, pruning) in trees.into_iter().flat_map(|tree| [(tree, None), (tree, Some(Pruning::Threshold(0.1)))])
        {
            for (index, sampling) in samplings().iter().enumerate() {
                let prompt = prompt(index + 3);
                let drafter = Box::new(Streaming::new(StreamingOptions { pass, tree, pruning }));
                let sequence = sequence(&model, &prompt, drafter, options(sampling));
                model.take_max_nodes();
                let mut generation = Generation::new(&model, sequence, Budget::Fixed(40));
                assert_eq!(
                    ids(&mut generation),
                    plain(&model, &prompt, sampling),
                    "{pass:?} {tree:?} {pruning:?} {index}"
                );
                assert_eq!(generation.stats().pruned > 0, pruning.is_some(), "{pass:?} {tree:?}");
                if let (0, TreeShape::Static { top_k }) = (index, tree) {
                    let full = 1 + top_k + top_k * top_k + top_k * top_k * top_k;
                    assert_eq!(model.take_max_nodes(), full.max(prompt.len()));
                }
                accepted.push(generation.stats().accepted);
            }
        }
    }
    let (deferred, fused) = accepted.split_at(accepted.len() / 2);
    assert_eq!(deferred, fused, "both passes give the same drafts");
    assert!(accepted.iter().sum::<usize>() > 50, "{accepted:?}");
}

/// The sizes of the paper's own checks; no child is no draft, and the first prompt is a single token.
#[test]
fn whole_static_trees_of_any_size_give_the_ids_of_plain_decoding() {
    const MAX_TOKENS: usize = 24;
    let mut accepted = 0;
    for (num_streams, top_k) in [1, 3, 4].into_iter().flat_map(|streams| [0, 1, 3, 5].map(|top_k| (streams, top_k))) {
        let model = FakeModel::new(48, 18.0).with_streams(num_streams);
        let num_nodes: usize = (0..=num_streams as u32).map(|depth| usize::pow(top_k, depth)).sum();
        let passes = [StreamPass::Deferred, StreamPass::Fused];
        for (pass, pruning) in passes.into_iter().flat_map(|pass| [(pass, None), (pass, Some(Pruning::Threshold(0.1)))])
        {
            for (index, sampling) in samplings().iter().enumerate() {
                let case = format!("{num_streams} streams, {top_k} children, {pass:?}, {pruning:?}, sampling {index}");
                let prompt = prompt(index);
                let tree = TreeShape::Static { top_k };
                let drafter = Box::new(Streaming::new(StreamingOptions { pass, tree, pruning }));
                let room = MAX_TOKENS + (1 + num_streams) * num_nodes; // the fused pass has rows for all streams
                let cache = model.new_cache(prompt.len() + room);
                let options = SequenceOptions { max_tokens: MAX_TOKENS, ..options(sampling) };
                let sequence = Sequence::new(model.config(), &prompt, cache, drafter, options).unwrap();
                model.take_max_nodes();
                let mut generation = Generation::new(&model, sequence, Budget::Fixed(num_nodes.max(2)));
                assert_eq!(ids(&mut generation), plain(&model, &prompt, sampling)[..MAX_TOKENS], "{case}");
                assert_eq!(model.take_max_nodes(), num_nodes.max(prompt.len()), "{case}");
                assert_counts(generation.stats(), MAX_TOKENS);
                accepted += generation.stats().accepted;
            }
        }
    }
    assert!(accepted > 500, "only {accepted} draft tokens were accepted: the test shows little");
}

/// What passes took when they were measured.
fn measured_seconds(nodes: usize) -> f64 {
    0.94 + 0.06 * nodes as f64
}

/// What drafts took then.
const MEASURED_DRAFT: f64 = 0.01;

/// A time that a test moves, and a curve as it was measured that follows it.
fn live_curve() -> (Arc<Mutex<f64>>, Arc<LiveCurve>) {
    let time = Arc::new(Mutex::new(0.0));
    let clock = {
        let time = Arc::clone(&time);
        move || *time.lock().unwrap()
    };
    let points: Vec<_> = (1..=16).map(|nodes| (nodes, measured_seconds(nodes))).collect();
    let measured = CostCurve::new(&points).unwrap().with_draft_seconds(vec![MEASURED_DRAFT]);
    (time, Arc::new(LiveCurve::new(measured, clock)))
}

/// The mean number of draft tokens in a pass over the last 100 rounds of a text, the text, and what the curve says about drafts at
/// its end, while passes take `seconds` and drafts twice what they took.
fn drafted_while_passes_take(seconds: fn(usize) -> f64) -> (f64, Vec<u32>, f64) {
    let (time, curve) = live_curve();
    let model = FakeModel::new(48, 18.0).watched(move |rows, of_streams| {
        let nodes = rows.iter().map(|row| row.tree.len()).sum();
        *time.lock().unwrap() += if of_streams { 2.0 * MEASURED_DRAFT } else { seconds(nodes) };
    });
    let options = SequenceOptions { max_tokens: 600, ..SequenceOptions::default() };
    let mut sequence = sequence(&model, &prompt(3), drafter("streaming"), options);
    let mut round = Round::new(Budget::Live(Arc::clone(&curve)));
    let mut counts = Vec::new();
    while sequence.finish_reason().is_none() {
        round.run(&model, &mut [&mut sequence]).unwrap();
        counts.push(sequence.draft().num_draft_tokens());
    }
    let last = &counts[counts.len() - 100..];
    let mean = last.iter().sum::<usize>() as f64 / last.len() as f64;
    (mean, sequence.completion().to_vec(), curve.now().draft_seconds(1))
}

#[test]
fn trees_follow_what_passes_take() {
    let (steep, ids, _) = drafted_while_passes_take(|nodes| nodes as f64);
    let (as_measured, same_ids, draft) = drafted_while_passes_take(measured_seconds);
    let (flat, others, _) = drafted_while_passes_take(|_| 1.0);
    assert!(2.0 * steep < as_measured && 1.5 * as_measured < flat, "{steep} {as_measured} {flat}");
    assert!(draft > 1.2 * MEASURED_DRAFT, "{draft}");
    assert!(ids == same_ids && ids == others);
}

/// Neither the passes of a prompt, which give other logits, nor those whose nodes end early say what a tree costs.
#[test]
fn only_passes_that_verify_whole_trees_move_the_curve() {
    let (time, curve) = live_curve();
    let model = FakeModel::new(48, 18.0).watched(move |rows, of_streams| {
        let nodes: usize = rows.iter().map(|row| row.tree.len()).sum();
        let usual = if of_streams { MEASURED_DRAFT } else { measured_seconds(nodes) };
        *time.lock().unwrap() += if nodes == 1 || of_streams { usual } else { 50.0 * usual };
    });
    let measured = curve.now();
    let pruning = Some(Pruning::Threshold(0.1));
    let drafter = Box::new(Streaming::new(StreamingOptions { pruning, ..StreamingOptions::default() }));
    let mut sequence = sequence(&model, &prompt(3), drafter, options(&SamplingSettings::default()));
    let mut round = Round::new(Budget::Live(Arc::clone(&curve)));
    round.set_prefill_chunk(4);
    while sequence.finish_reason().is_none() {
        round.run(&model, &mut [&mut sequence]).unwrap();
    }
    assert!(sequence.stats().drafted > 10 && sequence.stats().prefill_passes > 4);
    for nodes in 1..=16 {
        assert!((curve.now().seconds(nodes) / measured.seconds(nodes) - 1.0).abs() < 1e-9, "{nodes}");
    }
}

/// A draft that cost much is worth verifying further, since the next one will cost as much; text and drafter are the same.
#[test]
fn dear_drafts_are_verified_further() {
    let model = FakeModel::new(48, 18.0);
    let nodes_by_round = |draft_seconds: f64| {
        let points: Vec<(usize, f64)> = (1..=16).map(|nodes| (nodes, 0.75 + 0.25 * nodes as f64)).collect();
        let curve = CostCurve::new(&points).unwrap().with_draft_seconds(vec![draft_seconds]);
        let sequence = sequence(&model, &prompt(3), drafter("streaming"), options(&SamplingSettings::default()));
        let mut generation = Generation::new(&model, sequence, Budget::Auto(curve));
        ids(&mut generation);
        let stats = generation.stats();
        stats.drafted as f64 / stats.rounds as f64
    };
    let [cheap, dear] = [0.01, 0.3].map(nodes_by_round);
    assert!(dear > 1.1 * cheap, "{cheap} {dear}");
}
