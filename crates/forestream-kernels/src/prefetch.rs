//! Asking for memory before it is needed.

/// Bytes of a cache line.
pub(crate) const LINE_BYTES: usize = 64;

/// Asks for the cache line at `address`, which may be any; where the target has no such instruction, nothing happens.
#[inline(always)]
pub(crate) fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which no address can make fail.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for all of `slice`.
#[inline(always)]
pub(crate) fn prefetch<T>(slice: &[T]) {
    let mut offset = 0;
    while offset < size_of_val(slice) {
        prefetch_line(slice.as_ptr().cast::<u8>().wrapping_add(offset));
        offset += LINE_BYTES;
    }
}
