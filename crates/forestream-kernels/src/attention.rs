//! Attention of tree nodes over a block-wise half-precision cache.
//!
//! Canonical order of one query: its keys are the visible slots in path order (committed positions, then ancestors from
//! the root down). Each score is a sequential sum over channels; the softmax's sum runs in 16 lanes over the key's index
//! in that order and is folded once; each output channel is a sequential sum over keys. The order depends on the path
//! alone, so a node gets the same bits in a tree, in a chain, and in any chunking of the prompt. All queries of a group
//! share one sweep over the cache: where they are many, a block is widened once and used by all.

use half::f16;

use crate::math::exp;
use crate::prefetch::prefetch;
use crate::simd::{Element, Isa, LANES, Simd, dispatch, fold_sum};

/// Slots per cache block.
pub const BLOCK_SLOTS: usize = 32;

/// Queries whose sums share the reading of keys and values.
const GROUP_QUERIES: usize = 3;

/// Up to so many queries read a block as it is stored; for more it is widened first.
const DIRECT_QUERIES: usize = 2 * GROUP_QUERIES;

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
        self.visible[query_index / self.queries_per_node()]
    }

    fn queries_per_node(&self) -> usize {
        self.queries.len() / self.head_dim / self.visible.len()
    }

    fn scattered_of(&self, visible: Visible) -> &[u32] {
        &self.scattered[visible.first_scattered..][..visible.num_scattered]
    }

    /// Whether so few queries share a block that widening it first would cost more than it saves.
    fn reads_directly(&self) -> bool {
        self.queries.len() / self.head_dim <= DIRECT_QUERIES
    }

    /// One past the last slot that any of `len` queries sees.
    fn last_end(&self, first_query: usize, len: usize) -> usize {
        let mut end = 0;
        for query in first_query..first_query + len {
            end = end.max(self.end(self.visible_to(query)));
        }
        end
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
        if num_slots > 0 {
            prefetch(job.blocks.block(0).1); // values come right after the keys
        }
        sweep::<S, _>(&job, &mut scratch.block, &mut Scores(&mut scratch.weights));
        for query in 0..num_queries {
            let visible = job.visible_to(query);
            let weights = &mut scratch.weights[query * num_slots..][..num_slots];
            let scattered = job.scattered_of(visible);
            for j in 0..scattered.len() {
                weights[visible.contiguous + j] = weights[scattered[j] as usize]; // from slots to path order
            }
            scratch.sums[query] = softmax_numerators::<S>(&mut weights[..visible.num_keys()]);
        }
        output.fill(0.0);
        let mut mix = Mix { weights: &scratch.weights, output };
        sweep::<S, _>(&job, &mut scratch.block, &mut mix);
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

/// What is done with each block of keys, or of values, in order.
trait Sweep {
    /// The half of a block that it reads.
    fn half(blocks: &dyn HeadBlocks, block_index: usize) -> &[f16];

    /// # Safety
    /// As for [`Simd`]; `run` has sized the buffers for `job`.
    unsafe fn block<S: Simd, E: Element + Into<f32>>(&mut self, job: &Attention<'_>, block_index: usize, block: &[E]);
}

/// Scores of every query against every slot up to the last one that it or a neighbour sees, `[queries, slots]`.
struct Scores<'a>(&'a mut [f32]);

impl Sweep for Scores<'_> {
    #[inline(always)]
    fn half(blocks: &dyn HeadBlocks, block_index: usize) -> &[f16] {
        blocks.block(block_index).0
    }
    #[inline(always)]
    unsafe fn block<S: Simd, E: Element + Into<f32>>(&mut self, job: &Attention<'_>, block_index: usize, block: &[E]) {
        // SAFETY: as the caller's.
        unsafe { score_queries::<S, E>(job, block_index, block, self.0) };
    }
}

/// Sums of values with `weights`, in path order: block by block, in each its contiguous slots and then its scattered ones.
struct Mix<'a> {
    weights: &'a [f32],
    output: &'a mut [f32],
}

impl Sweep for Mix<'_> {
    #[inline(always)]
    fn half(blocks: &dyn HeadBlocks, block_index: usize) -> &[f16] {
        blocks.block(block_index).1
    }
    #[inline(always)]
    unsafe fn block<S: Simd, E: Element + Into<f32>>(&mut self, job: &Attention<'_>, block_index: usize, block: &[E]) {
        // SAFETY: as the caller's.
        unsafe { mix_block::<S, E>(job, block_index, block, self.weights, self.output) };
    }
}

/// Goes over all blocks, and asks for each while the one before is worked on; `widened` has room for one.
#[inline(always)]
unsafe fn sweep<S: Simd, W: Sweep>(job: &Attention<'_>, widened: &mut [f32], work: &mut W) {
    let num_blocks = job.num_slots() / BLOCK_SLOTS;
    for block_index in 0..num_blocks {
        let block = W::half(job.blocks, block_index);
        assert_eq!(block.len(), job.head_dim * BLOCK_SLOTS, "a block has the keys or values of all its slots");
        if block_index + 1 < num_blocks {
            prefetch(W::half(job.blocks, block_index + 1));
        }
        // SAFETY: called through `dispatch!`; `run` has sized the buffers.
        unsafe {
            if job.reads_directly() {
                work.block::<S, f16>(job, block_index, block);
            } else {
                widen::<S>(block, widened);
                work.block::<S, f32>(job, block_index, widened);
            }
        }
    }
}

/// Scores of the queries against one block, `[head_dim, 32]`.
#[inline(always)]
unsafe fn score_queries<S: Simd, E: Element>(job: &Attention<'_>, block_index: usize, keys: &[E], weights: &mut [f32]) {
    let (head_dim, num_slots) = (job.head_dim, job.num_slots());
    let num_queries = job.queries.len() / head_dim;
    let first_slot = block_index * BLOCK_SLOTS;
    let mut query = 0;
    while query < num_queries {
        let len = GROUP_QUERIES.min(num_queries - query);
        if job.last_end(query, len) > first_slot {
            // SAFETY: as the caller's; each query has a row of weights.
            unsafe {
                let queries = job.queries.as_ptr().add(query * head_dim);
                let scores = weights.as_mut_ptr().add(query * num_slots + first_slot);
                match len {
                    1 => score_block::<S, E, 1>(keys, (queries, head_dim), (scores, num_slots)),
                    2 => score_block::<S, E, 2>(keys, (queries, head_dim), (scores, num_slots)),
                    _ => score_block::<S, E, GROUP_QUERIES>(keys, (queries, head_dim), (scores, num_slots)),
                }
            }
        }
        query += len;
    }
}

/// Scores of `N` queries against the 32 keys of a block; queries and rows of scores lie a stride apart.
#[inline(always)]
unsafe fn score_block<S: Simd, E: Element, const N: usize>(
    keys: &[E],
    (queries, query_stride): (*const f32, usize),
    (scores, score_stride): (*mut f32, usize),
) {
    // SAFETY: as the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; N];
        for channel in 0..keys.len() / BLOCK_SLOTS {
            let keys = keys.as_ptr().add(channel * BLOCK_SLOTS);
            let (low, high) = (E::load::<S>(keys), E::load::<S>(keys.add(LANES)));
            for i in 0..N {
                let x = S::splat(*queries.add(i * query_stride + channel));
                sums[i][0] = S::fma(x, low, sums[i][0]);
                sums[i][1] = S::fma(x, high, sums[i][1]);
            }
        }
        for i in 0..N {
            S::store(sums[i][0], scores.add(i * score_stride));
            S::store(sums[i][1], scores.add(i * score_stride + LANES));
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

/// Adds what one block of values, `[32, head_dim]`, gives to each node's queries.
#[inline(always)]
unsafe fn mix_block<S: Simd, E: Element + Into<f32>>(
    job: &Attention<'_>,
    block_index: usize,
    values: &[E],
    weights: &[f32],
    output: &mut [f32],
) {
    let (head_dim, num_slots, first_slot) = (job.head_dim, job.num_slots(), block_index * BLOCK_SLOTS);
    let per_node = job.queries_per_node();
    for node in 0..job.visible.len() {
        let visible = job.visible[node];
        let weights = &weights[node * per_node * num_slots..][..per_node * num_slots];
        let rows = &mut output[node * per_node * head_dim..][..per_node * head_dim];
        let contiguous = visible.contiguous.saturating_sub(first_slot).min(BLOCK_SLOTS);
        let sums = Sums { rows: rows.as_mut_ptr(), weights: weights.as_ptr(), num_rows: per_node, head_dim, num_slots };
        // SAFETY: as the caller's; every row has `num_slots` weights.
        unsafe {
            add_values::<S, E>(&values[..contiguous * head_dim], sums.at_key(first_slot));
            let scattered = job.scattered_of(visible);
            for j in 0..scattered.len() {
                let lane = (scattered[j] as usize).wrapping_sub(first_slot);
                if lane < BLOCK_SLOTS {
                    add_values::<S, E>(&values[lane * head_dim..][..head_dim], sums.at_key(visible.contiguous + j));
                }
            }
        }
    }
}

/// The outputs of a node's queries, `[rows, head_dim]`, and the weights of its keys, `[rows, num_slots]`.
#[derive(Clone, Copy)]
struct Sums {
    rows: *mut f32,
    weights: *const f32,
    num_rows: usize,
    head_dim: usize,
    num_slots: usize,
}

impl Sums {
    /// The same with the weights from one key on.
    fn at_key(self, key: usize) -> Self {
        Self { weights: self.weights.wrapping_add(key), ..self }
    }

    /// `num_rows` of the rows.
    fn rows(self, first: usize, num_rows: usize) -> Self {
        let rows = self.rows.wrapping_add(first * self.head_dim);
        Self { rows, weights: self.weights.wrapping_add(first * self.num_slots), num_rows, ..self }
    }
}

/// Adds `values`, `[keys, head_dim]`, with their weights, in order, to each row.
#[inline(always)]
unsafe fn add_values<S: Simd, E: Element + Into<f32>>(values: &[E], sums: Sums) {
    let mut row = 0;
    while row < sums.num_rows {
        let len = GROUP_QUERIES.min(sums.num_rows - row);
        // SAFETY: as the caller's.
        unsafe {
            match len {
                1 => add_to_rows::<S, E, 1>(values, sums.rows(row, 1)),
                2 => add_to_rows::<S, E, 2>(values, sums.rows(row, 2)),
                _ => add_to_rows::<S, E, GROUP_QUERIES>(values, sums.rows(row, GROUP_QUERIES)),
            }
        }
        row += len;
    }
}

/// [`add_values`] for `N` rows, which share the reading of values.
#[inline(always)]
unsafe fn add_to_rows<S: Simd, E: Element + Into<f32>, const N: usize>(values: &[E], sums: Sums) {
    let mut channel = 0;
    // SAFETY: called through `dispatch!`; channels stay within rows of `head_dim`.
    unsafe {
        while S::MAX_ROWS >= 4 * N && channel + 4 * LANES <= sums.head_dim {
            add_channels::<S, E, N, 4>(values, sums, channel);
            channel += 4 * LANES;
        }
        while channel + LANES <= sums.head_dim {
            add_channels::<S, E, N, 1>(values, sums, channel);
            channel += LANES;
        }
        while channel < sums.head_dim {
            for row in 0..N {
                let x = sums.rows.add(row * sums.head_dim + channel);
                for key in 0..values.len() / sums.head_dim {
                    let weight = *sums.weights.add(row * sums.num_slots + key);
                    *x = weight.mul_add(values[key * sums.head_dim + channel].into(), *x);
                }
            }
            channel += 1;
        }
    }
}

/// [`add_to_rows`] for `V` vectors of channels at once, whose sums stay in registers.
#[inline(always)]
unsafe fn add_channels<S: Simd, E: Element, const N: usize, const V: usize>(values: &[E], sums: Sums, channel: usize) {
    // SAFETY: as the caller's.
    unsafe {
        let mut totals = [[S::splat(0.0); V]; N];
        for row in 0..N {
            for i in 0..V {
                totals[row][i] = S::load(sums.rows.add(row * sums.head_dim + channel + i * LANES));
            }
        }
        for key in 0..values.len() / sums.head_dim {
            let values = values.as_ptr().add(key * sums.head_dim + channel);
            let mut lanes = [S::splat(0.0); V];
            for i in 0..V {
                lanes[i] = E::load::<S>(values.add(i * LANES));
            }
            for row in 0..N {
                let weight = S::splat(*sums.weights.add(row * sums.num_slots + key));
                for i in 0..V {
                    totals[row][i] = S::fma(weight, lanes[i], totals[row][i]);
                }
            }
        }
        for row in 0..N {
            for i in 0..V {
                S::store(totals[row][i], sums.rows.add(row * sums.head_dim + channel + i * LANES));
            }
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
            let visible = [seen(len as usize)]; // all queries are of one node
            // Up to `DIRECT_QUERIES` read the cache as it is, more widen it; both leave groups of one, two and three.
            for num_queries in [1, 2, 3, 5, 7, 12] {
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
            for num_others in [2, DIRECT_QUERIES] {
                let all = [query.clone(), queries(num_others, head_dim)].concat();
                let visible = [vec![node], vec![seen(50); num_others]].concat();
                let tree = run(isa, &Cache::new(head_dim, &scattered), &all, &visible, &slots);
                assert_eq!(tree[..head_dim], chain, "{} among {num_others}", isa.name());
                assert_ne!(tree[head_dim..2 * head_dim], chain);
            }
        }
    }
}
