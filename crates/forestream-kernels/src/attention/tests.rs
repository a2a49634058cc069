use super::*;

/// A cache of one head whose slot `p` holds numbers that depend on `content[p]` alone.
struct Cache {
    keys: Vec<f16>,
    values: Vec<f16>,
    head_dim: usize,
}

impl Cache {
    fn new(head_dim: usize, content: &[u32]) -> Self {
        let blocks = content.len().div_ceil(BLOCK_SLOTS);
        let mut keys = vec![f16::ZERO; blocks * head_dim * BLOCK_SLOTS];
        let mut values = keys.clone();
        for (slot, &id) in content.iter().enumerate() {
            let start = slot / BLOCK_SLOTS * head_dim * BLOCK_SLOTS;
            for channel in 0..head_dim {
                let x = |k: u32| f16::from_f32(((id * k + channel as u32 * 7) % 23) as f32 / 11.0 - 1.0);
                keys[start + channel * BLOCK_SLOTS + slot % BLOCK_SLOTS] = x(5);
                values[start + slot % BLOCK_SLOTS * head_dim + channel] = x(3);
            }
        }
        Self { keys, values, head_dim }
    }
}

impl HeadBlocks for Cache {
    fn block(&self, block_index: usize) -> (&[f16], &[f16]) {
        let len = self.head_dim * BLOCK_SLOTS;
        (&self.keys[block_index * len..][..len], &self.values[block_index * len..][..len])
    }
}

fn queries(count: usize, head_dim: usize) -> Vec<f32> {
    (0..count * head_dim).map(|i| ((i * 13 % 31) as f32 - 15.0) / 20.0).collect()
}

const fn seen(contiguous: usize) -> Visible {
    Visible { contiguous, first_scattered: 0, num_scattered: 0 }
}

fn run(isa: Isa, cache: &Cache, queries: &[f32], visible: &[Visible], scattered: &[u32]) -> Vec<f32> {
    let mut output = vec![f32::NAN; queries.len()];
    let attention = Attention { queries, head_dim: cache.head_dim, visible, scattered, blocks: cache };
    attention.run(isa, &mut AttentionScratch::default(), &mut output);
    output
}

#[test]
fn attention_matches_its_formula_on_every_instruction_set() {
    for (head_dim, len) in [(8, 1), (8, 77), (20, 100), (64, 5), (64, 77), (80, 64), (128, 100)] {
        let content: Vec<u32> = (0..len).collect();
        let cache = Cache::new(head_dim, &content);
        let visible = [seen(len as usize)]; // all queries are of one node
        // Groups of every size, alone and after whole ones.
        for num_queries in [1, 2, 3, 4, 5, 6, 7, 14] {
            let queries = queries(num_queries, head_dim);
            let portable = run(Isa::PORTABLE, &cache, &queries, &visible, &[]);
            for isa in Isa::available() {
                let got = run(isa, &cache, &queries, &visible, &[]);
                assert_eq!(got, portable, "{} {head_dim} {len} {num_queries}", isa.name());
            }
            for (query, got) in queries.chunks(head_dim).zip(portable.chunks(head_dim)) {
                for (got, exact) in got.iter().zip(formula(&cache, query, len as usize)) {
                    assert!((f64::from(*got) - exact).abs() < 1e-6, "{got}, not {exact}");
                }
            }
        }
    }
}

fn formula(cache: &Cache, query: &[f32], len: usize) -> Vec<f64> {
    let head_dim = query.len();
    let key = |p: usize, c: usize| cache.block(p / BLOCK_SLOTS).0[c * BLOCK_SLOTS + p % BLOCK_SLOTS].to_f64();
    let value = |p: usize, c: usize| cache.block(p / BLOCK_SLOTS).1[p % BLOCK_SLOTS * head_dim + c].to_f64();
    let score = |p: usize| (0..head_dim).map(|c| f64::from(query[c]) * key(p, c)).sum::<f64>();
    let weights: Vec<f64> = (0..len).map(|p| score(p).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..head_dim).map(|c| (0..len).map(|p| weights[p] * value(p, c)).sum::<f64>() / sum).collect()
}

#[test]
fn a_key_that_is_nan_shows_in_every_query_that_sees_it() {
    let (head_dim, len) = (64, 77);
    let content: Vec<u32> = (0..len).collect();
    let clean = Cache::new(head_dim, &content);
    let queries = queries(3, head_dim);
    let visible = [seen(len as usize), seen(40), seen(len as usize)];
    let expected = run(Isa::PORTABLE, &clean, &queries, &visible, &[]);
    for slot in [40, 41, 63, 64, 76] {
        let mut cache = Cache::new(head_dim, &content);
        cache.keys[slot / BLOCK_SLOTS * head_dim * BLOCK_SLOTS + slot % BLOCK_SLOTS] = f16::NAN;
        for isa in Isa::available() {
            let got = run(isa, &cache, &queries, &visible, &[]);
            let [before, others, after] = [0, 1, 2].map(|node| &got[node * head_dim..(node + 1) * head_dim]);
            assert!(before.iter().chain(after).all(|x| x.is_nan()), "slot {slot} on {}", isa.name());
            assert_eq!(others, &expected[head_dim..2 * head_dim], "slot {slot} on {}", isa.name());
        }
    }
}

#[test]
fn a_tree_node_gets_the_bits_of_its_path_in_a_chain() {
    for head_dim in [20, 64] {
        check_a_path_among_others(head_dim);
    }
}

fn check_a_path_among_others(head_dim: usize) {
    // The same path, once as slots 0..47 and once with its last four keys scattered among other nodes.
    let path: Vec<u32> = (100..147).collect();
    let mut scattered = path[..43].to_vec();
    scattered.extend([7, path[43], 8, 9, path[44], path[45], 10, 11, path[46], 12]);
    let slots = [44, 47, 48, 51];
    let query = queries(1, head_dim);
    for isa in Isa::available() {
        let chain = run(isa, &Cache::new(head_dim, &path), &query, &[seen(47)], &[]);
        let node = Visible { contiguous: 43, first_scattered: 0, num_scattered: 4 };
        for num_others in [2, GROUP_QUERIES] {
            let all = [query.clone(), queries(num_others, head_dim)].concat();
            let visible = [vec![node], vec![seen(50); num_others]].concat();
            let tree = run(isa, &Cache::new(head_dim, &scattered), &all, &visible, &slots);
            assert_eq!(tree[..head_dim], chain, "{} among {num_others}", isa.name());
            assert_ne!(tree[head_dim..2 * head_dim], chain);
        }
    }
}

#[test]
fn a_node_gets_the_same_bits_alone_and_among_others() {
    let (head_dim, per_node) = (64, 3);
    let content: Vec<u32> = (0..100).collect();
    let cache = Cache::new(head_dim, &content);
    // What all see ends within a block, at its end, or before the first slot; some end in later blocks.
    for lens in [[40, 41, 42, 43, 44], [32, 70, 33, 64, 100], [1, 31, 97, 96, 95]] {
        let visible = lens.map(seen);
        let queries = queries(lens.len() * per_node, head_dim);
        for isa in Isa::available() {
            let together = run(isa, &cache, &queries, &visible, &[]);
            let rows = per_node * head_dim;
            for (node, (queries, got)) in queries.chunks(rows).zip(together.chunks(rows)).enumerate() {
                let alone = run(isa, &cache, queries, &visible[node..=node], &[]);
                assert_eq!(got, alone, "{} node {node} of {lens:?}", isa.name());
            }
        }
    }
}
