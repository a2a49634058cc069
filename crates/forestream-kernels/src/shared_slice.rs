//! A mutable slice that the chunks of one job write to, each its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// Hands out disjoint parts of a slice to several threads.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a `SharedSlice` is a `&mut [T]` whose parts go to different threads; `part` demands disjointness.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first element, for parts that are no slices.
    pub(crate) fn start(&self) -> *mut T {
        self.start
    }

    /// One part.
    ///
    /// # Safety
    /// No other part that overlaps `range` may be alive.
    ///
    /// # Panics
    /// If `range` is out of bounds.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches for disjoint ranges")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds, and not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
