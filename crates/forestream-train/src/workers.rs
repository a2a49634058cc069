//! How a step is shared out: in parts side by side, each on one core, or whole, where a device does it.
//!
//! Tensor operations that share out single products leave cores idle between them; parts that run whole, each on its own
//! core, do not. Results come back in the order of the items, so that none depends on the number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::TrainError;

/// Positions of a segment, the least that a core takes: few, so that an answer gives work to several.
const SEGMENT_LEN: usize = 32;
/// Pieces for each core that are measured together: enough that no core waits long for another.
const PIECES_OF_CORE: usize = 4;
/// Rows of a part: few enough that a step of one answer has work for several cores, and enough for large products.
const PART_ROWS: usize = 128;

/// A fixed number of threads.
pub(crate) struct Workers {
    /// What runs inside one takes no core of another.
    pools: Vec<ThreadPool>,
    segment_len: usize,
    part_rows: usize,
}

impl Workers {
    /// `num_threads` threads, at least one, which work on parts of their own.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub(crate) fn apart(num_threads: usize) -> Result<Self, TrainError> {
        Ok(Self { pools: pools(num_threads.max(1), 1)?, segment_len: SEGMENT_LEN, part_rows: PART_ROWS })
    }

    /// `num_threads` threads, at least one, which do beside a device what it leaves of a whole step.
    ///
    /// # Errors
    /// As [`Self::apart`].
    pub(crate) fn together(num_threads: usize) -> Result<Self, TrainError> {
        Ok(Self { pools: pools(1, num_threads.max(1))?, segment_len: usize::MAX, part_rows: usize::MAX })
    }

    /// The most positions of a segment.
    pub(crate) fn segment_len(&self) -> usize {
        self.segment_len
    }

    /// The most rows of a part, if it has more than one piece.
    pub(crate) fn part_rows(&self) -> usize {
        self.part_rows
    }

    /// Positions that give every core enough to do where no step says how many there are.
    pub(crate) fn enough_positions(&self) -> usize {
        self.pools.len() * PIECES_OF_CORE * SEGMENT_LEN
    }

    /// The results of all items, in their order.
    pub(crate) fn map<T: Send, R: Send>(&self, items: Vec<T>, run: impl Fn(T) -> R + Sync) -> Vec<R> {
        let items: Vec<_> = items.into_iter().map(|item| Mutex::new((Some(item), None))).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(slot) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                let item = slot.lock().unwrap_or_else(PoisonError::into_inner).0.take();
                let result = item.map(&run);
                slot.lock().unwrap_or_else(PoisonError::into_inner).1 = result;
            }
        };
        std::thread::scope(|scope| {
            for pool in &self.pools {
                scope.spawn(|| pool.install(work));
            }
        });
        let result = |slot: Mutex<(_, Option<R>)>| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1;
        items.into_iter().map(|slot| result(slot).expect("every item was taken")).collect()
    }
}

fn pools(num_pools: usize, num_threads: usize) -> Result<Vec<ThreadPool>, TrainError> {
    let pool = |_| ThreadPoolBuilder::new().num_threads(num_threads).build();
    let pools = (0..num_pools).map(pool).collect::<Result<_, _>>();
    pools.map_err(|error| TrainError::setting("--threads", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_their_items() {
        for num_threads in [1, 2, 5] {
            for workers in [Workers::apart(num_threads).unwrap(), Workers::together(num_threads).unwrap()] {
                let expected: Vec<usize> = (0..20).map(|x| 3 * x).collect();
                assert_eq!(workers.map((0..20).collect(), |x: usize| 3 * x), expected);
                assert!(workers.map(Vec::new(), |x: usize| x).is_empty());
            }
        }
    }

    #[test]
    fn an_item_has_one_core_or_all() {
        let threads = |workers: Workers| workers.map(vec![(); 6], |()| rayon::current_num_threads());
        assert_eq!(threads(Workers::apart(3).unwrap()), [1; 6]);
        assert_eq!(threads(Workers::together(3).unwrap()), [3; 6]);
    }
}
