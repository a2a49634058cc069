//! Threads that share out the chunks of one job and park when there is none.
//!
//! A pass is a sequence of a few hundred short jobs, so a worker spins for some microseconds before it parks: on a quiet
//! machine the next job finds it awake, on a busy one it does not take time from others. Chunks are claimed one by one,
//! and a job ends when its chunks are done, not when every worker has looked at it: a thread without a core delays a job
//! by one chunk at most. Which thread computes a chunk never changes a result: chunks write disjoint outputs.
//!
//! What a job costs beside its chunks is the cache lines that go from one core to another and are waited for, so there are
//! few: the caller writes one, for which workers look; each thread claims from a share of its own; and a worker says what
//! it has done before it looks for others to help. A claim carries the number of its job and fails in any other, so a worker
//! that comes late finds nothing to do and touches nothing.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

use crate::prefetch::prefetch_line;
use crate::shared_slice::SharedSlice;

/// Polls before a waiting thread parks: about 20 microseconds, longer than the serial parts between two jobs.
const SPIN_LIMIT: u32 = 1000;

/// Bits of a [`Ticket`] or a share that count chunks; those above are the number of the job.
const CHUNK_BITS: u32 = 24;
const CHUNK_MASK: u64 = (1 << CHUNK_BITS) - 1;

/// The number of a job and how many chunks it has, in one word, so that nobody sees those of two jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ticket(u64);

impl Ticket {
    fn number(self) -> u64 {
        self.0 >> CHUNK_BITS
    }

    fn num_chunks(self) -> usize {
        (self.0 & CHUNK_MASK) as usize
    }
}

/// A job without its type: a closure on the caller's stack, and the function that calls it.
#[derive(Clone, Copy)]
struct Job {
    closure: *const (),
    call: unsafe fn(*const (), usize, usize),
}

impl Job {
    fn new<F: Fn(usize, usize) + Sync>(closure: &F) -> Self {
        unsafe fn call<F: Fn(usize, usize)>(closure: *const (), chunk: usize, thread: usize) {
            // SAFETY: `closure` is the `F` that the job was made of; whoever calls it knows that it is alive.
            unsafe { (*closure.cast::<F>())(chunk, thread) };
        }
        Self { closure: std::ptr::from_ref(closure).cast(), call: call::<F> }
    }
}

/// The current job, written by the caller.
#[derive(Debug, Default)]
struct Posted {
    /// A [`Ticket`]; a change tells workers that there is a new job.
    ticket: AtomicU64,
    closure: AtomicPtr<()>,
    call: AtomicPtr<()>,
}

/// On cache lines of its own; two, since processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Alone<T>(T);

struct Shared {
    posted: Alone<Posted>,
    /// The share of each thread, the caller's first: the number of the last job in which it was claimed from, and the next
    /// of its chunks. They are consecutive, so that a thread reads memory in order.
    shares: Vec<Alone<AtomicU64>>,
    /// Chunks that each thread but the caller has done in all jobs.
    num_done: Vec<Alone<AtomicU64>>,
    /// Whether each thread sleeps, or is about to.
    parked: Vec<Alone<AtomicBool>>,
    is_closing: AtomicBool,
    has_panicked: AtomicBool,
    /// Whom to wake when the last chunk is done.
    caller: Mutex<Option<Thread>>,
}

/// A fixed number of threads, the caller's own included.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time: a second caller waits here. Chunks that workers have done in all jobs.
    num_done: Mutex<u64>,
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
            posted: Alone::default(),
            shares: (0..num_threads).map(|_| Alone::default()).collect(),
            num_done: (1..num_threads).map(|_| Alone::default()).collect(),
            parked: (0..num_threads).map(|_| Alone::default()).collect(),
            is_closing: AtomicBool::new(false),
            has_panicked: AtomicBool::new(false),
            caller: Mutex::new(None),
        });
        // Dropped where a thread is refused, it ends those that run already.
        let mut pool = Self { shared, workers: Vec::with_capacity(num_threads - 1), num_done: Mutex::new(0) };
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
    /// If `job` panics, or for 2^24 chunks or more.
    pub fn run<F: Fn(usize, usize) + Sync>(&self, num_chunks: usize, job: &F) {
        if self.workers.is_empty() || num_chunks <= 1 {
            for chunk in 0..num_chunks {
                job(chunk, 0);
            }
            return;
        }
        self.share_out(num_chunks, Job::new(job));
    }

    /// [`Self::run`] with workers.
    fn share_out(&self, num_chunks: usize, job: Job) {
        assert!(num_chunks + self.workers.len() < 1 << CHUNK_BITS, "{num_chunks} chunks");
        let shared = &*self.shared;
        let mut num_done = self.num_done.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = self.post(num_chunks, job);
        let is_done =
            |expected: u64| shared.num_done.iter().map(|n| n.0.load(Ordering::SeqCst)).sum::<u64>() == expected;
        let (mut num_own, mut outcome) = shared.work_through(ticket, 0, 0);
        *num_done += num_chunks as u64;
        for share in 1..shared.shares.len() {
            if is_done(*num_done - num_own) {
                break; // what lies untouched in other threads' caches should stay there
            }
            let (num_helped, helped) = shared.work_through(ticket, share, 0);
            num_own += num_helped;
            outcome = outcome.and(helped);
        }
        *num_done -= num_own;
        let expected = *num_done;
        shared.wait(
            0,
            || is_done(expected),
            || {
                *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
            },
        );
        drop(num_done);
        let worker_panicked = shared.has_panicked.swap(false, Ordering::SeqCst);
        if let Err(payload) = outcome {
            resume_unwind(payload);
        }
        assert!(!worker_panicked, "a worker thread panicked");
    }

    /// Makes `job` the current one and wakes the workers that sleep.
    fn post(&self, num_chunks: usize, job: Job) -> Ticket {
        let posted = &self.shared.posted.0;
        let number = Ticket(posted.ticket.load(Ordering::Relaxed)).number() + 1;
        let ticket = number << CHUNK_BITS | num_chunks as u64;
        posted.closure.store(job.closure.cast_mut(), Ordering::Relaxed);
        posted.call.store(job.call as *mut (), Ordering::Relaxed);
        posted.ticket.store(ticket, Ordering::SeqCst);
        self.wake_workers();
        Ticket(ticket)
    }

    fn wake_workers(&self) {
        for (worker, parked) in self.workers.iter().zip(&self.shared.parked[1..]) {
            if parked.0.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
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
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::SeqCst);
        self.shared.posted.0.ticket.fetch_add(1 << CHUNK_BITS, Ordering::SeqCst);
        self.wake_workers();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Computes what is left of a share in a job. Returns how many chunks were claimed, and the panic of one; after that,
    /// the rest of the share is claimed without being computed.
    fn work_through(&self, ticket: Ticket, share: usize, thread: usize) -> (u64, std::thread::Result<()>) {
        let mut num_claimed = 0;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            while let Some(chunk) = self.claim(ticket, share) {
                num_claimed += 1;
                let closure = self.posted.0.closure.load(Ordering::Relaxed);
                let call = self.posted.0.call.load(Ordering::Relaxed);
                // SAFETY: the job is not over before this chunk is done, so the caller waits and what it has posted for the
                // job is still there: a function of this type, and its closure.
                unsafe {
                    let call: unsafe fn(*const (), usize, usize) = std::mem::transmute(call);
                    call(closure, chunk, thread);
                }
            }
        }));
        if outcome.is_err() {
            while self.claim(ticket, share).is_some() {
                num_claimed += 1;
            }
        }
        (num_claimed, outcome)
    }

    /// The next chunk of a share; none when all are claimed, or the job is over.
    fn claim(&self, ticket: Ticket, share: usize) -> Option<usize> {
        let (next, number) = (&self.shares[share].0, ticket.number());
        let bound = |index: usize| (index * ticket.num_chunks() / self.shares.len()) as u64;
        let end = bound(share + 1);
        let mut word = next.load(Ordering::Acquire);
        loop {
            let chunk = match (word >> CHUNK_BITS).cmp(&number) {
                std::cmp::Ordering::Less => bound(share),
                std::cmp::Ordering::Equal => word & CHUNK_MASK,
                std::cmp::Ordering::Greater => return None,
            };
            if chunk >= end {
                return None;
            }
            let after = number << CHUNK_BITS | (chunk + 1);
            match next.compare_exchange_weak(word, after, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(chunk as usize),
                Err(changed) => word = changed,
            }
        }
    }

    /// Spins, then parks after `prepare`, until `is_done`; whoever makes it true unparks this thread if it is parked.
    fn wait(&self, thread: usize, is_done: impl Fn() -> bool, prepare: impl FnOnce()) {
        for _ in 0..SPIN_LIMIT {
            if is_done() {
                return;
            }
            std::hint::spin_loop();
        }
        prepare();
        let parked = &self.parked[thread].0;
        parked.store(true, Ordering::SeqCst);
        while !is_done() {
            std::thread::park();
        }
        parked.store(false, Ordering::SeqCst);
    }

    /// Says that a worker has done this many chunks more.
    fn report(&self, thread: usize, num_chunks: u64) {
        self.num_done[thread - 1].0.fetch_add(num_chunks, Ordering::SeqCst);
        if self.parked[0].0.load(Ordering::SeqCst)
            && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
        {
            caller.unpark();
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = Ticket(0);
    loop {
        shared.wait(index, || shared.posted.0.ticket.load(Ordering::SeqCst) != seen.0, || {});
        seen = Ticket(shared.posted.0.ticket.load(Ordering::SeqCst));
        if shared.is_closing.load(Ordering::SeqCst) {
            return;
        }
        prefetch_line(shared.posted.0.closure.load(Ordering::Relaxed).cast());
        let num_shares = shared.shares.len();
        for share in (index..num_shares).chain(0..index) {
            let (num_chunks, outcome) = shared.work_through(seen, share, index);
            if outcome.is_err() {
                shared.has_panicked.store(true, Ordering::SeqCst);
            }
            if num_chunks > 0 {
                shared.report(index, num_chunks);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

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
    fn rows_are_visited_once_each() {
        let pool = ThreadPool::new(3).unwrap();
        let mut data = vec![0_usize; 5000 * 3];
        pool.for_each_row(&mut data, 3, &|index, row| row.iter_mut().for_each(|x| *x += index + 1));
        assert!(data.iter().enumerate().all(|(i, &x)| x == i / 3 + 1));
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
    fn jobs_of_any_size_follow_each_other() {
        let pool = ThreadPool::new(5).unwrap();
        let counts: [AtomicUsize; 12] = std::array::from_fn(|_| AtomicUsize::new(0));
        for round in 0..12_000 {
            let num_chunks = round * 7 % 13; // some leave threads without a share
            pool.run(num_chunks, &|chunk, _| {
                counts[chunk].fetch_add(1, Ordering::Relaxed);
            });
            let once = |count: &AtomicUsize| count.swap(0, Ordering::Relaxed) == 1;
            assert!(counts[..num_chunks].iter().all(once), "round {round}");
        }
    }

    #[test]
    fn a_panic_in_a_job_reaches_the_caller_and_the_pool_survives() {
        let pool = ThreadPool::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
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
