//! Products of queries with keys.

use half::f16;

use super::{BLOCK_SLOTS, GROUP_QUERIES, HeadBlocks, Job, Sizes, Sweep, vectors, with_len};
use crate::simd::{Element, LANES, Simd};

/// Scores of every query against every slot up to the last one that it or a neighbour sees, `[queries, slots]`.
pub(super) struct Scores<'a>(pub(super) &'a mut [f32]);

impl Sweep for Scores<'_> {
    #[inline(always)]
    fn half(blocks: &dyn HeadBlocks, block_index: usize) -> &[f16] {
        blocks.block(block_index).0
    }
    #[inline(always)]
    unsafe fn block<S: Simd, E: Element + Into<f32>>(&mut self, job: &Job<'_>, block_index: usize, block: &[E]) {
        // SAFETY: as the caller's.
        unsafe { score_queries::<S, E>(job, block_index, block, self.0) };
    }
}

/// Scores of the queries against one block, `[head_dim, 32]`.
#[inline(always)]
unsafe fn score_queries<S: Simd, E: Element>(job: &Job<'_>, block_index: usize, keys: &[E], weights: &mut [f32]) {
    let Job { asked, sizes: Sizes { num_queries, num_slots, .. }, group_ends } = *job;
    let (head_dim, first_slot) = (asked.head_dim, block_index * BLOCK_SLOTS);
    for group in 0..group_ends.len() {
        if group_ends[group] <= first_slot {
            continue;
        }
        let query = group * GROUP_QUERIES;
        let len = GROUP_QUERIES.min(num_queries - query);
        // SAFETY: as the caller's; each query has a row of weights.
        unsafe {
            let queries = asked.queries.as_ptr().add(query * head_dim);
            let scores = weights.as_mut_ptr().add(query * num_slots + first_slot);
            let (queries, scores) = ((queries, head_dim), (scores, num_slots));
            with_len!(len, N => score_block::<S, E, N>(keys, queries, scores));
        }
    }
}

/// Scores of `N` queries against the 32 keys of a block; queries and rows of scores lie a stride apart.
#[inline(always)]
unsafe fn score_block<S: Simd, E: Element, const N: usize>(
    keys: &[E],
    queries: (*const f32, usize),
    (scores, stride): (*mut f32, usize),
) {
    // SAFETY: as the caller's; a block has two vectors of keys.
    unsafe {
        if const { vectors::<S, N>(2) == 2 } {
            return score_keys::<S, E, N, 2>(keys, queries, (scores, stride));
        }
        score_keys::<S, E, N, 1>(keys, queries, (scores, stride));
        score_keys::<S, E, N, 1>(&keys[LANES..], queries, (scores.add(LANES), stride));
    }
}

/// [`score_block`] for the first `V` vectors of keys.
#[inline(always)]
unsafe fn score_keys<S: Simd, E: Element, const N: usize, const V: usize>(
    keys: &[E],
    (queries, query_stride): (*const f32, usize),
    (scores, score_stride): (*mut f32, usize),
) {
    // SAFETY: as the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; N];
        for channel in 0..keys.len().div_ceil(BLOCK_SLOTS) {
            let mut lanes = [S::splat(0.0); V];
            for i in 0..V {
                lanes[i] = E::load::<S>(keys.as_ptr().add(channel * BLOCK_SLOTS + i * LANES));
            }
            for query in 0..N {
                let x = S::splat(*queries.add(query * query_stride + channel));
                for i in 0..V {
                    sums[query][i] = S::fma(x, lanes[i], sums[query][i]);
                }
            }
        }
        for query in 0..N {
            for i in 0..V {
                S::store(sums[query][i], scores.add(query * score_stride + i * LANES));
            }
        }
    }
}
