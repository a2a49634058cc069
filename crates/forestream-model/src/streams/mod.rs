//! Speculative streams: extra rows in the top layers that guess the tokens after the next one.
//!
//! Owns the adapter's format and the interface between a model with streams and the drafter that uses them. Must not
//! know how trees are built from guesses. Source: Speculative Streaming (arXiv 2402.11131).

mod adapter;
mod config;
mod identity;
mod interface;

pub use adapter::Adapter;
pub use config::{
    ADAPTER_FORMAT_VERSION, AdapterConfig, BaseModel, Calibration, LoraConfig, MAIN_LAYERS, MainLoraConfig, Projection,
    STREAM_LAYERS, StreamConfig, StreamPosition, TensorSpec, TrainingMode,
};
pub use identity::StreamIdentity;
pub use interface::{Anchor, Streams};
