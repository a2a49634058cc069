//! The decoder against Hugging Face transformers, and against itself in every shape of pass.
//!
//! Every folder of `testdata/models` is a tiny random checkpoint with golden logits (`cargo xtask golden`). Closeness to
//! transformers has a tolerance with a reason; equality between shapes of pass has none.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use forestream_kernels::Isa;
use forestream_kernels::formats::Format;
use forestream_model::{
    Checkpoint, CpuModel, Hidden, KvCache, LoadOptions, Model, NodeId, Outputs, Row, TokenId, TokenTree,
};

/// The two sides round keys and values to half precision alike, except where float32 noise crosses a rounding border.
const MAX_ERROR_WITH_HALF_CACHE: f64 = 1e-4;

/// What that rounding itself costs is at most 7e-4 in these models (`golden.json`).
const MAX_ERROR_WITH_FULL_CACHE: f64 = 1e-3;

struct Golden {
    name: String,
    directory: PathBuf,
    input_ids: Vec<TokenId>,
    greedy_ids: Vec<TokenId>,
    /// `[positions, vocab_size]`, keys and values in single precision.
    full_cache: Vec<f32>,
    /// The same with keys and values in half precision.
    half_cache: Vec<f32>,
}

fn all_golden() -> Vec<Golden> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let mut directories: Vec<PathBuf> = std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    let golden: Vec<Golden> = directories.into_iter().map(read_golden).collect();
    assert!(golden.len() >= 7, "testdata/models has {} models", golden.len());
    golden
}

fn read_golden(directory: PathBuf) -> Golden {
    let text = std::fs::read_to_string(directory.join("golden.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ids = |key: &str| -> Vec<TokenId> { serde_json::from_value(json[key].clone()).unwrap() };
    Golden {
        name: directory.file_name().unwrap().to_string_lossy().into_owned(),
        input_ids: ids("input_ids"),
        greedy_ids: ids("greedy_ids"),
        full_cache: read_floats(&directory.join("golden.f32")),
        half_cache: read_floats(&directory.join("golden_half_cache.f32")),
        directory,
    }
}

fn read_floats(file: &Path) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn load(golden: &Golden) -> CpuModel {
    CpuModel::load(&open(golden, None), LoadOptions::default()).unwrap()
}

fn open(golden: &Golden, format: Option<Format>) -> Checkpoint {
    let checkpoint = Checkpoint::open(&golden.directory).unwrap();
    match format {
        Some(format) => checkpoint.quantized(format).unwrap(),
        None => checkpoint,
    }
}

/// Logits of the last `outputs` of one tree in a pass of its own, `[nodes, vocab_size]`.
fn run(model: &CpuModel, cache: &mut KvCache, tree: &TokenTree, outputs: Outputs) -> Vec<f32> {
    let mut hidden = Hidden::new();
    model.forward(&mut [Row { tree, cache, outputs }], &mut hidden).unwrap();
    let mut logits = Vec::new();
    model.logits(&hidden, 0..hidden.num_rows(), &mut logits);
    logits
}

/// Runs `tokens` as a chain and commits it; logits of every token.
fn run_and_commit(model: &CpuModel, cache: &mut KvCache, tokens: &[TokenId]) -> Vec<f32> {
    let tree = TokenTree::chain(tokens);
    let logits = run(model, cache, &tree, Outputs::All);
    cache.commit(&tree.path(tree.last()));
    logits
}

fn relative_error(values: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(values.len(), reference.len());
    let square = |value: f64| value * value;
    let difference: f64 = values.iter().zip(reference).map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = reference.iter().map(|&value| square(value.into())).sum();
    (difference / norm).sqrt()
}

fn most_likely(logits: &[f32]) -> TokenId {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    best.0 as TokenId
}

#[test]
fn logits_are_those_of_transformers() {
    for golden in all_golden() {
        let model = load(&golden);
        let logits = run_and_commit(&model, &mut model.new_cache(64), &golden.input_ids);
        let with_half_cache = relative_error(&logits, &golden.half_cache);
        let with_full_cache = relative_error(&logits, &golden.full_cache);
        let name = &golden.name;
        assert!(with_half_cache < MAX_ERROR_WITH_HALF_CACHE, "{name}: {with_half_cache:.2e}");
        assert!(with_full_cache < MAX_ERROR_WITH_FULL_CACHE, "{name}: {with_full_cache:.2e}");
    }
}

#[test]
fn greedy_continuation_is_that_of_transformers() {
    for golden in all_golden() {
        let model = load(&golden);
        let mut cache = model.new_cache(64);
        let mut logits = run_and_commit(&model, &mut cache, &golden.input_ids);
        let vocab_size = model.config().vocab_size;
        let mut greedy_ids = Vec::new();
        for _ in 0..golden.greedy_ids.len() {
            let next = most_likely(&logits[logits.len() - vocab_size..]);
            greedy_ids.push(next);
            logits = run_and_commit(&model, &mut cache, &[next]);
        }
        assert_eq!(greedy_ids, golden.greedy_ids, "{}", golden.name);
    }
}

/// Every golden model with its own weights, and one of them quantized.
fn for_every_checkpoint(check: impl Fn(&Golden, &Checkpoint)) {
    let all = all_golden();
    for golden in &all {
        check(golden, &open(golden, None));
    }
    for format in [Format::Q4_0, Format::Q4_1, Format::Q8_0] {
        check(&all[0], &open(&all[0], Some(format)));
    }
}

fn for_every_model(check: impl Fn(&Golden, &CpuModel)) {
    for_every_checkpoint(|golden, checkpoint| {
        check(golden, &CpuModel::load(checkpoint, LoadOptions::default()).unwrap());
    });
}

#[test]
fn every_instruction_set_and_number_of_threads_gives_the_same_bits() {
    for_every_checkpoint(|golden, checkpoint| {
        let logits = |isa, num_threads| {
            let model = CpuModel::load(checkpoint, LoadOptions { num_threads, isa }).unwrap();
            let mut cache = model.new_cache(64);
            let (prompt, rest) = golden.input_ids.split_at(21);
            [run_and_commit(&model, &mut cache, prompt), run(&model, &mut cache, &scattered_tree(rest), Outputs::All)]
        };
        let expected = logits(Isa::PORTABLE, 1);
        for isa in Isa::available() {
            for num_threads in [1, 2, 3] {
                let name = &golden.name;
                assert!(logits(isa, num_threads) == expected, "{name}: {}, {num_threads} threads", isa.name());
            }
        }
    });
}

#[test]
fn a_prompt_in_chunks_gives_the_bits_of_one_pass() {
    for_every_model(|golden, model| {
        let whole = run_and_commit(model, &mut model.new_cache(64), &golden.input_ids);
        for chunk_len in [1, 3, 16, 33] {
            let mut cache = model.new_cache(64);
            let chunks = golden.input_ids.chunks(chunk_len);
            let logits: Vec<f32> = chunks.flat_map(|chunk| run_and_commit(model, &mut cache, chunk)).collect();
            assert!(logits == whole, "{}: chunks of {chunk_len}", golden.name);
        }
    });
}

#[test]
fn several_sequences_in_one_pass_give_the_bits_of_each_alone() {
    for_every_model(|golden, model| {
        let parts = [&golden.input_ids[..1], &golden.input_ids[1..20], &golden.input_ids[20..]];
        let trees = parts.map(TokenTree::chain);
        let alone = trees.each_ref().map(|tree| run(model, &mut model.new_cache(64), tree, Outputs::All));
        let mut caches = [0; 3].map(|_| model.new_cache(64));
        let mut rows: Vec<Row<'_>> =
            trees.iter().zip(&mut caches).map(|(tree, cache)| Row { tree, cache, outputs: Outputs::All }).collect();
        let mut hidden = Hidden::new();
        model.forward(&mut rows, &mut hidden).unwrap();
        let mut together = Vec::new();
        model.logits(&hidden, 0..hidden.num_rows(), &mut together);
        assert!(together == alone.concat(), "{}", golden.name);
    });
}

#[test]
fn a_node_of_a_tree_gives_the_bits_of_the_chain_of_its_path() {
    for_every_model(|golden, model| {
        let (prompt, rest) = golden.input_ids.split_at(29); // the tree lies across a block border of the cache
        let tree = scattered_tree(rest);
        let mut cache = model.new_cache(64);
        run_and_commit(model, &mut cache, prompt);
        let logits = run(model, &mut cache, &tree, Outputs::All);
        let vocab_size = model.config().vocab_size;
        for node in tree.node_ids() {
            let path: Vec<TokenId> = tree.path(node).iter().map(|&node| tree.token(node)).collect();
            let mut cache = model.new_cache(64);
            run_and_commit(model, &mut cache, prompt);
            let chain = run(model, &mut cache, &TokenTree::chain(&path), Outputs::Last);
            assert!(logits[node.index() * vocab_size..][..vocab_size] == chain, "{}: {node:?}", golden.name);
        }
    });
}

#[test]
fn a_committed_branch_continues_like_a_chain() {
    for_every_model(|golden, model| {
        let (prompt, rest) = golden.input_ids.split_at(29);
        let (rest, next) = rest.split_at(10);
        let tree = scattered_tree(rest);
        let mut cache = model.new_cache(64);
        run_and_commit(model, &mut cache, prompt);
        run(model, &mut cache, &tree, Outputs::All);
        let path = tree.path(tree.last());
        cache.commit(&path);
        let after_branch = run_and_commit(model, &mut cache, next);

        let accepted: Vec<TokenId> = path.iter().map(|&node| tree.token(node)).collect();
        let mut cache = model.new_cache(64);
        run_and_commit(model, &mut cache, &[prompt, &accepted].concat());
        assert!(run_and_commit(model, &mut cache, next) == after_branch, "{}", golden.name);
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
