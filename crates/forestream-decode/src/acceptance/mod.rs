//! Acceptance rules: which drafted path is kept, and which tokens the round emits.
//!
//! | rule | text | use |
//! |---|---|---|
//! | [`SampleAndMatch`] | identical to plain decoding, bit for bit | always, unless there is a reason |
//! | [`Rejection`] | the same law, other draws | drafts drawn from a model's distribution |
//! | [`Typical`] | another law (lossy) | a labelled baseline |

mod rejection;
mod sample_and_match;
mod typical;
mod walk;

pub use rejection::{Rejection, Residual};
pub use sample_and_match::SampleAndMatch;
pub use typical::Typical;
pub(crate) use walk::Stop;
pub use walk::Walk;

use crate::DecodeError;

/// Decides one verified draft of one sequence.
pub trait Acceptance: Send + Sync {
    /// Walks down the tree, emitting tokens until one is emitted that was not drafted.
    ///
    /// # Errors
    /// [`DecodeError::NothingToDraw`] when the target offers no token.
    fn walk(&mut self, walk: &mut Walk<'_>) -> Result<(), DecodeError>;
}
