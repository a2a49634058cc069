//! A counter-based generator: a number depends on its key alone, never on how many were taken before.
//!
//! The key is (seed, stream, position, index). The target draws from one stream and drafters from another, so that
//! drafting can never shift the target's draws. The mixer is the finalizer of `SplitMix64`.

/// Numbers in `[0, 1)`, looked up by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random {
    key: u64,
}

/// The increment of `SplitMix64`: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// The numbers that decide the text.
    pub fn target(seed: u64) -> Self {
        Self { key: mix(seed.wrapping_add(GOLDEN)) }
    }

    /// The numbers that a drafter may use; independent of the target's.
    pub fn draft(seed: u64) -> Self {
        Self { key: mix(seed.wrapping_add(GOLDEN.wrapping_mul(2))) }
    }

    /// The number for the token at absolute `position`; `index` tells several numbers of one position apart.
    pub fn uniform(self, position: usize, index: usize) -> f64 {
        let bits = mix(mix(self.key ^ mix(position as u64 ^ GOLDEN)).wrapping_add(index as u64));
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A bijection of 64-bit numbers in which every input bit touches every output bit.
pub(crate) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fill_the_unit_interval_evenly() {
        for random in [Random::target(0), Random::target(1), Random::draft(0)] {
            let mut counts = [0_usize; 16];
            for position in 0..16_000 {
                counts[(random.uniform(position, position % 3) * 16.0) as usize] += 1;
            }
            let chi_square: f64 = counts.iter().map(|&count| (count as f64 - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi_square < 37.7, "{counts:?}"); // the 0.999 quantile with 15 degrees of freedom
        }
    }

    #[test]
    fn streams_seeds_positions_and_indices_differ() {
        let base = Random::target(7).uniform(3, 0);
        let others = [
            Random::draft(7).uniform(3, 0),
            Random::target(8).uniform(3, 0),
            Random::target(7).uniform(4, 0),
            Random::target(7).uniform(3, 1),
        ];
        assert_eq!(Random::target(7).uniform(3, 0).to_bits(), base.to_bits());
        assert!(others.iter().all(|other| (other - base).abs() > 1e-6), "{base} {others:?}");
    }
}
