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
    // SAFETY: called through `dispatch!`.
    unsafe {
        score::<S>(&job, scratch);
        let num_slots = job.num_slots();
        let rows = scratch.weights.chunks_exact_mut(num_slots).zip(&mut scratch.sums);
        for (query_index, (weights, sum)) in rows.enumerate() {
            let visible = job.visible_to(query_index);
            for (j, &slot) in job.scattered_of(visible).iter().enumerate() {
                weights[visible.contiguous + j] = weights[slot as usize]; // from slots to path order
            }
            *sum = softmax_numerators::<S>(&mut weights[..visible.num_keys()]);
        }
        mix_values::<S>(&job, scratch, output);
        for (row, sum) in output.chunks_exact_mut(job.head_dim).zip(&scratch.sums) {
            let factor = 1.0 / sum;
            for x in row {
                *x *= factor;
            }
        }
    }
}

#[inline(always)]
unsafe fn widen<S: Simd>(from: &[f16], to: &mut [f32]) {
    for (from, to) in from.chunks_exact(LANES).zip(to.chunks_exact_mut(LANES)) {
        // SAFETY: called through `dispatch!`; chunks hold 16 elements.
        unsafe { S::store(S::load_f16(from.as_ptr()), to.as_mut_ptr()) };
    }
}

/// Scores of every query against every slot, visible or not.
#[inline(always)]
unsafe fn score<S: Simd>(job: &Attention<'_>, scratch: &mut AttentionScratch) {
    let (head_dim, num_slots) = (job.head_dim, job.num_slots());
    for block_index in 0..num_slots / BLOCK_SLOTS {
        let first_slot = block_index * BLOCK_SLOTS;
        // SAFETY: called through `dispatch!`.
        unsafe { widen::<S>(job.blocks.block(block_index).0, &mut scratch.block) };
        let rows = job.queries.chunks(2 * head_dim).zip(scratch.weights.chunks_mut(2 * num_slots));
        for (index, (queries, weights)) in rows.enumerate() {
            let last = 2 * index + queries.len() / head_dim - 1;
            if job.end(job.visible_to(2 * index)).max(job.end(job.visible_to(last))) <= first_slot {
                continue;
            }
            let (first, second) = weights.split_at_mut(num_slots);
            // SAFETY: as above; a block of keys is `[head_dim, 32]`.
            unsafe {
                if queries.len() == 2 * head_dim {
                    let rows = [&queries[..head_dim], &queries[head_dim..]];
                    score_block::<S, 2>(&scratch.block, rows, [&mut first[first_slot..], &mut second[first_slot..]]);
                } else {
                    score_block::<S, 1>(&scratch.block, [queries], [&mut first[first_slot..]]);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn score_block<S: Simd, const N: usize>(keys: &[f32], queries: [&[f32]; N], scores: [&mut [f32]; N]) {
    // SAFETY: as the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; N];
        for (channel, keys) in keys.chunks_exact(BLOCK_SLOTS).enumerate() {
            let (low, high) = (S::load(keys.as_ptr()), S::load(keys[LANES..].as_ptr()));
            for (sums, query) in sums.iter_mut().zip(&queries) {
                let x = S::splat(query[channel]);
                sums[0] = S::fma(x, low, sums[0]);
                sums[1] = S::fma(x, high, sums[1]);
            }
        }
        for (sums, scores) in sums.iter().zip(scores) {
            S::store(sums[0], scores.as_mut_ptr());
            S::store(sums[1], scores[LANES..].as_mut_ptr());
        }
    }
}

/// Replaces scores by `exp(score - largest)` and returns their sum.
#[inline(always)]
unsafe fn softmax_numerators<S: Simd>(scores: &mut [f32]) -> f32 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // SAFETY: called through `dispatch!`; chunks hold 16 elements.
    unsafe {
        let shift = S::splat(largest);
        let mut sum = S::splat(0.0);
        let mut chunks = scores.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            let numerator = exp::<S>(S::sub(S::load(chunk.as_ptr()), shift));
            S::store(numerator, chunk.as_mut_ptr());
            sum = S::add(sum, numerator);
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
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

/// Sums values, weighted, in path order: block by block, in each its contiguous slots and then its scattered ones.
#[inline(always)]
unsafe fn mix_values<S: Simd>(job: &Attention<'_>, scratch: &mut AttentionScratch, output: &mut [f32]) {
    let (head_dim, num_slots) = (job.head_dim, job.num_slots());
    output.fill(0.0);
    for block_index in 0..num_slots / BLOCK_SLOTS {
        let first_slot = block_index * BLOCK_SLOTS;
        // SAFETY: called through `dispatch!`.
        unsafe { widen::<S>(job.blocks.block(block_index).1, &mut scratch.block) };
        let rows = output.chunks_exact_mut(head_dim).zip(scratch.weights.chunks_exact(num_slots));
        for (query_index, (row, weights)) in rows.enumerate() {
            let visible = job.visible_to(query_index);
            let contiguous = visible.contiguous.saturating_sub(first_slot).min(BLOCK_SLOTS);
            // SAFETY: as above; a block of values is `[32, head_dim]`.
            unsafe { add_values::<S>(&scratch.block, &weights[first_slot..][..contiguous], row) };
            for (j, &slot) in job.scattered_of(visible).iter().enumerate() {
                if let Some(lane) = (slot as usize).checked_sub(first_slot).filter(|&lane| lane < BLOCK_SLOTS) {
                    let weight = &weights[visible.contiguous + j..][..1];
                    // SAFETY: as above.
                    unsafe { add_values::<S>(&scratch.block[lane * head_dim..], weight, row) };
                }
            }
        }
    }
}

/// `row += weights[i] * values[i]`, in order, for each channel.
#[inline(always)]
unsafe fn add_values<S: Simd>(values: &[f32], weights: &[f32], row: &mut [f32]) {
    let head_dim = row.len();
    let mut channel = 0;
    while channel + 4 * LANES <= head_dim {
        // SAFETY: as the caller's.
        unsafe { add_channels::<S, 4>(&values[channel..], head_dim, weights, &mut row[channel..]) };
        channel += 4 * LANES;
    }
    while channel + LANES <= head_dim {
        // SAFETY: as the caller's.
        unsafe { add_channels::<S, 1>(&values[channel..], head_dim, weights, &mut row[channel..]) };
        channel += LANES;
    }
    for (channel, x) in row.iter_mut().enumerate().skip(channel) {
        for (i, weight) in weights.iter().enumerate() {
            *x = weight.mul_add(values[i * head_dim + channel], *x);
        }
    }
}

/// [`add_values`] for `N` vectors of channels at once, whose sums stay in registers.
#[inline(always)]
unsafe fn add_channels<S: Simd, const N: usize>(values: &[f32], stride: usize, weights: &[f32], row: &mut [f32]) {
    // SAFETY: as the caller's; every vector lies within `stride` channels of a row.
    unsafe {
        let mut sums = [S::splat(0.0); N];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = S::load(row[i * LANES..].as_ptr());
        }
        for (index, &weight) in weights.iter().enumerate() {
            let weight = S::splat(weight);
            let values = &values[index * stride..];
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(weight, S::load(values[i * LANES..].as_ptr()), *sum);
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            S::store(sum, row[i * LANES..].as_mut_ptr());
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
