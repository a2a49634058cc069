//! The facade that an application embeds.

mod cost_curve;
mod engine;
mod error;
mod report;
mod session;
mod statistics;
mod vocabulary;

pub mod bench;
pub mod compare;
pub mod dataset;
pub mod inspect;
pub mod places;
pub mod pull;

pub use engine::{Engine, EngineOptions};
pub use error::Error;
pub use forestream_decode::{STRATEGIES, SamplingSettings};
pub use forestream_model::{Format, Isa, TokenId};
pub use forestream_text::{ChatTemplate, Message};
pub use report::{Report, ReportTimings, Speculative, Usage};
pub use session::{Answer, AtStopToken, GenerateOptions, Session};
