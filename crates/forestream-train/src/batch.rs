//! Which examples a step takes: every epoch has its own order, and the place in it is one number.

use crate::data::Example;

/// The order of examples over the epochs of a run; a function of the seed alone.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    num_examples: usize,
    seed: u64,
    epoch: usize,
    /// The examples of `epoch` in their order.
    order: Vec<usize>,
}

impl Order {
    pub(crate) fn new(num_examples: usize, seed: u64) -> Self {
        Self { num_examples, seed, epoch: 0, order: shuffled(num_examples, seed, 0) }
    }

    /// The example at a place; places count on from epoch to epoch.
    pub(crate) fn at(&mut self, place: usize) -> usize {
        let epoch = place / self.num_examples;
        if epoch != self.epoch {
            self.order = shuffled(self.num_examples, self.seed, epoch);
            self.epoch = epoch;
        }
        self.order[place % self.num_examples]
    }

    /// The examples of a step that begins at `place`: as many as reach `num_positions`, but never beyond an epoch.
    pub(crate) fn batch(&mut self, place: usize, examples: &[Example], num_positions: usize) -> Vec<usize> {
        let end = (place / self.num_examples + 1) * self.num_examples;
        let (mut batch, mut reached) = (Vec::new(), 0);
        for place in place..end {
            let index = self.at(place);
            batch.push(index);
            reached += examples[index].num_positions();
            if reached >= num_positions {
                break;
            }
        }
        batch
    }

    /// How many steps an epoch has.
    pub(crate) fn steps_of_epoch(&mut self, epoch: usize, examples: &[Example], num_positions: usize) -> usize {
        let (mut place, mut steps) = (epoch * self.num_examples, 0);
        while place < (epoch + 1) * self.num_examples {
            place += self.batch(place, examples, num_positions).len();
            steps += 1;
        }
        steps
    }
}

/// The indices below `len` in an order that depends on seed and epoch: sorted by numbers that belong to them.
pub(crate) fn shuffled(len: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let key = mix(seed ^ mix(epoch as u64));
    let mut order: Vec<usize> = (0..len).collect();
    order.sort_by_key(|&index| (mix(key ^ mix(index as u64)), index));
    order
}

/// A bijection of 64-bit numbers that scatters neighbors: the step and finalizer of `SplitMix64`.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(lens: &[usize]) -> Vec<Example> {
        lens.iter().map(|&len| Example { prompt: vec![0], completion: vec![1; len + 1] }).collect()
    }

    #[test]
    fn every_epoch_takes_every_example_once_in_its_own_order() {
        let mut order = Order::new(50, 7);
        let epochs: Vec<Vec<usize>> =
            (0..2).map(|epoch| (0..50).map(|place| order.at(epoch * 50 + place)).collect()).collect();
        assert_ne!(epochs[0], epochs[1]);
        for mut epoch in epochs {
            epoch.sort_unstable();
            assert_eq!(epoch, (0..50).collect::<Vec<_>>());
        }
        assert_ne!(Order::new(50, 8).order, Order::new(50, 7).order);
    }

    #[test]
    fn a_step_reaches_its_positions_and_ends_with_the_epoch() {
        let examples = examples(&[3; 7]);
        let mut order = Order::new(7, 1);
        assert_eq!([0, 3, 6, 7].map(|place| order.batch(place, &examples, 8).len()), [3, 3, 1, 3]);
        assert_eq!(order.steps_of_epoch(1, &examples, 8), 3);
        assert_eq!(order.batch(0, &examples, 1).len(), 1);
    }
}
