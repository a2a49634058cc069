//! Nothing is allocated in a round once buffers are warm, but for the blocks of the cache.
#![expect(unsafe_code, reason = "a global allocator that counts is unsafe by its trait")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use forestream_decode::acceptance::Rejection;
use forestream_decode::testing::FakeModel;
use forestream_decode::{
    Budget, DecodeError, Draft, DraftRequest, Drafter, Round, SamplingSettings, Sequence, SequenceOptions,
};
use forestream_model::NodeId;
use support::{MAX_TOKENS, budgets, drafter, model, options, samplings, sequence};

thread_local! {
    static NUM_ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting for each thread.
struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NUM_ALLOCATIONS.set(NUM_ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is the one that is needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of each round of a text, rounds that needed a new cache block left out.
fn count_allocations(model: &FakeModel, round: &mut Round, mut sequence: Sequence) -> Vec<usize> {
    let mut counts = Vec::with_capacity(MAX_TOKENS);
    while sequence.finish_reason().is_none() {
        let (bytes, before) = (sequence.cache().allocated_bytes(), NUM_ALLOCATIONS.get());
        round.run(model, &mut [&mut sequence]).unwrap();
        let allocations = NUM_ALLOCATIONS.get() - before;
        if sequence.cache().allocated_bytes() == bytes {
            counts.push(allocations);
        }
    }
    counts
}

#[test]
fn warm_rounds_do_not_allocate() {
    let model = model();
    // The cache's list of tokens grows by doubling; between 128 and 256 tokens it does not.
    let prompt: Vec<u32> = (0..130).map(|i| i * i % 47).collect();
    for sampling in &samplings() {
        // What streams propose for a node may be more than ever before, and then a buffer grows once more.
        for (names, num_growing) in [("none", 0), ("ngram", 0), ("streaming", 3), ("ngram,streaming", 3)] {
            for budget in budgets() {
                let max_nodes = budget.max_nodes();
                let build = || sequence(&model, &prompt, drafter(names), options(sampling));
                let mut round = Round::new(budget);
                count_allocations(&model, &mut round, build()); // the first text warms the buffers of the pass
                let counts = count_allocations(&model, &mut round, build());
                assert!(counts.len() > 8, "{} rounds are too few to show anything", counts.len());
                // The first rounds of a text size its own buffers.
                let num_allocating = counts[2..].iter().filter(|&&count| count > 0).count();
                assert!(num_allocating <= num_growing, "{names}, {max_nodes} nodes: {counts:?}");
            }
        }
    }
}

/// Proposes two tokens as if it had drawn them.
struct Drawn;

impl Drafter for Drawn {
    fn draft(&mut self, _request: &mut DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError> {
        draft.set_draft_probs(NodeId::ROOT, (0..8).map(|token| (token, 0.125)));
        for token in [3, 5] {
            draft.push(NodeId::ROOT, token, 0.5);
        }
        Ok(())
    }
}

#[test]
fn the_rejection_of_drawn_drafts_does_not_allocate() {
    let model = model();
    let prompt: Vec<u32> = (0..130).map(|i| i * i % 47).collect();
    let sampling = SamplingSettings { temperature: 1.0, ..SamplingSettings::default() };
    let build = || {
        let options = SequenceOptions { acceptance: Box::new(Rejection::default()), ..options(&sampling) };
        sequence(&model, &prompt, Box::new(Drawn), options)
    };
    let mut round = Round::new(Budget::Fixed(4));
    count_allocations(&model, &mut round, build());
    let counts = count_allocations(&model, &mut round, build());
    assert!(counts.len() > 8 && counts[3..].iter().all(|&count| count == 0), "{counts:?}");
}

#[test]
fn the_counter_counts() {
    let before = NUM_ALLOCATIONS.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(NUM_ALLOCATIONS.get(), before + 1);
    assert_eq!(Budget::Fixed(0).max_nodes(), 1);
}
