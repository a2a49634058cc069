//! What can go wrong between a checkpoint, a batch and its gradients.

use forestream_model::ModelError;

/// Errors of this crate. Each names the place, and both sides where two things disagree.
#[derive(Debug, thiserror::Error)]
pub enum BurnError {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Adapter and base model do not fit together.
    #[error("the adapter does not fit the base model: {0}")]
    Adapter(String),
    /// A segment contradicts the base model or itself.
    #[error("segment {index}: {what} has {got} elements, expected {expected}")]
    Segment {
        /// Which of the segments.
        index: usize,
        /// The part of it.
        what: String,
        /// How many elements it should have.
        expected: usize,
        /// How many it has.
        got: usize,
    },
    /// A token id beyond the vocabulary.
    #[error("token id {token} is not in the vocabulary of {vocab_size} tokens")]
    TokenOutOfRange {
        /// The offending id.
        token: forestream_model::TokenId,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// No rows to compute.
    #[error("there are no segments; give at least one with at least one position")]
    Empty,
}
