//! Attention of tree nodes over a block-wise half-precision cache.
//!
//! Canonical order of one query: its keys are the visible slots in path order (committed positions, then ancestors from
//! the root down). Each score is a sequential sum over channels; the softmax's sum runs in 16 lanes over the key's index
//! in that order and is folded once; each output channel is a sequential sum over keys. The order depends on the path
//! alone, so a node gets the same bits in a tree, in a chain, and in any chunking of the prompt. All queries of a group
//! share one sweep over the cache: a block is widened once and used by all.

use half::f16;

use crate::math::exp;
use crate::simd::{Isa, LANES, Simd, dispatch, fold_sum};

/// Slots per cache block.
pub const BLOCK_SLOTS: usize = 32;

/// The slots that a node may see, in path order: `0..contiguous`, then `num_scattered` of [`Attention::scattered`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visible {
    /// Slots `0..contiguous` come first.
    pub contiguous: usize,
    /// Where the node's further slots start in [`Attention::scattered`].
    pub first_scattered: usize,
    /// How many they are.
    pub num_scattered: usize,
}

impl Visible {
    /// Number of keys.
    fn num_keys(self) -> usize {
        self.contiguous + self.num_scattered
    }
}

/// The cache of one key/value head.
pub trait HeadBlocks {
    /// Keys, `[head_dim, 32]`, and values, `[32, head_dim]`, of a block.
    fn block(&self, block_index: usize) -> (&[f16], &[f16]);
}

/// Buffers of one thread, reused between calls.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    /// Scores, then softmax numerators: `[queries, slots rounded up to blocks]`.
    weights: Vec<f32>,
    /// One widened block of keys or values.
    block: Vec<f32>,
    /// Softmax denominators, one per query.
    sums: Vec<f32>,
}

/// What to attend to what.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// `[nodes, queries per node, head_dim]`, with the factor `1 / sqrt(head_dim)` applied.
    pub queries: &'a [f32],
    /// Channels of a query.
    pub head_dim: usize,
    /// What each node sees.
    pub visible: &'a [Visible],
    /// Slots beyond the contiguous ones, each node's in increasing order.
    pub scattered: &'a [u32],
    /// Keys and values.
    pub blocks: &'a dyn HeadBlocks,
}

impl std::fmt::Debug for Attention<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attention").field("visible", &self.visible).finish_non_exhaustive()
    }
}

impl Attention<'_> {
    /// Attends every query and writes `output`, of the shape of `queries`.
    ///
    /// # Panics
    /// When lengths disagree or a node sees no key.
    pub fn run(self, isa: Isa, scratch: &mut AttentionScratch, output: &mut [f32]) {
        assert_eq!(self.queries.len(), output.len(), "queries and results");
        assert!(self.queries.len().is_multiple_of(self.head_dim * self.visible.len().max(1)), "whole queries per node");
        assert!(self.visible.iter().all(|visible| visible.num_keys() > 0), "a node sees itself at least");
        let num_queries = self.queries.len() / self.head_dim;
        scratch.weights.resize(self.num_slots() * num_queries, 0.0);
        scratch.block.resize(self.head_dim * BLOCK_SLOTS, 0.0);
        scratch.sums.resize(num_queries, 0.0);
        dispatch!(isa, attend(
            job: Attention<'_> = self, scratch: &mut AttentionScratch = scratch, output: &mut [f32] = output));
    }

    /// What a query sees.
    fn visible_to(&self, query_index: usize) -> Visible {
        let per_node = self.queries.len() / self.head_dim / self.visible.len();
        self.visible[query_index / per_node]
    }

    fn scattered_of(&self, visible: Visible) -> &[u32] {
        &self.scattered[visible.first_scattered..][..visible.num_scattered]
    }

    /// One past the last slot that a node sees.
    fn end(&self, visible: Visible) -> usize {
        self.scattered_of(visible).last().map_or(visible.contiguous, |&slot| slot as usize + 1)
    }

    /// Slots up to the last visible one, rounded up to whole blocks.
    fn num_slots(&self) -> usize {
        let ends = self.visible.iter().map(|&visible| self.end(visible));
        ends.max().unwrap_or(0).next_multiple_of(BLOCK_SLOTS)
    }
}

#[inline(always)]
unsafe fn attend<S: Simd>(job: Attention<'_>, scratch: &mut AttentionScratch, output: &mut [f32]) {
    let (head_dim, num_slots) = (job.head_dim, job.num_slots());
    let num_queries = job.queries.len() / head_dim;
    // SAFETY: called through `dispatch!`; `run` has sized the buffers.
    unsafe {
        score::<S>(&job, scratch);
        for query in 0..num_queries {
            let visible = job.visible_to(query);
            let weights = &mut scratch.weights[query * num_slots..][..num_slots];
            let scattered = job.scattered_of(visible);
            for j in 0..scattered.len() {
                weights[visible.contiguous + j] = weights[scattered[j] as usize]; // from slots to path order
            }
            scratch.sums[query] = softmax_numerators::<S>(&mut weights[..visible.num_keys()]);
        }
        mix_values::<S>(&job, scratch, output);
        for query in 0..num_queries {
            let factor = 1.0 / scratch.sums[query];
            let row = &mut output[query * head_dim..][..head_dim];
            for channel in 0..head_dim {
                row[channel] *= factor;
            }
        }
    }
}

#[inline(always)]
unsafe fn widen<S: Simd>(from: &[f16], to: &mut [f32]) {
    assert!(from.len() == to.len() && from.len().is_multiple_of(LANES), "a block of keys or values");
    let mut i = 0;
    while i < from.len() {
        // SAFETY: called through `dispatch!`; both slices hold whole vectors.
        unsafe { S::store(S::load_f16(from.as_ptr().add(i)), to.as_mut_ptr().add(i)) };
        i += LANES;
    }
}

/// Scores of every query against every slot up to the last one that it or its neighbour sees.
#[inline(always)]
unsafe fn score<S: Simd>(job: &Attention<'_>, scratch: &mut AttentionScratch) {
    let (head_dim, num_slots) = (job.head_dim, job.num_slots());
    let num_queries = job.queries.len() / head_dim;
    let AttentionScratch { weights, block, .. } = scratch;
    for block_index in 0..num_slots / BLOCK_SLOTS {
        let first_slot = block_index * BLOCK_SLOTS;
        // SAFETY: called through `dispatch!`; a block of keys is `[head_dim, 32]`, and each query has a row of weights.
        unsafe {
            widen::<S>(job.blocks.block(block_index).0, block);
            let mut query = 0;
            while query < num_queries {
                let is_pair = query + 1 < num_queries;
                let last = query + usize::from(is_pair);
                if job.end(job.visible_to(query)).max(job.end(job.visible_to(last))) > first_slot {
                    let queries = job.queries.as_ptr().add(query * head_dim);
                    let scores = weights.as_mut_ptr().add(query * num_slots + first_slot);
                    if is_pair {
                        score_block::<S, 2>(block, [queries, queries.add(head_dim)], [scores, scores.add(num_slots)]);
                    } else {
                        score_block::<S, 1>(block, [queries], [scores]);
                    }
                }
                query += 2;
            }
        }
    }
}

/// Scores of `N` queries against the 32 keys of a block.
#[inline(always)]
unsafe fn score_block<S: Simd, const N: usize>(keys: &[f32], queries: [*const f32; N], scores: [*mut f32; N]) {
    // SAFETY: as the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; N];
        for channel in 0..keys.len() / BLOCK_SLOTS {
            let keys = keys.as_ptr().add(channel * BLOCK_SLOTS);
            let (low, high) = (S::load(keys), S::load(keys.add(LANES)));
            for i in 0..N {
                let x = S::splat(*queries[i].add(channel));
                sums[i][0] = S::fma(x, low, sums[i][0]);
                sums[i][1] = S::fma(x, high, sums[i][1]);
            }
        }
        for i in 0..N {
            S::store(sums[i][0], scores[i]);
            S::store(sums[i][1], scores[i].add(LANES));
        }
    }
}

/// Replaces scores by `exp(score - largest)` and returns their sum.
#[inline(always)]
unsafe fn softmax_numerators<S: Simd>(scores: &mut [f32]) -> f32 {
    let whole = scores.len() / LANES * LANES;
    // SAFETY: called through `dispatch!`; vectors lie within the scores.
    unsafe {
        let mut lanes = [scores[0]; LANES];
        lanes[..scores.len() - whole].copy_from_slice(&scores[whole..]);
        let mut largest = S::load(lanes.as_ptr());
        let mut i = 0;
        while i < whole {
            largest = S::max(largest, S::load(scores.as_ptr().add(i)));
            i += LANES;
        }
        let largest = fold_max(S::to_array(largest));
        let shift = S::splat(largest);
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i < whole {
            let at = scores.as_mut_ptr().add(i);
            let numerator = exp::<S>(S::sub(S::load(at), shift));
            S::store(numerator, at);
            sum = S::add(sum, numerator);
            i += LANES;
        }
        if whole < scores.len() {
            let tail = &mut scores[whole..];
            let mut lanes = [largest; LANES];
            lanes[..tail.len()].copy_from_slice(tail);
            let mut numerators = S::to_array(exp::<S>(S::sub(S::load(lanes.as_ptr()), shift)));
            numerators[tail.len()..].fill(0.0);
            tail.copy_from_slice(&numerators[..tail.len()]);
            sum = S::add(sum, S::load(numerators.as_ptr()));
        }
        fold_sum(S::to_array(sum))
    }
}

/// The largest lane.
#[inline(always)]
fn fold_max(lanes: [f32; LANES]) -> f32 {
    let mut largest = lanes[0];
    for i in 1..LANES {
        largest = if lanes[i] > largest { lanes[i] } else { largest };
    }
    largest
}

/// Sums values, weighted, in path order: block by block, in each its contiguous slots and then its scattered ones.
#[inline(always)]
unsafe fn mix_values<S: Simd>(job: &Attention<'_>, scratch: &mut AttentionScratch, output: &mut [f32]) {
    let (head_dim, num_slots) = (job.head_dim, job.num_slots());
    let AttentionScratch { weights, block, .. } = scratch;
    output.fill(0.0);
    for block_index in 0..num_slots / BLOCK_SLOTS {
        let first_slot = block_index * BLOCK_SLOTS;
        // SAFETY: called through `dispatch!`; a block of values is `[32, head_dim]`.
        unsafe { widen::<S>(job.blocks.block(block_index).1, block) };
        for query in 0..output.len() / head_dim {
            let visible = job.visible_to(query);
            let row = &mut output[query * head_dim..][..head_dim];
            let weights = &weights[query * num_slots..][..num_slots];
            let contiguous = visible.contiguous.saturating_sub(first_slot).min(BLOCK_SLOTS);
            // SAFETY: as above.
            unsafe { add_values::<S>(block, &weights[first_slot..][..contiguous], row) };
            let scattered = job.scattered_of(visible);
            for j in 0..scattered.len() {
                let lane = (scattered[j] as usize).wrapping_sub(first_slot);
                if lane < BLOCK_SLOTS {
                    let weight = &weights[visible.contiguous + j..][..1];
                    // SAFETY: as above.
                    unsafe { add_values::<S>(&block[lane * head_dim..], weight, row) };
                }
            }
        }
    }
}

/// `row += weights[i] * values[i]`, in order, for each channel.
#[inline(always)]
unsafe fn add_values<S: Simd>(values: &[f32], weights: &[f32], row: &mut [f32]) {
    let head_dim = row.len();
    assert!(values.len() >= weights.len() * head_dim, "a value for each weight");
    let (values, row) = (values.as_ptr(), row.as_mut_ptr());
    // SAFETY: called through `dispatch!`; channels stay within rows of `head_dim`.
    unsafe {
        let mut channel = 0;
        while channel + 4 * LANES <= head_dim {
            add_channels::<S, 4>(values.add(channel), head_dim, weights, row.add(channel));
            channel += 4 * LANES;
        }
        while channel + LANES <= head_dim {
            add_channels::<S, 1>(values.add(channel), head_dim, weights, row.add(channel));
            channel += LANES;
        }
        while channel < head_dim {
            for i in 0..weights.len() {
                let x = row.add(channel);
                *x = weights[i].mul_add(*values.add(i * head_dim + channel), *x);
            }
            channel += 1;
        }
    }
}

/// [`add_values`] for `N` vectors of channels at once, whose sums stay in registers.
#[inline(always)]
unsafe fn add_channels<S: Simd, const N: usize>(values: *const f32, stride: usize, weights: &[f32], row: *mut f32) {
    // SAFETY: as the caller's.
    unsafe {
        let mut sums = [S::splat(0.0); N];
        for i in 0..N {
            sums[i] = S::load(row.add(i * LANES));
        }
        for index in 0..weights.len() {
            let weight = S::splat(*weights.get_unchecked(index));
            let values = values.add(index * stride);
            for i in 0..N {
                sums[i] = S::fma(weight, S::load(values.add(i * LANES)), sums[i]);
            }
        }
        for i in 0..N {
            S::store(sums[i], row.add(i * LANES));
        }
    }
}

#[cfg(test)]
mod tests {
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
        for (head_dim, len) in [(8, 1), (64, 5), (64, 77), (80, 64), (128, 100)] {
            let content: Vec<u32> = (0..len).collect();
            let cache = Cache::new(head_dim, &content);
            let queries = queries(3, head_dim);
            let visible = [seen(len as usize)]; // three queries of one node
            let portable = run(Isa::PORTABLE, &cache, &queries, &visible, &[]);
            for isa in Isa::available() {
                assert_eq!(run(isa, &cache, &queries, &visible, &[]), portable, "{} {head_dim} {len}", isa.name());
            }
            for (query, got) in queries.chunks(head_dim).zip(portable.chunks(head_dim)) {
                for (got, exact) in got.iter().zip(formula(&cache, query, len as usize)) {
                    assert!((f64::from(*got) - exact).abs() < 1e-6, "{got}, not {exact}");
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
    fn a_tree_node_gets_the_bits_of_its_path_in_a_chain() {
        let head_dim = 64;
        // The same path, once as slots 0..47 and once with its last four keys scattered among other nodes.
        let path: Vec<u32> = (100..147).collect();
        let mut scattered = path[..43].to_vec();
        scattered.extend([7, path[43], 8, 9, path[44], path[45], 10, 11, path[46], 12]);
        let slots = [44, 47, 48, 51];
        let query = queries(1, head_dim);
        for isa in Isa::available() {
            let chain = run(isa, &Cache::new(head_dim, &path), &query, &[seen(47)], &[]);
            let node = Visible { contiguous: 43, first_scattered: 0, num_scattered: 4 };
            let both = [query.clone(), queries(2, head_dim)].concat();
            let tree = run(isa, &Cache::new(head_dim, &scattered), &both, &[node, seen(50), seen(50)], &slots);
            assert_eq!(tree[..head_dim], chain, "{}", isa.name());
            assert_ne!(tree[head_dim..2 * head_dim], chain);
        }
    }
}
