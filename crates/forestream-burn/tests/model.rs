//! The decoder over tensors against the engine, and against itself in every shape of pass.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use burn_tensor::Device;
use forestream_burn::BurnModel;
use forestream_model::{
    Checkpoint, CpuModel, Hidden, KvCache, LoadOptions, Model, ModelError, NodeId, Outputs, Row, TokenId, TokenTree,
};

/// Both sides round keys and values to half precision alike, except where float32 noise crosses a rounding border.
const MAX_ERROR: f64 = 1e-4;

const TOKENS: [TokenId; 45] = {
    let mut tokens = [0; 45];
    let mut index = 0;
    while index < tokens.len() {
        tokens[index] = (index as TokenId * 97 + 13) % 320;
        index += 1;
    }
    tokens
};

fn for_every_model(check: impl Fn(&str, &Checkpoint, &BurnModel)) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let directories: Vec<_> = std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(directories.len() >= 7, "testdata/models has {} models", directories.len());
    for directory in directories {
        let checkpoint = Checkpoint::open(&directory).unwrap();
        let model = BurnModel::load(&checkpoint, &Device::flex()).unwrap();
        check(&directory.to_string_lossy(), &checkpoint, &model);
    }
}

/// One tree in a pass of its own: boundary states, final states, logits, of all nodes.
fn run(model: &dyn Model, cache: &mut KvCache, tree: &TokenTree) -> [Vec<f32>; 3] {
    let mut hidden = Hidden::new();
    model.forward(&mut [Row { tree, cache, outputs: Outputs::All }], &mut hidden).unwrap();
    let mut logits = Vec::new();
    model.logits(&hidden, 0..hidden.num_rows(), &mut logits);
    let boundary = (0..tree.len()).filter_map(|row| hidden.boundary(row)).flatten().copied().collect();
    [boundary, hidden.states(0..tree.len()).to_vec(), logits]
}

fn run_and_commit(model: &dyn Model, cache: &mut KvCache, tokens: &[TokenId]) -> [Vec<f32>; 3] {
    let tree = TokenTree::chain(tokens);
    let outputs = run(model, cache, &tree);
    cache.commit(&tree.path(tree.last()));
    outputs
}

#[test]
fn states_and_logits_are_those_of_the_engine() {
    for_every_model(|name, checkpoint, model| {
        let mut engine = CpuModel::load(checkpoint, LoadOptions::default()).unwrap();
        engine.keep_boundary(1);
        let mut model = model.clone();
        model.keep_boundary(1);
        let (prompt, rest) = TOKENS.split_at(29); // the tree lies across a block border of the cache
        let outputs = |model: &dyn Model| {
            let mut cache = model.new_cache(64);
            let of_prompt = run_and_commit(model, &mut cache, prompt);
            [of_prompt, run(model, &mut cache, &scattered_tree(rest))].concat()
        };
        for (got, expected) in outputs(&model).iter().zip(&outputs(&engine)) {
            let error = relative_error(got, expected);
            assert!(!got.is_empty() && error <= MAX_ERROR, "{name}: {error:.1e}");
        }
    });
}

#[test]
fn a_pass_of_any_shape_gives_the_bits_of_one_pass() {
    for_every_model(|name, _, model| {
        let [_, whole, logits] = run_and_commit(model, &mut model.new_cache(64), &TOKENS);
        for chunk_len in [1, 3, 16, 33] {
            let mut cache = model.new_cache(64);
            let chunks = TOKENS.chunks(chunk_len).map(|chunk| run_and_commit(model, &mut cache, chunk));
            let (states, chunk_logits): (Vec<_>, Vec<_>) = chunks.map(|[_, states, logits]| (states, logits)).unzip();
            assert!(states.concat() == whole && chunk_logits.concat() == logits, "{name}: chunks of {chunk_len}");
        }
        let (one, two) = (TokenTree::chain(&TOKENS[..20]), TokenTree::chain(&TOKENS[20..]));
        let alone = [&one, &two].map(|tree| run(model, &mut model.new_cache(64), tree)[1].clone());
        let (mut one_cache, mut two_cache) = (model.new_cache(64), model.new_cache(64));
        let mut hidden = Hidden::new();
        let row = |tree, cache| Row { tree, cache, outputs: Outputs::All };
        model.forward(&mut [row(&one, &mut one_cache), row(&two, &mut two_cache)], &mut hidden).unwrap();
        assert!(hidden.states(0..TOKENS.len()) == alone.concat(), "{name}: two sequences");
    });
}

/// What speculative decoding rests on: a verified branch has the bits of plain decoding, and continues with them.
#[test]
fn a_tree_gives_the_bits_of_the_chains_of_its_paths() {
    for_every_model(|name, _, model| {
        let (prompt, rest) = TOKENS.split_at(29);
        let (rest, next) = rest.split_at(10);
        let tree = scattered_tree(rest);
        let mut cache = model.new_cache(64);
        run_and_commit(model, &mut cache, prompt);
        let [_, states, _] = run(model, &mut cache, &tree);
        let width = model.config().hidden_size;
        let on_path = |node: NodeId| -> Vec<TokenId> { tree.path(node).iter().map(|&node| tree.token(node)).collect() };
        for node in tree.node_ids() {
            let mut cache = model.new_cache(64);
            let [_, chain, _] = run_and_commit(model, &mut cache, &[prompt, &on_path(node)].concat());
            assert!(states[node.index() * width..][..width] == chain[chain.len() - width..], "{name}: {node:?}");
        }
        cache.commit(&tree.path(tree.last()));
        let after_branch = run_and_commit(model, &mut cache, next);
        let mut cache = model.new_cache(64);
        run_and_commit(model, &mut cache, &[prompt, &on_path(tree.last())].concat());
        assert!(run_and_commit(model, &mut cache, next) == after_branch, "{name}");
    });
}

#[test]
fn only_the_asked_for_rows_come_out() {
    for_every_model(|name, _, model| {
        let tree = TokenTree::chain(&TOKENS[..20]);
        let all = run(model, &mut model.new_cache(64), &tree)[1].clone();
        for (outputs, expected) in [(Outputs::None, &[][..]), (Outputs::Last, &all[19 * model.config().hidden_size..])]
        {
            let (mut cache, mut hidden) = (model.new_cache(64), Hidden::new());
            model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs }], &mut hidden).unwrap();
            assert!(hidden.states(0..hidden.num_rows()) == expected, "{name}: {outputs:?}");
        }
    });
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    for_every_model(|_, _, model| {
        let mut cache = model.new_cache(3);
        run_and_commit(model, &mut cache, &[1, 2]);
        let mut said = |tokens: &[TokenId]| {
            let tree = TokenTree::chain(tokens);
            let mut row = [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }];
            model.forward(&mut row, &mut Hidden::new()).unwrap_err()
        };
        assert!(matches!(said(&[320]), ModelError::TokenOutOfRange { token: 320, vocab_size: 320 }));
        assert!(matches!(said(&[1, 2]), ModelError::ContextFull { capacity: 3, needed: 4 }));
        assert_eq!(cache.tokens(), [1, 2]);
    });
}

/// A tree whose last node lies deep, and whose paths skip over the nodes of other branches.
fn scattered_tree(tokens: &[TokenId]) -> TokenTree {
    let mut tree = TokenTree::root(tokens[0]);
    for (index, &token) in tokens.iter().enumerate().skip(1) {
        let parent = if index % 3 == 0 { index - 1 } else { index.saturating_sub(2) };
        tree.push(NodeId(parent as u32), token);
    }
    tree
}

fn relative_error(values: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(values.len(), reference.len());
    let square = |value: f64| value * value;
    let difference: f64 = values.iter().zip(reference).map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = reference.iter().map(|&value| square(value.into())).sum();
    (difference / norm).sqrt()
}
