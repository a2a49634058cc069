//! The streams that a whole decoder over tensors offers a drafter are those of the engine.

use burn_tensor::Device;
use forestream_burn::BurnModel;
use forestream_model::streams::Anchor;
use forestream_model::{Hidden, KvCache, Model, ModelError, NodeId, Outputs, Row, TokenId, TokenTree};

use crate::case::{CASES, Case, JOINT_CASES, NARROW_JOINT, Options};
use crate::engine::{Engine, relative_error};

/// The engine rounds keys and values of streams to half precision, and these models' changed weights too (2^-11 each).
const MAX_ERROR: f64 = 2e-3;

const NEXT: TokenId = 17;

/// The decoder with a case's adapter.
pub(crate) fn attached(case: &Case) -> BurnModel {
    let mut model = BurnModel::load(&case.checkpoint, &Device::flex()).unwrap();
    model.attach(case.adapter());
    model
}

/// A cache with a text, across a block border, and the boundary state of its last token.
fn read(model: &dyn Model) -> (KvCache, Vec<f32>) {
    let tokens: Vec<TokenId> = (0..40).map(|index| index * 97 % 320).collect();
    let (mut cache, tree, mut hidden) = (model.new_cache(96), TokenTree::chain(&tokens), Hidden::new());
    model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::Last }], &mut hidden).unwrap();
    cache.commit(&tree.path(tree.last()));
    (cache, hidden.boundary(0).unwrap().to_vec())
}

/// States of the first `num_streams` streams behind the text, and their logits.
fn deferred(model: &dyn Model, num_streams: usize) -> [Vec<f32>; 2] {
    let (mut cache, boundary) = read(model);
    let (tree, mut states, mut logits) = (TokenTree::chain(&vec![0; num_streams]), Hidden::new(), Vec::new());
    let streams = model.streams().unwrap();
    let row = Row { tree: &tree, cache: &mut cache, outputs: Outputs::All };
    streams.run(&mut [row], &[Anchor { boundary: &boundary, next_token: NEXT }], &mut states).unwrap();
    streams.stream_logits(&states, 0..num_streams, &mut logits);
    [states.states(0..num_streams).to_vec(), logits]
}

/// States of the streams of some nodes of a tree behind the text.
fn fused(model: &dyn Model) -> Vec<f32> {
    let (mut cache, _) = read(model);
    let mut tree = TokenTree::chain(&[NEXT, 8]);
    tree.push(NodeId::ROOT, 9);
    tree.push(NodeId(2), 3);
    let (mut hidden, mut states) = (Hidden::new(), Hidden::new());
    let mut row = Row { tree: &tree, cache: &mut cache, outputs: Outputs::All };
    model.forward(std::slice::from_mut(&mut row), &mut hidden).unwrap();
    model.streams().unwrap().run_fused(&mut row, &hidden, 0, &[NodeId(0), NodeId(3)], &mut states).unwrap();
    states.states(0..states.num_rows()).to_vec()
}

fn assert_alike(got: &[f32], expected: &[f32], options: &Options, what: &str) {
    let error = relative_error(got, expected);
    assert!(!got.is_empty() && error <= MAX_ERROR, "{options:?}: {what} differ by {error:.1e}");
}

#[test]
fn streams_are_those_of_the_engine() {
    for options in CASES.iter().chain(JOINT_CASES).chain([&NARROW_JOINT]) {
        let case = Case::new(options);
        let (engine, model) = (Engine::new(&case).model, attached(&case));
        for num_streams in [1, options.num_streams] {
            let expected = deferred(&engine, num_streams);
            for (got, expected) in deferred(&model, num_streams).iter().zip(&expected) {
                assert_alike(got, expected, options, "states or logits");
            }
        }
        let adapter = &case.base.adapter().streams;
        if !adapter.token_conditioning {
            assert_alike(&fused(&model), &fused(&engine), options, "states of the fused pass");
        }
        let [of_engine, of_model] = [&engine as &dyn Model, &model].map(|model| {
            let (streams, mut logits) = (model.streams().unwrap(), Vec::new());
            streams.parent_logits(&[3, 300, 3], &mut logits);
            (streams.draft_vocabulary().to_vec(), streams.num_parameters(), logits)
        });
        assert_eq!((&of_model.0, of_model.1), (&of_engine.0, of_engine.1), "{options:?}");
        match adapter.sampler_size {
            Some(_) => assert_alike(&of_model.2, &of_engine.2, options, "logits by parent"),
            None => assert!(of_model.2.is_empty() && of_engine.2.is_empty(), "{options:?}"),
        }
    }
}

#[test]
fn a_full_cache_refuses_streams() {
    let case = Case::new(&CASES[0]);
    let model = attached(&case);
    let tokens = TokenTree::chain(&[1, 2, 3]);
    let (mut cache, mut hidden) = (model.new_cache(4), Hidden::new());
    model.forward(&mut [Row { tree: &tokens, cache: &mut cache, outputs: Outputs::Last }], &mut hidden).unwrap();
    cache.commit(&tokens.path(tokens.last()));
    let chain = TokenTree::chain(&[0; 2]);
    let row = Row { tree: &chain, cache: &mut cache, outputs: Outputs::All };
    let anchor = Anchor { boundary: hidden.boundary(0).unwrap(), next_token: NEXT };
    let refused = model.streams().unwrap().run(&mut [row], &[anchor], &mut Hidden::new());
    assert!(matches!(refused, Err(ModelError::ContextFull { capacity: 4, needed: 5 })));
}
