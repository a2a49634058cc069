//! Rate of attention: multiply-adds a second by number of nodes, one key/value head with its queries, the cache in reach.
//!
//! `cargo run --release --package forestream-kernels --example attention -- [POSITIONS] [QUERIES_PER_NODE] [HEAD_DIM]`
#![expect(clippy::print_stdout, reason = "the report of a measurement")]

use std::time::{Duration, Instant};

use forestream_kernels::{Attention, AttentionScratch, BLOCK_SLOTS, HeadBlocks, Isa, Visible};
use half::f16;

/// Time given to each figure.
const DURATION: Duration = Duration::from_millis(300);

/// The cache of one head.
struct Cache {
    keys: Vec<f16>,
    values: Vec<f16>,
    block_len: usize,
}

impl HeadBlocks for Cache {
    fn block(&self, block_index: usize) -> (&[f16], &[f16]) {
        let range = block_index * self.block_len..(block_index + 1) * self.block_len;
        (&self.keys[range.clone()], &self.values[range])
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<usize> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let argument = |index: usize, default| arguments.get(index).copied().unwrap_or(default);
    let (positions, queries_per_node, head_dim) = (argument(0, 256), argument(1, 3), argument(2, 64));
    println!("{positions} positions, {queries_per_node} queries a node of {head_dim} channels, {}", Isa::best().name());
    for nodes in [1, 2, 4, 8, 16] {
        let rate = rate(positions, nodes, [queries_per_node, head_dim]);
        println!("{nodes:>3} nodes {:>7.1} G multiply-adds/s", rate / 1e9);
    }
    Ok(())
}

/// Multiply-adds a second of a chain of `nodes` after `positions` others: the best of the repetitions that fit the time.
fn rate(positions: usize, nodes: usize, [queries_per_node, head_dim]: [usize; 2]) -> f64 {
    let number = |i: usize| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0;
    let len = (positions + nodes).next_multiple_of(BLOCK_SLOTS) * head_dim;
    let keys: Vec<f16> = (0..len).map(|i| f16::from_f32(number(i))).collect();
    let cache = Cache { values: keys.iter().rev().copied().collect(), keys, block_len: BLOCK_SLOTS * head_dim };
    let queries: Vec<f32> = (0..nodes * queries_per_node * head_dim).map(|i| number(3 * i) / 8.0).collect();
    let scattered: Vec<u32> = (positions..positions + nodes).map(|slot| slot as u32).collect();
    let visible: Vec<Visible> =
        (1..=nodes).map(|num_scattered| Visible { contiguous: positions, first_scattered: 0, num_scattered }).collect();
    let attention = Attention { queries: &queries, head_dim, visible: &visible, scattered: &scattered, blocks: &cache };
    let (mut scratch, mut output) = (AttentionScratch::default(), vec![0.0; queries.len()]);
    let (begin, mut best) = (Instant::now(), Duration::MAX);
    while begin.elapsed() < DURATION {
        let begin = Instant::now();
        for _ in 0..8 {
            attention.run(Isa::best(), &mut scratch, &mut output);
        }
        best = best.min(begin.elapsed() / 8);
    }
    let keys: usize = (1..=nodes).map(|own| positions + own).sum();
    (2 * keys * queries_per_node * head_dim) as f64 / best.as_secs_f64()
}
