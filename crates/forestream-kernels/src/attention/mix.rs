//! Sums of values with the weights of their keys.

use half::f16;

use super::{BLOCK_SLOTS, GROUP_QUERIES, HeadBlocks, Job, Sizes, Sweep, vectors, with_len};
use crate::simd::{Element, LANES, Simd};

/// Sums of values with `weights`, in path order: block by block, in each its contiguous slots and then its scattered ones.
pub(super) struct Mix<'a> {
    pub(super) weights: &'a [f32],
    pub(super) output: &'a mut [f32],
}

impl Sweep for Mix<'_> {
    #[inline(always)]
    fn half(blocks: &dyn HeadBlocks, block_index: usize) -> &[f16] {
        blocks.block(block_index).1
    }
    #[inline(always)]
    unsafe fn block<S: Simd, E: Element + Into<f32>>(&mut self, job: &Job<'_>, block_index: usize, block: &[E]) {
        // SAFETY: as the caller's.
        unsafe { mix_block::<S, E>(job, block_index, block, self.weights, self.output) };
    }
}

/// Adds what one block of values, `[32, head_dim]`, gives to each node's queries.
#[inline(always)]
unsafe fn mix_block<S: Simd, E: Element + Into<f32>>(
    job: &Job<'_>,
    block_index: usize,
    values: &[E],
    weights: &[f32],
    output: &mut [f32],
) {
    let Job { asked, sizes: Sizes { num_queries, queries_per_node, num_slots, shared_contiguous }, .. } = *job;
    let (head_dim, first_slot) = (asked.head_dim, block_index * BLOCK_SLOTS);
    assert!(
        weights.len() == num_queries * num_slots && output.len() == num_queries * head_dim,
        "weights and sums of all queries"
    );
    let in_block = |contiguous: usize| contiguous.saturating_sub(first_slot).min(BLOCK_SLOTS);
    let shared = in_block(shared_contiguous);
    let all = Sums { rows: output.as_mut_ptr(), weights: weights.as_ptr(), num_rows: num_queries, head_dim, num_slots };
    // SAFETY: as the caller's; every row has `num_slots` weights.
    unsafe { add_values::<S, E>(&values[..shared * head_dim], all.at_key(first_slot)) };
    for node in 0..asked.visible.len() {
        let visible = asked.visible[node];
        let contiguous = in_block(visible.contiguous);
        let sums = all.rows(node * queries_per_node, queries_per_node);
        // SAFETY: as above.
        unsafe {
            if shared < contiguous {
                add_values::<S, E>(&values[shared * head_dim..contiguous * head_dim], sums.at_key(first_slot + shared));
            }
            let scattered = asked.scattered_of(visible);
            if scattered.first().is_none_or(|&first| first as usize >= first_slot + BLOCK_SLOTS) {
                continue; // as in most blocks of a long text
            }
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
            with_len!(len, N => add_to_rows::<S, E, N>(values, sums.rows(row, N)));
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
        let vectors = const { vectors::<S, N>(4) };
        while vectors > 1 && channel + vectors * LANES <= sums.head_dim {
            match vectors {
                4 => add_channels::<S, E, N, 4>(values, sums, channel),
                _ => add_channels::<S, E, N, 2>(values, sums, channel),
            }
            channel += vectors * LANES;
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
