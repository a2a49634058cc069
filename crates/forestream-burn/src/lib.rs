//! The decoder's differentiable twin: streams, and the layers that they run through, over Burn tensors.
//!
//! The engine computes what a pass needs, fast and bit for bit; this crate computes the same mathematics with gradients,
//! on the processor or on any device that Burn knows. It reads the same checkpoints ([`StreamBase`]) and the same adapters
//! ([`StreamWeights`]). Knows no losses, no optimizers, no text.

mod attention;
mod base;
mod cache_rows;
mod changes;
mod devices;
mod early_exit;
mod error;
mod joint;
mod layer;
mod load;
mod model;
mod model_streams;
mod random;
mod rotation;
mod segment;
mod streams;
mod weights;

pub use base::StreamBase;
/// The tensors of this crate's interface.
pub use burn_tensor as tensor;
pub use devices::{DEVICES, NamedDevice};
pub use early_exit::early_exit_logits;
pub use error::BurnError;
pub use joint::{JointLogits, JointText, joint_logits};
pub use model::BurnModel;
pub use segment::Segment;
pub use streams::{inner_energies, stream_logits, stream_states};
pub use weights::StreamWeights;
