//! Memory for packed weights: a few large mappings instead of hundreds of allocations.
//!
//! Every pass reads all weights once, so translating addresses costs more than anything but the reading itself. Large
//! mappings can be backed by huge pages, which the system is asked for.

use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

use crate::prefetch::LINE_BYTES;

/// Bytes of a mapping, unless a single matrix needs more. Pages that are never written take no memory.
const MAPPING_BYTES: usize = 256 << 20;

/// Hands out regions of large mappings.
#[derive(Debug, Default)]
pub struct WeightMemory {
    current: Mutex<Option<(Arc<Mapping>, usize)>>,
}

/// A private anonymous mapping, filled region by region.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    len: usize,
    _memory: MmapMut,
}

// SAFETY: all access goes through regions, which do not overlap.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// A part of a mapping that belongs to one matrix.
#[derive(Debug)]
pub(super) struct Region {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
}

impl WeightMemory {
    /// No memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `len` zero bytes, aligned to a cache line.
    pub(super) fn take(&self, len: usize) -> std::io::Result<Region> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (mapping, used) = match current.take() {
            Some((mapping, used)) if mapping.len - used >= len => (mapping, used),
            // Whole lines, so that what is used never comes to more than there is.
            _ => (Arc::new(Mapping::new(len.max(MAPPING_BYTES).next_multiple_of(LINE_BYTES))?), 0),
        };
        let region = Region { mapping: Arc::clone(&mapping), offset: used, len };
        *current = Some((mapping, (used + len).next_multiple_of(LINE_BYTES)));
        Ok(region)
    }
}

impl Mapping {
    fn new(len: usize) -> std::io::Result<Self> {
        let mut memory = MmapMut::map_anon(len)?;
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage); // a system without huge pages is only slower
        Ok(Self { start: memory.as_mut_ptr(), len, _memory: memory })
    }
}

impl Region {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the region lies within the mapping, and nobody else has it.
        unsafe { std::slice::from_raw_parts(self.mapping.start.add(self.offset), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start.add(self.offset), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zero_aligned_and_do_not_overlap() {
        let memory = WeightMemory::new();
        let sizes = [1, 100, 64, 0, (300 << 20) + 34, 7];
        let mut regions: Vec<Region> = sizes.map(|len| memory.take(len).unwrap()).into();
        for (mark, region) in (1..).zip(&mut regions) {
            assert_eq!(region.bytes().as_ptr() as usize % LINE_BYTES, 0);
            assert!(region.bytes().iter().take(1000).all(|&byte| byte == 0));
            let len = region.len.min(1000);
            region.bytes_mut()[..len].fill(mark);
        }
        for (mark, region) in (1..).zip(&regions) {
            assert!(region.bytes().iter().take(1000).all(|&byte| byte == mark));
        }
    }
}
