//! Threads that each work on one core: a step's parts run side by side.
//!
//! Tensor operations that share out single products leave cores idle between them; parts that run whole, each on its own
//! core, do not. Results come back in the order of the items, so that none depends on the number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::TrainError;

/// A fixed number of threads.
pub(crate) struct Workers {
    /// Of one thread each: what runs inside takes no other core.
    pools: Vec<ThreadPool>,
}

impl Workers {
    /// `num_threads` threads, at least one.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub(crate) fn new(num_threads: usize) -> Result<Self, TrainError> {
        let pool = |_| ThreadPoolBuilder::new().num_threads(1).build();
        let pools = (0..num_threads.max(1)).map(pool).collect::<Result<_, _>>();
        let pools = pools.map_err(|error| TrainError::setting("--threads", error.to_string()))?;
        Ok(Self { pools })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_their_items() {
        for num_threads in [1, 2, 5] {
            let workers = Workers::new(num_threads).unwrap();
            assert_eq!(workers.map((0..20).collect(), |x: usize| 3 * x), (0..20).map(|x| 3 * x).collect::<Vec<_>>());
            assert!(workers.map(Vec::new(), |x: usize| x).is_empty());
        }
    }

    #[test]
    fn an_item_has_one_core() {
        let threads = Workers::new(3).unwrap().map(vec![(); 6], |()| rayon::current_num_threads());
        assert_eq!(threads, [1; 6]);
    }
}
