//! Streams on the CPU: what they may see, that they leave no trace, and that adapters on disk are checked.
//!
//! The numbers are held against an independent implementation in `forestream-burn`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod adapter_files;
mod merged;
mod visibility;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use forestream_model::streams::{
    ADAPTER_FORMAT_VERSION, Adapter, AdapterConfig, Anchor, BaseModel, LoraConfig, MainLoraConfig, Projection,
    StreamConfig, StreamIdentity, StreamPosition, Streams, TrainingMode,
};
use forestream_model::{
    BLOCK_LEN, Checkpoint, CpuModel, DecoderConfig, Format, Hidden, Isa, KvCache, LoadOptions, Model, NodeId, Outputs,
    Pruning, Row, TokenId, TokenTree,
};

const MODELS: [&str; 3] = ["tiny-llama", "tiny-qwen2", "tiny-qwen3"];
const TEXT: [TokenId; 9] = [1, 5, 9, 13, 2, 7, 3, 11, 4];
const NEXT: TokenId = 6;

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
}

fn config(checkpoint: &Checkpoint, num_streams: usize, num_msa_layers: usize) -> AdapterConfig {
    AdapterConfig {
        format_version: ADAPTER_FORMAT_VERSION,
        base_model: BaseModel {
            name: "tiny".to_owned(),
            fingerprint: checkpoint.fingerprint(),
            architecture: checkpoint.config().architecture.clone(),
        },
        mode: TrainingMode::Lossless,
        streams: StreamConfig {
            num_streams,
            num_msa_layers,
            position: StreamPosition::Following,
            identity: StreamIdentity::Embedding,
            token_conditioning: true,
            sampler_size: Some(8),
            intermediate_size: None,
            draft_vocab_size: Some(20),
            early_exit_rank: None,
        },
        lora: Some(LoraConfig { rank: 2, alpha: 4.0, target_modules: Projection::ALL.to_vec() }),
        main_lora: None,
        calibration: Vec::new(),
    }
}

/// An adapter whose numbers are small multiples of `scale`; 0 changes nothing.
fn adapter(config: AdapterConfig, base: &DecoderConfig, scale: f32) -> Adapter {
    let mut noise = 1_u32;
    let mut tensors = BTreeMap::new();
    for spec in config.tensors(base) {
        let values = (0..spec.shape[0] * spec.shape[1]).map(|_| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            scale * ((noise >> 20) as f32 / 2048.0 - 1.0)
        });
        tensors.insert(spec.name, values.collect());
    }
    let size = config.streams.draft_vocab_size.unwrap_or(0) as TokenId;
    let draft_vocabulary = (0..size).map(|index| (index * 3 + 1) % size).collect();
    let last = |size: usize| (base.intermediate_size as u32 - size as u32..base.intermediate_size as u32).collect();
    let kept = config.streams.intermediate_size.map(last);
    let inner_features = kept.map_or(Vec::new(), |kept| vec![kept; config.streams.num_msa_layers]);
    Adapter { config, tensors, draft_vocabulary, inner_features }
}

fn model(name: &str, num_streams: usize, num_msa_layers: usize, scale: f32, options: LoadOptions) -> CpuModel {
    let checkpoint = Checkpoint::open(&directory(name)).unwrap();
    let mut model = CpuModel::load(&checkpoint, options).unwrap();
    let config = config(&checkpoint, num_streams, num_msa_layers);
    model.attach(adapter(config, checkpoint.config(), scale), &checkpoint).unwrap();
    model
}

/// Streams that value rotation alone tells apart.
fn turned_model(num_streams: usize, angle: f32) -> CpuModel {
    let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
    let mut model = CpuModel::load(&checkpoint, LoadOptions::default()).unwrap();
    let mut config = config(&checkpoint, num_streams, 2);
    config.streams.position = StreamPosition::Anchor;
    config.streams.identity = StreamIdentity::ValueRotation { angle };
    model.attach(adapter(config, checkpoint.config(), 0.5), &checkpoint).unwrap();
    model
}

/// A cache with `text`, and the boundary state of its last token.
fn read(model: &CpuModel, text: &[TokenId]) -> (KvCache, Vec<f32>) {
    let (mut cache, mut hidden, tree) = (model.new_cache(64), Hidden::new(), TokenTree::chain(text));
    model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::Last }], &mut hidden).unwrap();
    cache.commit(&tree.path(tree.last()));
    let boundary = hidden.boundary(0).unwrap().to_vec();
    (cache, boundary)
}

/// States of the first `num_streams` streams behind each of `texts`, all in one pass.
fn states(model: &CpuModel, texts: &[&[TokenId]], num_streams: usize) -> Vec<Vec<f32>> {
    let texts: Vec<_> = texts.iter().map(|&text| (text, NEXT, num_streams)).collect();
    states_before(model, &texts)
}

/// The same, each text with the token that was emitted after it, and its number of streams.
fn states_before(model: &CpuModel, texts: &[(&[TokenId], TokenId, usize)]) -> Vec<Vec<f32>> {
    let mut read: Vec<_> = texts.iter().map(|(text, ..)| read(model, text)).collect();
    let chains: Vec<_> = texts.iter().map(|&(.., num_streams)| TokenTree::chain(&vec![0; num_streams])).collect();
    let (mut rows, mut anchors) = (Vec::new(), Vec::new());
    for (((cache, boundary), tree), &(_, next_token, _)) in read.iter_mut().zip(&chains).zip(texts) {
        rows.push(Row { tree, cache, outputs: Outputs::All });
        anchors.push(Anchor { boundary, next_token });
    }
    let mut hidden = Hidden::new();
    model.run(&mut rows, &anchors, &mut hidden).unwrap();
    (0..hidden.num_rows()).map(|row| hidden.state(row).to_vec()).collect()
}

#[test]
fn a_stream_without_changes_is_a_main_row() {
    for name in MODELS {
        let checkpoint = Checkpoint::open(&directory(name)).unwrap();
        let num_layers = checkpoint.config().num_hidden_layers;
        let model = model(name, 3, num_layers, 0.0, LoadOptions::default());
        // From the first layer on, with nothing added, stream j is the last token again, j positions later.
        let expected = {
            let (mut cache, _) = read(&model, &TEXT);
            let (mut hidden, tree) = (Hidden::new(), TokenTree::chain(&[TEXT[8]; 3]));
            model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
            hidden.states(0..3).to_vec()
        };
        assert_eq!(states(&model, &[&TEXT], 3).concat(), expected, "{name}");
    }
}

#[test]
fn narrow_streams_that_keep_all_are_wide_ones() {
    for name in MODELS {
        let checkpoint = Checkpoint::open(&directory(name)).unwrap();
        let run = |size: Option<usize>| {
            let mut model = CpuModel::load(&checkpoint, LoadOptions::default()).unwrap();
            let mut config = config(&checkpoint, 3, 2);
            config.streams.intermediate_size = size;
            model.attach(adapter(config, checkpoint.config(), 0.3), &checkpoint).unwrap();
            states(&model, &[&TEXT], 3)
        };
        let inner = checkpoint.config().intermediate_size;
        assert_eq!(run(Some(inner)), run(None), "{name}");
        assert_ne!(run(Some(inner / 2)), run(None), "{name}");
    }
}

/// An adapter with a task in all layers; its streams add nothing of their own.
fn task_adapter(checkpoint: &Checkpoint) -> Adapter {
    let base = checkpoint.config();
    let lora = LoraConfig { rank: 2, alpha: 4.0, target_modules: Projection::ALL.to_vec() };
    let num_layers = base.num_hidden_layers;
    let joint = AdapterConfig {
        mode: TrainingMode::Joint,
        main_lora: Some(MainLoraConfig { num_layers, lora }),
        ..config(checkpoint, 3, num_layers)
    };
    let mut task = adapter(joint, base, 0.3);
    for (name, values) in &mut task.tensors {
        if !name.starts_with("main.") {
            values.fill(0.0);
        }
    }
    task
}

#[test]
fn a_task_changes_main_rows_and_the_streams_above_them() {
    let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
    let task = task_adapter(&checkpoint);
    let mut model = CpuModel::load(&checkpoint, LoadOptions::default()).unwrap();
    let logits = |model: &CpuModel| {
        let (mut cache, mut hidden, tree) = (model.new_cache(64), Hidden::new(), TokenTree::chain(&[TEXT[8]; 3]));
        let text = TokenTree::chain(&TEXT);
        model.forward(&mut [Row { tree: &text, cache: &mut cache, outputs: Outputs::None }], &mut hidden).unwrap();
        cache.commit(&text.path(text.last()));
        model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
        hidden.states(0..3).to_vec()
    };
    let before = logits(&model);
    model.attach(task, &checkpoint).unwrap();
    let after = logits(&model);
    assert_ne!(after, before);
    // Main rows carry the changes beside the base's weights, streams in their own: alike up to rounding.
    for (stream, main) in states(&model, &[&TEXT], 3).concat().iter().zip(&after) {
        assert!((stream - main).abs() < 1e-4, "{stream} {main}");
    }
}

#[test]
fn main_rows_with_a_task_depend_on_neither_company_nor_threads() {
    for format in [Format::F32, Format::Q8_0] {
        let model = |num_threads| {
            let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
            let task = task_adapter(&checkpoint);
            let checkpoint = checkpoint.quantized(format).unwrap();
            let options = LoadOptions { num_threads, ..LoadOptions::default() };
            let mut model = CpuModel::load(&checkpoint, options).unwrap();
            model.attach(task, &checkpoint).unwrap();
            model
        };
        let read_in_chunks = |model: &CpuModel, len: usize| {
            let (mut cache, mut hidden, mut states) = (model.new_cache(64), Hidden::new(), Vec::new());
            for tokens in TEXT.chunks(len) {
                let tree = TokenTree::chain(tokens);
                model
                    .forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden)
                    .unwrap();
                cache.commit(&tree.path(tree.last()));
                states.extend_from_slice(hidden.states(0..tokens.len()));
            }
            states
        };
        let expected = read_in_chunks(&model(1), 1);
        for num_threads in [1, 3] {
            for len in [2, 5, TEXT.len()] {
                assert_eq!(
                    read_in_chunks(&model(num_threads), len),
                    expected,
                    "{format}, {num_threads} threads, {len}"
                );
            }
        }
    }
}

#[test]
fn a_stream_sees_lower_streams_of_its_own_position_alone() {
    for name in MODELS {
        let model = model(name, 4, 2, 0.5, LoadOptions::default());
        let all = states(&model, &[&TEXT], 4);
        for num_streams in 1..4 {
            assert_eq!(states(&model, &[&TEXT], num_streams), all[..num_streams], "{name}");
        }
        assert_ne!(all[0], all[1]);
        let together = states(&model, &[&TEXT[..4], &TEXT, &TEXT[3..]], 4);
        assert_eq!(together[4..8], all, "{name}: company in a pass changes nothing");
    }
}

#[test]
fn the_rotation_of_values_tells_streams_apart() {
    let of_angle = |angle| states(&turned_model(4, angle), &[&TEXT], 4);
    let (still, turned) = (of_angle(0.0), of_angle(0.35));
    for stream in 0..4 {
        assert_ne!(still[stream], turned[stream], "stream {stream} turns");
        assert!(turned[..stream].iter().all(|lower| *lower != turned[stream]), "stream {stream} is itself");
    }
    let alone = states(&turned_model(1, 0.7), &[&TEXT], 1);
    assert_ne!(alone[0], turned[0], "the angle counts");
    let together = states(&turned_model(4, 0.35), &[&TEXT[..4], &TEXT, &TEXT[3..]], 4);
    assert_eq!(together[4..8], turned, "company in a pass changes nothing");
    assert_eq!(states(&turned_model(4, 0.35), &[&TEXT], 2), turned[..2], "fewer streams are the first ones");
}

#[test]
fn each_sequence_runs_as_many_streams_as_it_asks_for() {
    let learned = model("tiny-llama", 4, 2, 0.5, LoadOptions::default());
    for model in [learned, turned_model(4, 0.35)] {
        let texts = [(&TEXT[..4], NEXT, 2), (&TEXT[..], 8, 4), (&TEXT[3..], NEXT, 1), (&TEXT[..2], 3, 3)];
        let alone = texts.map(|text| states_before(&model, &[text])).concat();
        assert_eq!(alone.len(), 10);
        assert_eq!(states_before(&model, &texts), alone);
    }
}

/// A tree with a chain, branches, and branches of branches.
fn draft() -> TokenTree {
    let mut tree = TokenTree::chain(&[NEXT, 8]);
    let mut nodes = vec![NodeId::ROOT, NodeId(1)];
    for (parent, token) in [(0, 9), (1, 3), (2, 5), (2, 8), (4, 1), (3, 2)] {
        nodes.push(tree.push(nodes[parent], token));
    }
    tree
}

#[test]
fn the_fused_pass_gives_the_states_of_the_deferred_one() {
    let (learned, turned) = (StreamIdentity::Embedding, StreamIdentity::ValueRotation { angle: 0.35 });
    for (name, position, identity) in [
        ("tiny-llama", StreamPosition::Following, learned),
        ("tiny-llama", StreamPosition::Anchor, learned),
        ("tiny-llama", StreamPosition::Anchor, turned),
        ("tiny-qwen2", StreamPosition::Following, learned),
        ("tiny-qwen2", StreamPosition::Following, turned),
        ("tiny-qwen3", StreamPosition::Following, learned),
    ] {
        for num_streams in [1, 3, 4] {
            let checkpoint = Checkpoint::open(&directory(name)).unwrap();
            let mut model = CpuModel::load(&checkpoint, LoadOptions::default()).unwrap();
            let mut config = config(&checkpoint, num_streams, 2);
            config.streams = StreamConfig { position, identity, token_conditioning: false, ..config.streams };
            model.attach(adapter(config, checkpoint.config(), 0.5), &checkpoint).unwrap();
            for text in [&TEXT[..1], &TEXT] {
                let tree = draft();
                let (mut cache, _) = read(&model, text);
                let (mut hidden, mut fused) = (Hidden::new(), Hidden::new());
                let nodes: Vec<NodeId> = tree.node_ids().filter(|node| node.0 != 4).collect(); // one was pruned
                let mut row = Row { tree: &tree, cache: &mut cache, outputs: Outputs::All };
                model.forward(std::slice::from_mut(&mut row), &mut hidden).unwrap();
                model.run_fused(&mut row, &hidden, 0, &nodes, &mut fused).unwrap();
                for (index, &node) in nodes.iter().enumerate() {
                    let deferred = deferred(&model, text, &tree, node, num_streams);
                    let rows = index * num_streams..(index + 1) * num_streams;
                    assert_eq!(fused.states(rows), deferred, "{name} {position:?} {identity:?} {num_streams} {node:?}");
                }
            }
        }
    }
}

/// States of the streams of `node` after its path is accepted.
fn deferred(model: &CpuModel, text: &[TokenId], tree: &TokenTree, node: NodeId, num_streams: usize) -> Vec<f32> {
    let (mut cache, mut hidden) = (read(model, text).0, Hidden::new());
    model.forward(&mut [Row { tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
    cache.commit(&tree.path(node));
    let boundary = hidden.boundary(hidden.row_of(0, node).unwrap()).unwrap().to_vec();
    let (chain, mut states) = (TokenTree::chain(&vec![0; num_streams]), Hidden::new());
    let row = Row { tree: &chain, cache: &mut cache, outputs: Outputs::All };
    model.run(&mut [row], &[Anchor { boundary: &boundary, next_token: NEXT }], &mut states).unwrap();
    states.states(0..num_streams).to_vec()
}

#[test]
fn the_early_exit_ends_nodes_and_changes_no_other() {
    for (name, num_msa_layers) in [("tiny-llama", 1), ("tiny-llama", 2), ("tiny-qwen2", 1), ("tiny-qwen3", 1)] {
        let checkpoint = Checkpoint::open(&directory(name)).unwrap();
        let mut model = CpuModel::load(&checkpoint, LoadOptions::default()).unwrap();
        let mut config = config(&checkpoint, 3, num_msa_layers);
        config.streams.early_exit_rank = Some(2);
        model.attach(adapter(config, checkpoint.config(), 0.5), &checkpoint).unwrap();
        let (tree, other) = (draft(), TokenTree::chain(&[4, 4, 2]));
        let run = |threshold: f32, path: &[NodeId]| {
            let (mut cache, mut second, mut hidden) =
                (read(&model, &TEXT).0, read(&model, &TEXT[..4]).0, Hidden::new());
            let outputs = Outputs::Pruned(Pruning::Threshold(threshold));
            let mut rows = [
                Row { tree: &tree, cache: &mut cache, outputs },
                Row { tree: &other, cache: &mut second, outputs: Outputs::All },
            ];
            model.forward(&mut rows, &mut hidden).unwrap();
            let states = |row: usize| (hidden.state(row).to_vec(), hidden.boundary(row).unwrap().to_vec());
            let first: Vec<_> = tree.node_ids().map(|node| hidden.row_of(0, node).map(states)).collect();
            let company: Vec<_> = other.node_ids().map(|node| hidden.row_of(1, node).map(states)).collect();
            cache.commit(path);
            let next = TokenTree::root(2);
            let row = Row { tree: &next, cache: &mut cache, outputs: Outputs::All };
            model.forward(&mut [row], &mut hidden).unwrap();
            (first, company, hidden.state(0).to_vec())
        };
        let mut num_kept = Vec::new();
        for threshold in (0..=20).rev().map(|halves| 0.1_f32.powf(0.5 * halves as f32)) {
            let (kept, company, _) = run(threshold, &[NodeId::ROOT]);
            let deepest = tree.node_ids().filter(|node| kept[node.index()].is_some()).last().unwrap();
            let path = tree.path(deepest);
            let (all, all_company, after_all) = run(f32::MIN_POSITIVE, &path);
            assert_eq!(company, all_company, "{name} {threshold}");
            assert_eq!(run(threshold, &path).2, after_all, "{name} {threshold}: the cache keeps what was accepted");
            for node in tree.node_ids().filter(|node| kept[node.index()].is_some()) {
                assert_eq!(kept[node.index()], all[node.index()], "{name} {threshold} {node:?}");
                let parent = tree.parent(node).map_or(0, NodeId::index);
                assert!(kept[parent].is_some(), "{name} {threshold} {node:?}: what follows a pruned node is pruned");
            }
            num_kept.push(kept.iter().flatten().count());
        }
        assert!(num_kept.is_sorted_by(|a, b| a >= b), "{name}: {num_kept:?}");
        assert_eq!(num_kept[20], 1, "the root stays");
        assert!(num_kept.iter().any(|kept| (2..tree.len()).contains(kept)), "{name}: {num_kept:?}");
    }
}

#[test]
fn fused_streams_leave_the_tree_to_be_committed() {
    let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
    let mut model = CpuModel::load(&checkpoint, LoadOptions::default()).unwrap();
    let mut config = config(&checkpoint, 4, 2);
    config.streams.token_conditioning = false;
    model.attach(adapter(config, checkpoint.config(), 0.5), &checkpoint).unwrap();
    let tree = draft();
    let next = TokenTree::root(2);
    let after = |is_fused: bool| {
        let (mut cache, mut hidden) = (read(&model, &TEXT).0, Hidden::new());
        let mut row = Row { tree: &tree, cache: &mut cache, outputs: Outputs::All };
        model.forward(std::slice::from_mut(&mut row), &mut hidden).unwrap();
        if is_fused {
            let nodes: Vec<NodeId> = tree.node_ids().collect();
            model.run_fused(&mut row, &hidden, 0, &nodes, &mut Hidden::new()).unwrap();
        }
        cache.commit(&tree.path(NodeId(6)));
        model.forward(&mut [Row { tree: &next, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
        hidden.state(0).to_vec()
    };
    assert_eq!(after(true), after(false));
}

#[test]
fn each_sequence_is_told_its_own_next_token() {
    let model = model("tiny-llama", 4, 2, 0.5, LoadOptions::default());
    let texts: [(&[TokenId], TokenId, usize); 3] = [(&TEXT, NEXT, 4), (&TEXT, NEXT + 1, 4), (&TEXT[..5], NEXT + 2, 4)];
    let together = states_before(&model, &texts);
    assert_eq!(together, texts.map(|text| states_before(&model, &[text])).concat());
    assert_ne!(together[..4], together[4..8], "the same text before another token");
}

#[test]
fn threads_and_instruction_sets_give_the_same_streams() {
    let reference = states(&model("tiny-llama", 4, 2, 0.5, LoadOptions::default()), &[&TEXT], 4);
    for isa in Isa::available() {
        for num_threads in [1, 2, 3] {
            let model = model("tiny-llama", 4, 2, 0.5, LoadOptions { num_threads, isa });
            assert_eq!(states(&model, &[&TEXT], 4), reference, "{} on {num_threads} threads", isa.name());
        }
    }
}

#[test]
fn streams_leave_no_trace_in_the_cache() {
    leave_no_trace(&model("tiny-llama", 4, 2, 0.5, LoadOptions::default()));
    leave_no_trace(&turned_model(4, 0.35));
}

fn leave_no_trace(model: &CpuModel) {
    let mut tree = TokenTree::root(NEXT);
    tree.push(NodeId::ROOT, 8);
    tree.push(NodeId::ROOT, 9);
    let logits = |with_streams: bool| {
        let (mut cache, boundary) = read(model, &TEXT);
        let mut hidden = Hidden::new();
        if with_streams {
            let chain = TokenTree::chain(&[0; 4]);
            let row = Row { tree: &chain, cache: &mut cache, outputs: Outputs::All };
            model.run(&mut [row], &[Anchor { boundary: &boundary, next_token: NEXT }], &mut hidden).unwrap();
            assert_eq!(cache.len(), TEXT.len());
        }
        model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
        cache.commit(&[NodeId::ROOT, NodeId(2)]);
        model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
        let mut logits = Vec::new();
        model.logits(&hidden, 0..3, &mut logits);
        logits
    };
    assert_eq!(logits(true), logits(false));
}

#[test]
fn proposals_depend_on_token_and_parent() {
    let model = model("tiny-llama", 2, 2, 0.5, LoadOptions::default());
    assert_eq!(model.draft_vocabulary().len(), 20);
    let (mut cache, boundary) = read(&model, &TEXT);
    let chain = TokenTree::chain(&[0; 2]);
    let mut stream_logits = |next_token| {
        let (mut hidden, mut logits) = (Hidden::new(), Vec::new());
        let row = Row { tree: &chain, cache: &mut cache, outputs: Outputs::All };
        model.run(&mut [row], &[Anchor { boundary: &boundary, next_token }], &mut hidden).unwrap();
        model.stream_logits(&hidden, 0..2, &mut logits);
        assert_eq!(logits.len(), 40);
        logits
    };
    assert_ne!(stream_logits(6), stream_logits(7));
    let mut parents = Vec::new();
    model.parent_logits(&[3, 4, 3], &mut parents);
    assert_eq!(parents.len(), 60);
    assert_eq!(parents[..20], parents[40..]);
    assert_ne!(parents[..20], parents[20..40]);
}

#[test]
fn a_full_cache_refuses_streams_and_stays_as_it_was() {
    let model = model("tiny-llama", 4, 2, 0.5, LoadOptions::default());
    let (mut cache, mut hidden, tree) = (model.new_cache(11), Hidden::new(), TokenTree::chain(&TEXT));
    model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::Last }], &mut hidden).unwrap();
    cache.commit(&tree.path(tree.last()));
    let boundary = hidden.boundary(0).unwrap().to_vec();
    let chain = TokenTree::chain(&[0; 4]);
    let row = Row { tree: &chain, cache: &mut cache, outputs: Outputs::All };
    let anchor = Anchor { boundary: &boundary, next_token: NEXT };
    assert!(model.run(&mut [row], &[anchor], &mut Hidden::new()).is_err());
    assert_eq!((cache.len(), cache.num_provisional()), (TEXT.len(), 0));
}

#[test]
fn an_adapter_survives_the_disk_in_half_precision() {
    let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
    let (base, fingerprint) = (checkpoint.config(), checkpoint.fingerprint());
    let saved = adapter(config(&checkpoint, 4, 2), base, 0.5);
    let folder = tempfile::tempdir().unwrap();
    saved.save(folder.path(), base).unwrap();
    let read = Adapter::open(folder.path(), base, &fingerprint).unwrap();
    assert_eq!((&read.config, &read.draft_vocabulary), (&saved.config, &saved.draft_vocabulary));
    for (name, values) in &saved.tensors {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 0.5 / 2048.0;
        assert!(values.iter().zip(&read.tensors[name]).all(close), "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    let parameters: usize = saved.tensors.values().map(Vec::len).sum();
    assert_eq!(saved.config.num_parameters(base), parameters);
}

#[test]
fn an_adapter_without_a_trained_tensor_survives_the_disk_and_drafts() {
    let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
    let (base, fingerprint) = (checkpoint.config(), checkpoint.fingerprint());
    let mut config = AdapterConfig { lora: None, ..config(&checkpoint, 3, 2) };
    config.streams = StreamConfig {
        identity: StreamIdentity::ValueRotation { angle: 0.1 },
        token_conditioning: false,
        sampler_size: None,
        intermediate_size: None,
        draft_vocab_size: None,
        ..config.streams
    };
    assert_eq!((config.tensors(base), config.num_parameters(base)), (Vec::new(), 0));
    let saved = adapter(config, base, 0.5);
    let folder = tempfile::tempdir().unwrap();
    saved.save(folder.path(), base).unwrap();
    let read = Adapter::open(folder.path(), base, &fingerprint).unwrap();
    assert_eq!(read, saved);
    let mut model = CpuModel::load(&checkpoint, LoadOptions::default()).unwrap();
    model.attach(read, &checkpoint).unwrap();
    assert_eq!((Streams::num_parameters(&model), model.draft_vocabulary().len()), (0, base.vocab_size));
    let states = states(&model, &[&TEXT], 3);
    assert!(states[0] != states[1] && states[1] != states[2]);
}

#[test]
fn what_tells_streams_apart_is_an_embedding_where_the_file_does_not_say() {
    let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
    let mut config = config(&checkpoint, 3, 2);
    let json = serde_json::to_string(&config).unwrap();
    assert!(!json.contains("identity"), "files of adapters with embeddings stay as they were: {json}");
    assert_eq!(Adapter::parse_config(Path::new("adapter"), json.as_bytes()).unwrap(), config);
    config.streams.identity = StreamIdentity::ValueRotation { angle: 0.1 };
    let json = serde_json::to_string(&config).unwrap();
    assert!(json.contains(r#""identity":{"value_rotation":{"angle":0.1}}"#), "{json}");
    assert_eq!(Adapter::parse_config(Path::new("adapter"), json.as_bytes()).unwrap(), config);
    config.streams.identity = StreamIdentity::ValueRotation { angle: 0.6 };
    assert!(config.validate(checkpoint.config()).unwrap_err().contains("from 0 to 0.5235988"));
}

#[test]
fn the_paper_counts_are_reproduced() {
    let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
    let base = DecoderConfig { hidden_size: 4096, num_hidden_layers: 32, ..checkpoint.config().clone() };
    let base = DecoderConfig { num_attention_heads: 32, num_key_value_heads: 32, head_dim: 128, ..base };
    let plain = StreamConfig {
        num_streams: 3,
        num_msa_layers: 4,
        position: StreamPosition::Following,
        identity: StreamIdentity::Embedding,
        token_conditioning: false,
        sampler_size: None,
        intermediate_size: None,
        draft_vocab_size: None,
        early_exit_rank: None,
    };
    let lora = LoraConfig { rank: 8, alpha: 16.0, target_modules: vec![Projection::QProj, Projection::VProj] };
    let lossless = AdapterConfig { streams: plain.clone(), lora: Some(lora), ..config(&checkpoint, 3, 4) };
    assert_eq!(lossless.num_parameters(&base), 536_576);
    // The paper's table of applications: four stream embeddings and an early exit of rank 8, without low-rank changes.
    let application = StreamConfig { num_streams: 4, early_exit_rank: Some(8), ..plain };
    let application = AdapterConfig { streams: application, lora: None, ..config(&checkpoint, 4, 4) };
    assert_eq!(application.num_parameters(&base), 81_920);
    assert_eq!(application.num_parameters(&DecoderConfig { hidden_size: 3072, ..base }), 61_440);
}
