//! Attention of tree nodes over a block-wise half-precision cache.
//!
//! Canonical order of one query: its keys are the visible slots in path order (committed positions, then ancestors from
//! the root down). Each score is a sequential sum over channels; the softmax's sum runs in 16 lanes over the key's index
//! in that order and is folded once; each output channel is a sequential sum over keys. The order depends on the path
//! alone, so a node gets the same bits in a tree, in a chain, and in any chunking of the prompt. All queries of a group
//! share one sweep over the cache.

mod mix;
mod scores;
mod softmax;
#[cfg(test)]
mod tests;

use half::f16;

use self::mix::Mix;
use self::scores::Scores;
use self::softmax::softmax_numerators;
use crate::prefetch::prefetch;
use crate::simd::{Element, Isa, LANES, Simd, dispatch};

/// Slots per cache block.
pub const BLOCK_SLOTS: usize = 32;

/// Queries whose sums share the reading of keys and values.
const GROUP_QUERIES: usize = 6;

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
    /// A block of keys or values in single precision, where the set has to widen them by hand.
    widened: Vec<f32>,
    /// Softmax denominators, one per query.
    sums: Vec<f32>,
    /// [`Job::group_ends`].
    group_ends: Vec<usize>,
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
        let sizes = self.sizes();
        scratch.group_ends.clear();
        scratch.group_ends.extend((0..sizes.num_queries).step_by(GROUP_QUERIES).map(|first| {
            let last = sizes.num_queries.min(first + GROUP_QUERIES) - 1;
            let nodes = &self.visible[first / sizes.queries_per_node..=last / sizes.queries_per_node];
            nodes.iter().map(|&visible| self.end(visible)).max().unwrap_or(0)
        }));
        scratch.weights.resize(sizes.num_slots * sizes.num_queries, 0.0);
        scratch.widened.resize(self.head_dim * BLOCK_SLOTS, 0.0);
        scratch.sums.resize(sizes.num_queries, 0.0);
        let AttentionScratch { weights, widened, sums, group_ends } = scratch;
        let job = Job { asked: self, sizes, group_ends };
        dispatch!(isa, attend(
            job: Job<'_> = job, buffers: Buffers<'_> = Buffers { weights, widened, sums }, output: &mut [f32] = output));
    }

    fn sizes(&self) -> Sizes {
        let num_queries = self.queries.len() / self.head_dim;
        let ends = self.visible.iter().map(|&visible| self.end(visible));
        Sizes {
            num_queries,
            queries_per_node: num_queries / self.visible.len().max(1),
            num_slots: ends.max().unwrap_or(0).next_multiple_of(BLOCK_SLOTS),
            shared_contiguous: self.visible.iter().map(|visible| visible.contiguous).min().unwrap_or(0),
        }
    }

    fn scattered_of(&self, visible: Visible) -> &[u32] {
        &self.scattered[visible.first_scattered..][..visible.num_scattered]
    }

    /// One past the last slot that a node sees.
    fn end(&self, visible: Visible) -> usize {
        self.scattered_of(visible).last().map_or(visible.contiguous, |&slot| slot as usize + 1)
    }
}

/// What is asked for, with what every block of the cache needs to know of it.
#[derive(Clone, Copy)]
struct Job<'a> {
    asked: Attention<'a>,
    sizes: Sizes,
    /// One past the last slot that any query of each group sees.
    group_ends: &'a [usize],
}

#[derive(Clone, Copy)]
struct Sizes {
    num_queries: usize,
    queries_per_node: usize,
    /// Slots up to the last visible one, rounded up to whole blocks.
    num_slots: usize,
    /// Slots `0..` this are seen by every node.
    shared_contiguous: usize,
}

/// [`AttentionScratch`], sized for a job.
struct Buffers<'a> {
    weights: &'a mut [f32],
    widened: &'a mut [f32],
    sums: &'a mut [f32],
}

#[inline(always)]
unsafe fn attend<S: Simd>(job: Job<'_>, buffers: Buffers<'_>, output: &mut [f32]) {
    let Buffers { weights, widened, sums } = buffers;
    let Job { asked, sizes: Sizes { num_slots, num_queries, queries_per_node, .. }, .. } = job;
    // SAFETY: called through `dispatch!`; `run` has sized the buffers.
    unsafe {
        if num_slots > 0 {
            prefetch(asked.blocks.block(0).1); // values come right after the keys
        }
        sweep::<S, _>(&job, widened, &mut Scores(weights));
        let mut query = 0;
        for &visible in asked.visible {
            let scattered = asked.scattered_of(visible);
            for _ in 0..queries_per_node {
                let weights = &mut weights[query * num_slots..][..num_slots];
                for j in 0..scattered.len() {
                    weights[visible.contiguous + j] = weights[scattered[j] as usize]; // from slots to path order
                }
                sums[query] = softmax_numerators::<S>(&mut weights[..visible.num_keys()]);
                query += 1;
            }
        }
        output.fill(0.0);
        sweep::<S, _>(&job, widened, &mut Mix { weights, output });
        for query in 0..num_queries {
            let factor = 1.0 / sums[query];
            let row = &mut output[query * asked.head_dim..][..asked.head_dim];
            for channel in 0..asked.head_dim {
                row[channel] *= factor;
            }
        }
    }
}

/// What is done with each block of keys, or of values, in order.
trait Sweep {
    /// The half of a block that it reads.
    fn half(blocks: &dyn HeadBlocks, block_index: usize) -> &[f16];

    /// # Safety
    /// As for [`Simd`]; `run` has sized the buffers for `job`.
    unsafe fn block<S: Simd, E: Element + Into<f32>>(&mut self, job: &Job<'_>, block_index: usize, block: &[E]);
}

/// Goes over all blocks, and asks for each while the one before is worked on; `widened` has room for one.
#[inline(always)]
unsafe fn sweep<S: Simd, W: Sweep>(job: &Job<'_>, widened: &mut [f32], work: &mut W) {
    let Attention { blocks, head_dim, .. } = job.asked;
    let num_blocks = job.sizes.num_slots / BLOCK_SLOTS;
    for block_index in 0..num_blocks {
        let block = W::half(blocks, block_index);
        assert_eq!(block.len(), head_dim * BLOCK_SLOTS, "a block has the keys or values of all its slots");
        if block_index + 1 < num_blocks {
            prefetch(W::half(blocks, block_index + 1));
        }
        // SAFETY: called through `dispatch!`; `run` has sized the buffers.
        unsafe {
            if S::READS_F16 {
                work.block::<S, f16>(job, block_index, block);
            } else {
                widen::<S>(block, widened);
                work.block::<S, f32>(job, block_index, widened);
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

/// Compiles `$body` for each number of queries of a group and runs the one for `$len`.
macro_rules! with_len {
    ($len:expr, $n:ident => $body:expr) => {
        with_len!($len, $n, $body, 1 2 3 4 5 6)
    };
    ($len:expr, $n:ident, $body:expr, $($count:literal)+) => {
        match $len {
            $($count => {
                const $n: usize = $count;
                $body
            })+
            _ => unreachable!("a group has at most {GROUP_QUERIES} queries"),
        }
    };
}
use with_len;

/// How many vectors, at most `most`, a group of `N` queries sums at once, so that the sums stay in registers.
const fn vectors<S: Simd, const N: usize>(most: usize) -> usize {
    let mut vectors = most;
    while vectors > 1 && vectors * N > S::MAX_ROWS {
        vectors /= 2;
    }
    vectors
}
