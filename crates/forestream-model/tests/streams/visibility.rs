//! What a change of one row reaches, and what it leaves alone; and what stays of a round in the cache.

use super::*;

const NUM_STREAMS: usize = 3;

/// Tiny-llama with streams that no emitted token conditions; `change` is made to their adapter.
fn changed_model(change: impl Fn(&mut Adapter)) -> CpuModel {
    let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
    let mut model = CpuModel::load(&checkpoint, LoadOptions::default()).unwrap();
    let mut config = config(&checkpoint, NUM_STREAMS, 2);
    config.streams.token_conditioning = false;
    let mut adapter = adapter(config, checkpoint.config(), 0.5);
    change(&mut adapter);
    model.attach(adapter, &checkpoint).unwrap();
    model
}

/// By node of `tree`: the states of its main row, then of its streams, in one fused pass; and the cache after it.
fn fused(model: &CpuModel, tree: &TokenTree) -> (Vec<Vec<Vec<f32>>>, KvCache) {
    let (mut cache, mut hidden, mut streams) = (read(model, &TEXT).0, Hidden::new(), Hidden::new());
    let nodes: Vec<NodeId> = tree.node_ids().collect();
    let mut row = Row { tree, cache: &mut cache, outputs: Outputs::All };
    model.forward(std::slice::from_mut(&mut row), &mut hidden).unwrap();
    model.run_fused(&mut row, &hidden, 0, &nodes, &mut streams).unwrap();
    let of_node = |node: usize| {
        let of_streams = (node * NUM_STREAMS..(node + 1) * NUM_STREAMS).map(|row| streams.state(row).to_vec());
        std::iter::once(hidden.state(node).to_vec()).chain(of_streams).collect()
    };
    ((0..nodes.len()).map(of_node).collect(), cache)
}

/// The tree of `draft`, with `token` at `changed`.
fn with_token(changed: NodeId, token: TokenId) -> TokenTree {
    let old = draft();
    let mut tree = TokenTree::root(old.token(NodeId::ROOT));
    for node in old.node_ids().skip(1) {
        tree.push(old.parent(node).unwrap(), if node == changed { token } else { old.token(node) });
    }
    tree
}

#[test]
fn a_changed_token_reaches_its_own_descendants_alone() {
    let model = changed_model(|_| {});
    let (tree, before) = (draft(), fused(&model, &draft()).0);
    for changed in tree.node_ids().skip(1) {
        let after = fused(&model, &with_token(changed, 17)).0;
        for node in tree.node_ids() {
            let is_reached = tree.path(node).contains(&changed);
            for (row, (before, after)) in before[node.index()].iter().zip(&after[node.index()]).enumerate() {
                assert_eq!(before != after, is_reached, "row {row} of {node:?} after a change of {changed:?}");
            }
        }
    }
}

#[test]
fn a_changed_stream_reaches_neither_lower_ones_nor_main_rows() {
    let before = fused(&changed_model(|_| {}), &draft()).0;
    for changed in 1..=NUM_STREAMS {
        let change = |adapter: &mut Adapter| {
            let embeddings = adapter.tensors.get_mut("stream_embeddings").unwrap();
            let hidden_size = embeddings.len() / NUM_STREAMS;
            embeddings[(changed - 1) * hidden_size..changed * hidden_size].iter_mut().for_each(|x| *x += 0.25);
        };
        let after = fused(&changed_model(change), &draft()).0;
        for (node, (before, after)) in before.iter().zip(&after).enumerate() {
            // The main row is row 0, and stream j is row j.
            let is_reached: Vec<bool> = before.iter().zip(after).map(|(before, after)| before != after).collect();
            let expected: Vec<bool> = (0..=NUM_STREAMS).map(|row| row >= changed).collect();
            assert_eq!(is_reached, expected, "node {node} after a change of stream {changed}");
        }
    }
}

#[test]
fn a_round_leaves_the_rows_of_a_fresh_prompt() {
    let (model, tree) = (changed_model(|_| {}), draft());
    let (num_layers, num_heads) = (model.config().num_hidden_layers, model.config().num_key_value_heads);
    for node in tree.node_ids() {
        let (_, mut cache) = fused(&model, &tree);
        let path = tree.path(node);
        cache.commit(&path);
        let accepted = path.iter().map(|&node| tree.token(node));
        let text: Vec<TokenId> = TEXT.into_iter().chain(accepted).collect();
        let fresh = read(&model, &text).0;
        assert_eq!((cache.tokens(), cache.len()), (fresh.tokens(), text.len()));
        for (layer, head) in (0..num_layers).flat_map(|layer| (0..num_heads).map(move |head| (layer, head))) {
            assert_eq!(rows(&cache, layer, head), rows(&fresh, layer, head), "{node:?}, layer {layer}, head {head}");
        }
    }
}

/// Keys and values of every committed slot, as bits.
fn rows(cache: &KvCache, layer: usize, head: usize) -> Vec<Vec<u16>> {
    let of_slot = |slot: usize| {
        let (keys, values) = cache.block(slot / BLOCK_LEN, layer, head);
        let (lane, head_dim) = (slot % BLOCK_LEN, keys.len() / BLOCK_LEN);
        let key = (0..head_dim).map(|channel| keys[channel * BLOCK_LEN + lane]);
        key.chain(values[lane * head_dim..][..head_dim].iter().copied()).map(half::f16::to_bits).collect()
    };
    (0..cache.len()).map(of_slot).collect()
}
