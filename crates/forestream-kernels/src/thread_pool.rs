//! Threads that share out the chunks of one job and park when there is none.
//!
//! A pass is a sequence of a few hundred short jobs, so a worker spins for some microseconds before it parks: on a quiet
//! machine the next job finds it awake, on a busy one it does not take time from others. Chunks are claimed one by one,
//! and a job ends when its chunks are done, not when every worker has looked at it: a thread without a core delays a job
//! by one chunk at most. Which thread computes a chunk never changes a result: chunks write disjoint outputs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

use crate::shared_slice::SharedSlice;

/// Polls before a waiting thread parks: about 20 microseconds, longer than the serial parts between two jobs.
const SPIN_LIMIT: u32 = 1000;

/// The bit of `gate` that lets workers in.
const OPEN: usize = 1 << (usize::BITS - 1);

/// The job in progress: a pointer to a closure on the caller's stack.
type Job = dyn Fn(usize, usize) + Sync;

struct Shared {
    /// Counts jobs; a change tells workers that there is a new one.
    epoch: AtomicUsize,
    /// The chunks that each thread takes first; others help when they have finished theirs.
    shares: Vec<Share>,
    /// The number of workers inside the current job, plus [`OPEN`] while others may enter.
    gate: AtomicUsize,
    job: std::sync::Mutex<Option<JobPointer>>,
    is_closing: AtomicBool,
    has_panicked: AtomicBool,
    parked: Vec<AtomicBool>,
    caller: std::sync::Mutex<Option<Thread>>,
    caller_is_parked: AtomicBool,
}

/// Consecutive chunks: a thread that works through its own share reads memory in order. On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
}

#[derive(Clone, Copy)]
struct JobPointer(*const Job);

// SAFETY: the pointee is `Sync`, and `ThreadPool::run` does not return while a worker is inside the job.
unsafe impl Send for JobPointer {}

/// A fixed number of threads, the caller's own included.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time: a second caller waits here.
    turn: std::sync::Mutex<()>,
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool").field("num_threads", &self.num_threads()).finish()
    }
}

impl ThreadPool {
    /// A pool of `num_threads` threads: the caller of [`Self::run`] and `num_threads - 1` workers.
    ///
    /// # Errors
    /// The system cannot start so many.
    ///
    /// # Panics
    /// If `num_threads` is zero.
    pub fn new(num_threads: usize) -> io::Result<Self> {
        Self::start(num_threads, &|index, shared| {
            std::thread::Builder::new().name(format!("forestream-{index}")).spawn(move || work(&shared, index))
        })
    }

    /// A pool whose workers `spawn` starts, each with its index.
    fn start(num_threads: usize, spawn: &dyn Fn(usize, Arc<Shared>) -> io::Result<JoinHandle<()>>) -> io::Result<Self> {
        assert!(num_threads > 0, "a pool has at least the calling thread");
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            shares: (0..num_threads).map(|_| Share::default()).collect(),
            gate: AtomicUsize::new(0),
            job: std::sync::Mutex::new(None),
            is_closing: AtomicBool::new(false),
            has_panicked: AtomicBool::new(false),
            parked: (1..num_threads).map(|_| AtomicBool::new(false)).collect(),
            caller: std::sync::Mutex::new(None),
            caller_is_parked: AtomicBool::new(false),
        });
        // Dropped where a thread is refused, it ends those that run already.
        let mut pool = Self { shared, workers: Vec::with_capacity(num_threads - 1), turn: std::sync::Mutex::new(()) };
        for index in 1..num_threads {
            let worker = spawn(index, Arc::clone(&pool.shared)).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot start thread {} of {num_threads}: {error}", index + 1))
            })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Number of threads, the caller's included.
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(chunk_index, thread_index)` once for each chunk in `0..num_chunks` and waits for all of them.
    ///
    /// # Panics
    /// If `job` panics.
    pub fn run(&self, num_chunks: usize, job: &(dyn Fn(usize, usize) + Sync)) {
        if self.workers.is_empty() || num_chunks <= 1 {
            for chunk in 0..num_chunks {
                job(chunk, 0);
            }
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let shared = &*self.shared;
        self.publish(num_chunks, job);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shared.claim_chunks(job, 0)));
        if outcome.is_err() {
            shared.abandon();
        }
        shared.gate.fetch_and(!OPEN, Ordering::SeqCst);
        wait(&shared.caller_is_parked, || shared.gate.load(Ordering::SeqCst) == 0);
        let worker_panicked = shared.has_panicked.swap(false, Ordering::SeqCst);
        if let Err(payload) = outcome {
            std::panic::resume_unwind(payload);
        }
        assert!(!worker_panicked, "a worker thread panicked");
    }

    /// Calls `job(row_index)` for each of `num_rows` rows of `width` elements; few rows stay on the calling thread.
    ///
    /// # Panics
    /// If `job` panics.
    pub(crate) fn run_rows(&self, num_rows: usize, width: usize, job: &(dyn Fn(usize) + Sync)) {
        /// Elements that are worth a thread's attention.
        const CHUNK_LEN: usize = 4096;
        let wanted = (num_rows * width).div_ceil(CHUNK_LEN);
        let num_chunks = if wanted > 1 { wanted.next_multiple_of(self.num_threads()).min(num_rows) } else { wanted };
        self.run(num_chunks, &|chunk, _| {
            for row in chunk * num_rows / num_chunks..(chunk + 1) * num_rows / num_chunks {
                job(row);
            }
        });
    }

    /// Calls `job(row_index, row)` for each row of `rows`, `[_, width]`.
    ///
    /// # Panics
    /// When `rows` is not a whole number of rows, or if `job` panics.
    pub fn for_each_row<T: Send>(&self, rows: &mut [T], width: usize, job: &(dyn Fn(usize, &mut [T]) + Sync)) {
        assert!(rows.len().is_multiple_of(width.max(1)), "{} elements in rows of {width}", rows.len());
        let num_rows = rows.len() / width.max(1);
        let shared = SharedSlice::new(rows);
        self.run_rows(num_rows, width, &|row| {
            // SAFETY: each row is visited once.
            job(row, unsafe { shared.part(row * width..(row + 1) * width) });
        });
    }

    /// Calls `job(part_index, thread_index, part)` for consecutive parts of `data` that end at `ends`.
    ///
    /// # Panics
    /// When `ends` decrease or pass the end of `data`, or if `job` panics.
    pub fn for_each_part<T: Send>(
        &self,
        data: &mut [T],
        ends: &[usize],
        job: &(dyn Fn(usize, usize, &mut [T]) + Sync),
    ) {
        assert!(ends.is_sorted(), "parts follow each other");
        let shared = SharedSlice::new(data);
        self.run(ends.len(), &|part, thread| {
            let start = if part == 0 { 0 } else { ends[part - 1] };
            // SAFETY: parts between sorted ends do not overlap.
            job(part, thread, unsafe { shared.part(start..ends[part]) });
        });
    }

    /// Makes `job` the current one and wakes the workers that sleep.
    fn publish(&self, num_chunks: usize, job: &(dyn Fn(usize, usize) + Sync)) {
        let shared = &*self.shared;
        // The lifetime ends when `run` returns, which is after the last worker has left the job.
        let job: *const (dyn Fn(usize, usize) + Sync + '_) = job;
        #[expect(clippy::transmute_ptr_to_ptr, reason = "a cast cannot change the lifetime of a trait object")]
        // SAFETY: only the lifetime changes; `run` keeps the closure alive until the gate is closed and empty.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync + '_), *const Job>(job) };
        *shared.job.lock().expect("no thread panics while it holds the job") = Some(JobPointer(job));
        *shared.caller.lock().expect("no thread panics while it holds the caller") = Some(std::thread::current());
        shared.deal(num_chunks);
        shared.gate.store(OPEN, Ordering::SeqCst);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&shared.parked) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Gives each thread an equal share of `0..num_chunks`.
    fn deal(&self, num_chunks: usize) {
        let num_shares = self.shares.len();
        for (index, share) in self.shares.iter().enumerate() {
            share.end.store((index + 1) * num_chunks / num_shares, Ordering::Relaxed);
            share.next.store(index * num_chunks / num_shares, Ordering::Relaxed);
        }
    }

    /// Leaves no chunk to claim; chunks in progress go on.
    fn abandon(&self) {
        for share in &self.shares {
            share.next.store(usize::MAX / 2, Ordering::Relaxed);
        }
    }

    /// Works through the thread's own share, then through what is left of the others'.
    fn claim_chunks(&self, job: &(dyn Fn(usize, usize) + Sync), thread_index: usize) {
        for offset in 0..self.shares.len() {
            let share = &self.shares[(thread_index + offset) % self.shares.len()];
            let end = share.end.load(Ordering::Relaxed);
            loop {
                let chunk = share.next.fetch_add(1, Ordering::Relaxed);
                if chunk >= end {
                    break;
                }
                job(chunk, thread_index);
            }
        }
    }

    /// Enters the current job, unless it is over.
    fn enter(&self) -> Option<JobPointer> {
        let add_one = |gate: usize| (gate & OPEN != 0).then_some(gate + 1);
        self.gate.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add_one).ok()?;
        *self.job.lock().expect("no thread panics while it holds the job")
    }

    /// Leaves the job; the last one out wakes the caller.
    fn leave(&self) {
        let is_last = self.gate.fetch_sub(1, Ordering::SeqCst) == 1;
        if is_last
            && self.caller_is_parked.load(Ordering::SeqCst)
            && let Some(caller) = &*self.caller.lock().expect("no thread panics while it holds the caller")
        {
            caller.unpark();
        }
    }
}

/// Spins, then parks, until `is_done`; whoever makes it true unparks this thread if `is_parked`.
fn wait(is_parked: &AtomicBool, is_done: impl Fn() -> bool) {
    for _ in 0..SPIN_LIMIT {
        if is_done() {
            return;
        }
        std::hint::spin_loop();
    }
    is_parked.store(true, Ordering::SeqCst);
    while !is_done() {
        std::thread::park();
    }
    is_parked.store(false, Ordering::SeqCst);
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        wait(&shared.parked[index - 1], || shared.epoch.load(Ordering::SeqCst) != seen);
        seen = shared.epoch.load(Ordering::SeqCst);
        if shared.is_closing.load(Ordering::SeqCst) {
            return;
        }
        let Some(JobPointer(pointer)) = shared.enter() else { continue };
        // SAFETY: `run` waits until this worker has left the job, so the closure is alive.
        let job = unsafe { &*pointer };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shared.claim_chunks(job, index)));
        if outcome.is_err() {
            shared.has_panicked.store(true, Ordering::SeqCst);
        }
        shared.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once() {
        for num_threads in [1, 2, 5] {
            let pool = ThreadPool::new(num_threads).unwrap();
            for num_chunks in [0, 1, 2, 100] {
                let counts: Vec<AtomicUsize> = (0..num_chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_chunks, &|chunk, thread| {
                    assert!(thread < num_threads);
                    counts[chunk].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_thread_that_cannot_start_is_an_error_and_the_others_end() {
        let started = Arc::new(AtomicUsize::new(0));
        let error = ThreadPool::start(5, &|index, shared| {
            if index == 3 {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "no more"));
            }
            let started = Arc::clone(&started);
            std::thread::Builder::new().spawn(move || {
                started.fetch_add(1, Ordering::SeqCst);
                work(&shared, index);
                started.fetch_sub(1, Ordering::SeqCst);
            })
        });
        assert_eq!(error.unwrap_err().to_string(), "cannot start thread 4 of 5: no more");
        assert_eq!(started.load(Ordering::SeqCst), 0, "joined");
    }

    #[test]
    fn rows_and_parts_are_visited_once_each() {
        let pool = ThreadPool::new(3).unwrap();
        let mut data = vec![0_usize; 5000 * 3];
        pool.for_each_row(&mut data, 3, &|index, row| row.iter_mut().for_each(|x| *x += index));
        pool.for_each_part(&mut data, &[1, 1, 9000, 15_000], &|index, thread, part| {
            assert!(thread < 3);
            for x in part {
                *x += 10_000 * index;
            }
        });
        let expected = |i: usize| i / 3 + 10_000 * if i < 1 { 0 } else { 2 + usize::from(i >= 9000) };
        assert!(data.iter().enumerate().all(|(i, &x)| x == expected(i)));
    }

    #[test]
    fn many_jobs_in_a_row_wake_parked_workers() {
        let pool = ThreadPool::new(3).unwrap();
        let total = AtomicUsize::new(0);
        for round in 0..2000 {
            if round % 500 == 0 {
                std::thread::yield_now();
            }
            pool.run(7, &|chunk, _| {
                total.fetch_add(chunk, Ordering::Relaxed);
            });
        }
        assert_eq!(total.load(Ordering::Relaxed), 2000 * 21);
    }

    #[test]
    fn a_panic_in_a_job_reaches_the_caller_and_the_pool_survives() {
        let pool = ThreadPool::new(2).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(50, &|chunk, _| assert!(chunk != 20, "planned"));
        }));
        assert!(outcome.is_err());
        let ran = AtomicUsize::new(0);
        pool.run(8, &|_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 8);
    }
}
