//! Numbers for fresh weights: each depends on seed, name and index alone, and is the same on every machine.
//!
//! Only integer operations, additions and products by powers of two, whose results no platform may choose. The mixer is
//! the finalizer of `SplitMix64`.

/// The increment of `SplitMix64`: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The numbers of one tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    key: u64,
}

impl Numbers {
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        let absorb = |key: u64, byte: u8| mix(key ^ u64::from(byte)).wrapping_add(GOLDEN);
        Self { key: name.bytes().fold(mix(seed.wrapping_add(GOLDEN)), absorb) }
    }

    /// Evenly spread over `[-1, 1)`.
    pub(crate) fn uniform(self, index: usize) -> f32 {
        let bits = mix(self.key.wrapping_add(GOLDEN.wrapping_mul(index as u64 + 1)));
        (bits >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    }

    /// Mean 0, variance 1: the sum of twelve numbers of variance 1/12 (normal enough, and free of logarithms).
    pub(crate) fn normal(self, index: usize) -> f32 {
        (0..12).map(|part| self.uniform(index * 12 + part) * 0.5).sum()
    }
}

fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::Numbers;

    #[test]
    fn numbers_have_their_mean_and_variance() {
        let numbers = Numbers::new(7, "layers.3.mlp.up_proj.lora_A.weight");
        let count = 20_000;
        let moments = |number: &dyn Fn(usize) -> f32| {
            let (sum, squares) =
                (0..count).map(|index| f64::from(number(index))).fold((0.0, 0.0), |(a, b), x| (a + x, b + x * x));
            (sum / f64::from(count as u32), squares / f64::from(count as u32))
        };
        for (expected, (mean, square)) in
            [(1.0 / 3.0, moments(&|index| numbers.uniform(index))), (1.0, moments(&|index| numbers.normal(index)))]
        {
            assert!(mean.abs() < 0.03 && (square - expected).abs() < 0.03, "{mean} {square}, expected {expected}");
        }
    }

    #[test]
    fn seed_name_and_index_matter_and_nothing_else_does() {
        let number = |seed, name, index| Numbers::new(seed, name).uniform(index);
        assert_eq!(number(1, "a", 5), number(1, "a", 5));
        for other in [number(2, "a", 5), number(1, "b", 5), number(1, "a", 6)] {
            assert_ne!(number(1, "a", 5), other);
        }
    }

    /// The same bits everywhere: these were seen on `x86_64` Linux.
    #[test]
    fn bits_are_pinned() {
        let numbers = Numbers::new(0, "stream_embeddings");
        let bits: Vec<u32> =
            (0..2).flat_map(|index| [numbers.uniform(index), numbers.normal(index)]).map(f32::to_bits).collect();
        assert_eq!(bits, [3_206_785_582, 1_053_937_000, 3_198_210_736, 1_047_494_068]);
    }
}
