//! Which trees streams propose, how proposals are rated, and what a pass is charged for.

use forestream_model::Model;

use super::*;
use crate::budget::PassBase;
use crate::random::mix;
use crate::testing::FakeModel;
use crate::{Budget, CostCurve, Round, Sequence, SequenceOptions};

const ROOT: TokenId = 7;

/// Limits that hold whole static trees.
const WIDE: Limits = Limits { max_nodes: usize::MAX, max_depth: 16, vocab_size: 1000, min_score: 0.0 };

/// The logits of streams that tell the tokens a little apart; the same seed gives the same ones.
fn stream_logits(model: &FakeModel, num_streams: usize, seed: u64) -> Vec<f32> {
    let logit = |index: usize| (mix((seed << 32) | index as u64) % 64) as f32 / 32.0;
    (0..num_streams * model.draft_vocabulary().len()).map(logit).collect()
}

/// What streams with these logits propose after [`ROOT`].
fn grown(model: &FakeModel, tree: TreeShape, logits: &[f32], limits: Limits) -> Draft {
    let mut drafter = Streaming::new(StreamingOptions { tree, ..StreamingOptions::default() });
    let mut draft = Draft::new(ROOT);
    drafter.grow(model, logits, (limits, None), &mut draft);
    draft
}

/// A best-first tree after [`ROOT`] that knows what passes and its own draft cost.
fn grown_at_a_price(model: &FakeModel, logits: &[f32], cost: &CostCurve, draft_seconds: f64) -> Draft {
    let mut draft = Draft::new(ROOT);
    let limits = Limits { max_nodes: cost.max_nodes(), ..WIDE };
    Streaming::default().grow(model, logits, (limits, Some(Price { cost, draft_seconds })), &mut draft);
    draft
}

/// What the budget keeps of `draft`: each node's tokens from the root, and its score.
fn kept(draft: &Draft, limits: Limits) -> Vec<(Vec<TokenId>, f32)> {
    let mut kept = Draft::default();
    draft.cut_into(limits, &mut Vec::new(), &mut kept);
    let tree = kept.tree();
    let tokens = |node| tree.path(node).into_iter().map(|node| tree.token(node)).collect::<Vec<_>>();
    let mut nodes: Vec<_> = tree.node_ids().map(|node| (tokens(node), kept.score(node))).collect();
    nodes.sort_by(|a, b| a.0.cmp(&b.0));
    nodes
}

#[test]
fn proposals_are_the_best_columns_of_the_sum() {
    let own: Vec<f32> = (0..100).map(|column| (column * 37 % 100) as f32 * 0.1).collect();
    let (mut sums, mut proposals) = (Vec::new(), Vec::new());
    let log_sum = find_proposals([&own, &[]], (MAX_CHILDREN, NEGLIGIBLE), &mut sums, &mut proposals);
    let exact = own.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
    assert!((f64::from(log_sum) - exact).abs() < 1e-4, "{log_sum}, {exact}");
    assert_eq!(proposals.len(), MAX_CHILDREN);
    assert!(proposals.is_sorted_by(|a, b| a.logit > b.logit));
    assert!((proposals[0].logit - 9.9).abs() < 1e-6);

    let mut added = vec![0.0; 100];
    added[3] = 40.0;
    find_proposals([&own, &added], (MAX_CHILDREN, NEGLIGIBLE), &mut sums, &mut proposals);
    assert_eq!(proposals[0].column, 3);
    assert_eq!(proposals.len(), 1, "the others are negligible");
    find_proposals([&own, &added], (4, 0.0), &mut sums, &mut proposals);
    let columns: Vec<u32> = proposals.iter().map(|proposal| proposal.column).collect();
    assert_eq!(columns, [3, 27, 54, 81], "four are proposed all the same");
}

/// The probability of each token of a chain given the one before, by a model with this calibration of its depths.
fn probabilities_along_a_chain(calibration: Vec<Calibration>) -> Vec<f32> {
    let model = FakeModel::new(40, 6.0).calibrated(calibration);
    let logits = vec![0.0; 3 * model.draft_vocabulary().len()];
    let limits = Limits { max_nodes: 4, max_depth: 3, vocab_size: 40, min_score: 0.0 };
    let draft = grown(&model, TreeShape::Static { top_k: 1 }, &logits, limits);
    let scores: Vec<f32> = draft.tree().node_ids().map(|node| draft.score(node)).collect();
    scores.windows(2).map(|pair| pair[1] / pair[0]).collect()
}

#[test]
fn a_proposal_is_rated_by_the_calibration_of_its_depth() {
    let calibration = [(0.9, -0.1), (0.5, 0.7), (1.4, -1.2)];
    let calibration = calibration.map(|(slope, intercept)| Calibration { slope, intercept });
    let own = probabilities_along_a_chain(Vec::new());
    let rated = probabilities_along_a_chain(calibration.to_vec());
    assert_eq!((own.len(), rated.len()), (3, 3));
    for (depth, calibration) in calibration.into_iter().enumerate() {
        let expected = calibration.apply(own[depth]);
        assert!((rated[depth] - expected).abs() < 1e-5, "depth {depth}: {} for {expected}", rated[depth]);
    }
}

/// The sizes that the paper's static trees have with so many streams and children, however little the last children of a
/// node are worth beside its first.
#[test]
fn a_static_tree_that_fits_is_whole() {
    let cases =
        [(3, 3, 40), (3, 4, 85), (3, 5, 156), (3, 6, 259), (4, 1, 5), (4, 2, 31), (4, 3, 121), (2, 32, 1 + 32 + 1024)];
    for sharpness in [6.0, 18.0, 200.0] {
        let model = FakeModel::new(40, sharpness);
        for (num_streams, top_k, num_nodes) in cases {
            let logits = stream_logits(&model, num_streams, 1);
            for max_nodes in [num_nodes, usize::MAX] {
                let draft = grown(&model, TreeShape::Static { top_k }, &logits, Limits { max_nodes, ..WIDE });
                assert_eq!(draft.tree().len(), num_nodes, "{sharpness}: {num_streams} streams, {top_k} children");
            }
        }
    }
}

#[test]
fn a_tree_grows_no_larger_than_its_depths_can_be_kept() {
    let model = FakeModel::new(40, 6.0);
    let logits = stream_logits(&model, 4, 1);
    for tree in [TreeShape::Static { top_k: 16 }, TreeShape::Static { top_k: 3 }, TreeShape::BestFirst] {
        for max_nodes in [1, 2, 16] {
            let draft = grown(&model, tree, &logits, Limits { max_nodes, ..WIDE });
            let num_nodes = draft.num_draft_tokens();
            assert!(num_nodes <= 4 * (max_nodes - 1), "{tree:?}: {num_nodes} nodes of {max_nodes}");
        }
    }
}

/// Equal scores too: with a sharpness of 0 the parent says nothing, and many nodes are as good as others.
#[test]
fn a_limited_tree_has_what_the_budget_would_keep_of_the_whole() {
    for (sharpness, seed) in [(0.0, 1), (0.0, 2), (1.0, 3), (6.0, 4), (18.0, 5)] {
        let model = FakeModel::new(40, sharpness);
        for (num_streams, top_k) in [(4, 1), (4, 5), (2, 30)] {
            let logits = stream_logits(&model, num_streams, seed);
            let tree = TreeShape::Static { top_k };
            // From token 30 on there are none: these take no other's place.
            for (max_nodes, vocab_size) in [(1, 40), (2, 40), (7, 40), (16, 40), (100, 40), (16, 30)] {
                let limits = Limits { max_nodes, vocab_size, ..WIDE };
                let whole = grown(&model, tree, &logits, Limits { vocab_size, ..WIDE });
                let limited = grown(&model, tree, &logits, limits);
                assert!(limited.tree().len() <= whole.tree().len());
                assert_eq!(kept(&limited, limits), kept(&whole, limits), "{sharpness} {tree:?} {limits:?}");
            }
        }
    }
}

/// A node of the whole tree of a small vocabulary.
struct WholeTree {
    score: f64,
    children: Vec<WholeTree>,
}

impl WholeTree {
    /// The tree below `token`; scores are products of the probabilities along the path, computed without the drafter.
    fn new(model: &FakeModel, token: TokenId, score: f64, logits: &[f32]) -> Self {
        let (own, deeper) = logits.split_at(model.draft_vocabulary().len().min(logits.len()));
        let mut added = Vec::new();
        model.parent_logits(&[token], &mut added);
        let weights: Vec<f64> = own.iter().zip(added).map(|(own, added)| f64::from(own + added).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let child = |(&token, weight): (&TokenId, &f64)| Self::new(model, token, score * weight / sum, deeper);
        Self { score, children: model.draft_vocabulary().iter().zip(&weights).map(child).collect() }
    }

    /// By number of nodes: the greatest sum of scores that so many of this tree's have, the top one with them.
    fn best_totals(&self) -> Vec<f64> {
        let mut below = vec![0.0];
        for child in &self.children {
            let of_child = child.best_totals();
            let mut sums = vec![f64::NEG_INFINITY; below.len() + of_child.len() - 1];
            for (before, total) in below.iter().enumerate() {
                for (num_nodes, more) in of_child.iter().enumerate() {
                    let sum = &mut sums[before + num_nodes];
                    *sum = sum.max(total + more);
                }
            }
            below = sums;
        }
        std::iter::once(0.0).chain(below.into_iter().map(|total| self.score + total)).collect()
    }
}

/// The greatest sum of scores of any `rest` further nodes, each from `open` or below another of them.
fn best_total(open: &[&WholeTree], rest: usize) -> f64 {
    if rest == 0 {
        return 0.0;
    }
    let totals = open.iter().enumerate().map(|(index, node)| {
        let open: Vec<_> = open[index + 1..].iter().copied().chain(&node.children).collect();
        node.score + best_total(&open, rest - 1)
    });
    totals.fold(f64::NEG_INFINITY, f64::max)
}

#[test]
fn no_subtree_promises_more_than_the_best_first_tree() {
    for (sharpness, seed) in [(0.0, 1), (1.0, 2), (1.0, 3), (2.0, 4), (2.0, 5), (3.0, 6)] {
        let model = FakeModel::new(3, sharpness);
        let logits = stream_logits(&model, 3, seed);
        let whole = WholeTree::new(&model, ROOT, 1.0, &logits);
        for max_nodes in 1..=7 {
            let limits = Limits { max_nodes, ..WIDE };
            let draft = grown(&model, TreeShape::BestFirst, &logits, limits);
            let nodes = kept(&draft, limits);
            let (total, best) =
                (nodes.iter().map(|node| f64::from(node.1)).sum::<f64>(), best_total(&[&whole], max_nodes));
            assert_eq!(nodes.len(), max_nodes, "{sharpness} {seed}");
            assert!((total - best).abs() < 1e-4, "{sharpness} {seed}, {max_nodes} nodes: {total} for {best}");
        }
    }
}

/// Up to the whole tree, of which the budget keeps the best.
#[test]
fn dynamic_programming_finds_no_better_subtree() {
    for (sharpness, seed) in [(0.0, 1), (1.0, 2), (3.0, 3), (6.0, 4), (18.0, 5)] {
        let model = FakeModel::new(4, sharpness);
        let logits = stream_logits(&model, 3, seed);
        let whole = WholeTree::new(&model, ROOT, 1.0, &logits);
        let (best, top_k) = (whole.best_totals(), model.draft_vocabulary().len());
        assert_eq!(best.len(), 1 + 1 + 4 + 16 + 64);
        for (max_nodes, best) in best.into_iter().enumerate().skip(1) {
            if max_nodes <= 4 {
                assert!((best - best_total(&[&whole], max_nodes)).abs() < 1e-9, "{sharpness} {max_nodes}");
            }
            let limits = Limits { max_nodes, ..WIDE };
            let nodes = kept(&grown(&model, TreeShape::Static { top_k }, &logits, limits), limits);
            let total: f64 = nodes.iter().map(|node| f64::from(node.1)).sum();
            assert_eq!(nodes.len(), max_nodes);
            assert!((total - best).abs() < 1e-4, "{sharpness} {seed}, {max_nodes} nodes: {total} for {best}");
        }
    }
}

/// How many nodes the budget keeps of `draft`, root included, and what they promise.
fn paid(draft: &Draft, cost: &CostCurve, draft_seconds: f64) -> (usize, f32) {
    let mut scores: Vec<f32> = draft.tree().node_ids().skip(1).map(|node| draft.score(node)).collect();
    scores.sort_by(|a, b| b.total_cmp(a));
    let base = PassBase { nodes: 1, tokens: 1, seconds: draft_seconds };
    let count = cost.best_count(base, scores.iter().copied());
    (1 + count, scores[..count].iter().sum())
}

#[test]
fn only_nodes_that_may_pay_get_children_and_the_budget_misses_none() {
    let (mut num_nodes, mut num_whole) = (0, 0);
    let flat_then_steep: &[_] = &[(1, 1.0), (4, 1.05), (32, 6.0)];
    for points in [&[(1, 1.0), (32, 1.5)], &[(1, 1.0), (32, 8.0)], flat_then_steep, &[(1, 1.0), (2, 2.0), (32, 64.0)]] {
        let cost = CostCurve::new(points).unwrap();
        for (sharpness, seed) in [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4), (6.0, 5), (18.0, 6)] {
            let model = FakeModel::new(40, sharpness);
            let logits = stream_logits(&model, 4, seed);
            for draft_seconds in [0.0, 0.3, 2.0] {
                let limits = Limits { max_nodes: cost.max_nodes(), ..WIDE };
                let whole = grown(&model, TreeShape::BestFirst, &logits, limits);
                let draft = grown_at_a_price(&model, &logits, &cost, draft_seconds);
                let [expected, got] = [&whole, &draft].map(|draft| paid(draft, &cost, draft_seconds));
                assert_eq!(got, expected, "{points:?} {sharpness} {draft_seconds}");
                num_nodes += draft.tree().len();
                num_whole += whole.tree().len();
            }
        }
    }
    assert!(4 * num_nodes < 3 * num_whole, "{num_nodes} of {num_whole} nodes");
}

/// A sequence whose streams run in fused passes, and the rounds that draft for it where drafts take `draft_seconds`.
fn fused(model: &FakeModel, max_tokens: usize, draft_seconds: [f64; 3]) -> (Sequence, Round) {
    let drafter = Streaming::new(StreamingOptions { pass: StreamPass::Fused, ..StreamingOptions::default() });
    let options = SequenceOptions { max_tokens, ..SequenceOptions::default() };
    let sequence = Sequence::new(model.config(), &[3, 1, 2], model.new_cache(4096), Box::new(drafter), options);
    let cost = CostCurve::new(&[(1, 1.0), (32, 1.01)]).unwrap().with_draft_seconds(draft_seconds.to_vec());
    (sequence.unwrap(), Round::new(Budget::Auto(cost)))
}

/// Nobody knows before verification which node will be accepted, so the streams of all of them run.
#[test]
fn a_fused_pass_is_charged_for_the_streams_of_every_node() {
    let model = FakeModel::new(48, 18.0);
    let (mut sequence, mut round) = fused(&model, 60, [0.001, 0.002, 0.003]);
    round.run(&model, &mut [&mut sequence]).unwrap();
    let (mut num_nodes, mut largest) = (1, 1); // of the prompt, only the last token may be followed
    while sequence.finish_reason().is_none() {
        round.run(&model, &mut [&mut sequence]).unwrap();
        let draft = sequence.draft();
        if draft.num_draft_tokens() > 0 {
            let expected = 0.003 * num_nodes as f64;
            assert!((draft.seconds() - expected).abs() < 1e-9, "{} for {expected}, {num_nodes} nodes", draft.seconds());
            largest = largest.max(num_nodes);
        }
        num_nodes = draft.tree().len();
    }
    assert!(largest > 4, "the test must have trees, not {largest} nodes");
}

#[test]
fn a_fused_pass_rests_while_drafts_do_not_pay() {
    let model = FakeModel::new(48, 18.0);
    let (mut sequence, mut round) = fused(&model, 200, [9.0, 18.0, 27.0]);
    while sequence.finish_reason().is_none() {
        round.run(&model, &mut [&mut sequence]).unwrap();
    }
    let (passes, rounds) = (model.num_fused_passes(), sequence.stats().rounds);
    assert!((2..rounds / 4).contains(&passes), "{passes} fused passes in {rounds} rounds");
}
