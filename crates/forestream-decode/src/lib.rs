//! Drafting, verification, acceptance and sampling: how a model's logits become tokens.
//!
//! The types that matter: [`Round`], one target pass over the token trees of several sequences; [`Sequence`], one text
//! in the making; [`Generation`], an iterator of tokens; [`Drafter`], what proposes; [`STRATEGIES`], the registered ways
//! to draft. Pure and deterministic: no I/O, no text, no threads, and no clock but in [`Timings`].

#![allow(clippy::float_cmp, reason = "numbers are compared bit for bit: that is what this crate promises")]

pub mod acceptance;
pub mod strategies;
#[doc(hidden)]
pub mod testing;

mod budget;
mod combined;
mod draft;
mod error;
mod generation;
mod logits;
mod pace;
mod random;
mod round;
mod sampler;
mod sequence;
mod settings;
mod stats;
mod stream_batch;
mod worth;

pub use acceptance::{Acceptance, SampleAndMatch};
pub use budget::{Budget, CostCurve, PassBase};
pub use combined::Combined;
pub use draft::{AwaitedStreams, Draft, DraftRequest, Drafter, Limits, UnverifiedPass, VerifiedRound};
pub use error::DecodeError;
pub use generation::{Generation, Token};
pub use logits::{Candidate, Distribution};
pub use pace::LiveCurve;
pub use random::Random;
pub use round::Round;
pub use sampler::Sampler;
pub use sequence::{FinishReason, Sequence, SequenceOptions};
pub use settings::SamplingSettings;
pub use stats::{Stats, Timings};
pub use strategies::{STRATEGIES, Strategy};
pub use worth::PassReport;
