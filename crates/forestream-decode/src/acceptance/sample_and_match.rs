//! Sample and match: the target draws every token, and a draft only saves passes.
//!
//! The draw is the one that plain decoding would make at that position, whatever was drafted. So the text is identical
//! for any tree, however it was built or cut. Exact for greedy decoding and for sampling.

use super::{Acceptance, Walk};
use crate::DecodeError;

/// The default rule: one target draw per emitted token; descend while a child carries it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SampleAndMatch;

impl Acceptance for SampleAndMatch {
    fn walk(&self, walk: &mut Walk<'_>) -> Result<(), DecodeError> {
        loop {
            let token = walk.draw()?;
            let child = walk.draft().tree().child_with(walk.node(), token);
            if walk.emit(token, child).is_break() {
                return Ok(());
            }
        }
    }
}
