//! The early exit against the reference, and the nodes that the engine ends against what it says.

use burn_tensor::{Device, Tensor, TensorData};
use forestream_burn::{JointText, Segment, early_exit_logits, joint_logits};
use forestream_model::{Hidden, Model, NodeId, Outputs, Pruning, Row, TokenId, TokenTree};

use crate::case::{self, CASES, Case, JOINT_CASES};
use crate::data;
use crate::engine::{Engine, relative_error};
use crate::model::attached;

#[test]
fn logits_and_gradients_are_those_of_the_reference() {
    for options in CASES.iter().chain(JOINT_CASES) {
        let case = Case::with_early_exit(options);
        let segments = [case.segment(0, 3, 1), case.segment(4, 2, 2)];
        let weights = case.weights();
        let logits = early_exit_logits(&case.base, &weights, &segments).unwrap().unwrap();
        let reference = case.reference(&segments);
        let expected: Vec<f32> = reference.early_exit(&case.values).iter().map(|&x| x as f32).collect();
        assert!(relative_error(&data(logits.clone()), &expected) < 1e-5, "{options:?}");

        let shape = logits.dims();
        assert_eq!(shape, [5, case.base.draft_vocab_size()], "{options:?}");
        let factors = case::numbers(99, shape[0] * shape[1], 1.0);
        let gradients = (logits * Tensor::<2>::from_data(TensorData::new(factors.clone(), shape), &Device::flex()))
            .sum()
            .backward();
        for name in ["early_exit.down_proj.weight", "early_exit.up_proj.weight"] {
            let gradient = data(weights.tensor(name).grad(&gradients).unwrap());
            for index in [0, gradient.len() / 2, gradient.len() - 1] {
                let at = |by: f64| -> f64 {
                    let mut values = case.values.clone();
                    values.get_mut(name).unwrap()[index] += by;
                    reference.early_exit(&values).iter().zip(&factors).map(|(x, &factor)| x * f64::from(factor)).sum()
                };
                let expected = (at(1e-4) - at(-1e-4)) / 2e-4;
                let error = (f64::from(gradient[index]) - expected).abs();
                assert!(error <= 1e-3 * expected.abs().max(1.0), "{options:?}, {name}: {error} of {expected}");
            }
        }
    }
    let case = Case::new(&CASES[0]);
    assert!(early_exit_logits(&case.base, &case.weights(), &[case.segment(0, 1, 1)]).unwrap().is_none());
}

/// In a joint pass it reads main rows as they have become, and teaches them nothing.
#[test]
fn a_joint_pass_gives_the_same_and_leaves_main_rows_alone() {
    for options in JOINT_CASES {
        let case = Case::with_early_exit(options);
        let (num_streams, width) = (options.num_streams, case.base.decoder().hidden_size);
        let tokens = case.segment(0, 6, 6).tokens;
        let boundary = case::numbers(77, 6 * width, 1.0);
        let text = JointText { boundary, main: 1..6, streams: 2..7 - num_streams, tokens };
        let weights = case.weights();
        let logits = joint_logits(&case.base, &weights, std::slice::from_ref(&text)).unwrap().early_exit.unwrap();
        assert_eq!(logits.dims()[0], text.streams.len());
        let gradients = logits.clone().sum().backward();
        for name in weights.names() {
            let is_taught = weights.tensor(name).grad(&gradients).is_some();
            assert_eq!(is_taught, name.starts_with("early_exit."), "{options:?}, {name}");
        }
        if case.base.first_layer() == case.base.adapter().first_msa_layer(case.base.decoder()) {
            let positions = text.streams.start * width..text.streams.end * width;
            let segment = case.segment(0, text.streams.len(), 1);
            let segment = Segment { boundary: text.boundary[positions].to_vec(), ..segment };
            let alone = early_exit_logits(&case.base, &weights, &[segment]).unwrap().unwrap();
            assert!(relative_error(&data(logits), &data(alone)) < 1e-6, "{options:?}");
        }
    }
}

/// A draft with branches; the last token is in no case's small draft vocabulary.
fn draft() -> TokenTree {
    let mut tree = TokenTree::chain(&[7, 5, 1]);
    let mut nodes: Vec<NodeId> = tree.node_ids().collect();
    for (parent, token) in [(0, 300), (0, 8), (1, 9), (3, 17), (3, 1), (4, 5), (7, 42), (2, 99), (0, 319), (1, 0)] {
        nodes.push(tree.push(nodes[parent], token));
    }
    tree
}

/// Engine and twin keep the nodes that are probable by the twin's logits, at thresholds between these probabilities.
#[test]
fn a_pass_ends_the_nodes_that_are_improbable() {
    for options in CASES.iter().chain(JOINT_CASES) {
        let case = Case::with_early_exit(options);
        let (engine, twin) = (Engine::new(&case).model, attached(&case));
        let tree = draft();
        let (all, _) = forward(&engine, &tree, Outputs::All);
        let probabilities = probabilities(&case, &all, &tree);
        let mut sorted: Vec<f64> = probabilities.iter().copied().filter(|p| *p < 1.0).collect();
        sorted.sort_by(f64::total_cmp);
        for pair in sorted.windows(2).filter(|pair| pair[1] - pair[0] > 1e-3) {
            let threshold = 0.5 * (pair[0] + pair[1]);
            let mut is_kept: Vec<bool> = Vec::new();
            for node in tree.node_ids() {
                let parent = tree.parent(node).is_none_or(|parent| is_kept[parent.index()]);
                is_kept.push(parent && probabilities[node.index()] >= threshold);
            }
            for model in [&engine as &dyn Model, &twin] {
                let (hidden, rows) = forward(model, &tree, Outputs::Pruned(Pruning::Threshold(threshold as f32)));
                let got: Vec<bool> = tree.node_ids().map(|node| hidden.row_of(0, node).is_some()).collect();
                assert_eq!(got, is_kept, "{options:?} {threshold}");
                assert_eq!(rows, got.iter().filter(|&&kept| kept).count());
            }
        }
        for (count, model) in (1..tree.len()).flat_map(|count| [(count, &engine as &dyn Model), (count, &twin)]) {
            let (hidden, rows) = forward(model, &tree, Outputs::Pruned(Pruning::Best(count)));
            assert_eq!(rows, count, "{options:?}");
            let reach = |node: NodeId| tree.path(node).iter().map(|node| probabilities[node.index()]).product::<f64>();
            let (kept, ended): (Vec<_>, Vec<_>) = tree.node_ids().partition(|&node| hidden.row_of(0, node).is_some());
            let least = kept.into_iter().map(reach).fold(f64::INFINITY, f64::min);
            let most = ended.into_iter().map(reach).fold(0.0, f64::max);
            assert!(least >= most * (1.0 - 1e-3), "{options:?} {count}: {least} {most}");
        }
        assert!(sorted.len() > 1, "{options:?}: the draft has tokens that the early exit knows");
    }
}

/// What a pass over `tree` after some text leaves, and its number of rows.
fn forward(model: &dyn Model, tree: &TokenTree, outputs: Outputs) -> (Hidden, usize) {
    let (mut cache, mut hidden, text) = (model.new_cache(64), Hidden::new(), TokenTree::chain(&[1, 5, 9, 13]));
    model.forward(&mut [Row { tree: &text, cache: &mut cache, outputs: Outputs::None }], &mut hidden).unwrap();
    cache.commit(&text.path(text.last()));
    model.forward(&mut [Row { tree, cache: &mut cache, outputs }], &mut hidden).unwrap();
    let rows = hidden.num_rows();
    (hidden, rows)
}

/// By node: the probability of its token after its parent; 1 for the root and for tokens outside the draft vocabulary.
fn probabilities(case: &Case, hidden: &Hidden, tree: &TokenTree) -> Vec<f64> {
    let template = case.segment(0, tree.len(), 1);
    let boundary = tree.node_ids().flat_map(|node| hidden.boundary(node.index()).unwrap()).copied().collect();
    let logits = early_exit_logits(&case.base, &case.weights(), &[Segment { boundary, ..template }]).unwrap().unwrap();
    let (logits, width) = (data(logits), case.base.draft_vocab_size());
    let column = |token: TokenId| match case.draft_vocabulary {
        [] => Some(token as usize),
        tokens => tokens.iter().position(|&other| other == token),
    };
    let probability = |node: NodeId| {
        let (Some(parent), Some(column)) = (tree.parent(node), column(tree.token(node))) else { return 1.0 };
        let row: Vec<f64> = logits[parent.index() * width..][..width].iter().map(|&x| f64::from(x).exp()).collect();
        row[column] / row.iter().sum::<f64>()
    };
    tree.node_ids().map(probability).collect()
}
