//! The facade that an application embeds: a model by path or name, and answers from it.
//!
//! The types that matter: [`Engine`], a loaded model with its tokenizer; [`Session`], one conversation with its cache;
//! [`Answer`], an iterator of pieces of text. [`pull`] finds models, [`compare`] and [`mod@bench`] measure, [`distill`] makes
//! training data, [`inspect`]
//! describes files. The binary is built on this and nothing else.
//!
//! ```
//! use forestream::{Engine, EngineOptions, GenerateOptions};
//! # let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
//!
//! let engine = Engine::open(&path, &EngineOptions::default())?;
//! let mut session = engine.session();
//! let prompt = session.plain_prompt("Once upon a time")?;
//! let options = GenerateOptions { max_tokens: Some(16), ..GenerateOptions::new(engine.default_sampling()) };
//! let mut answer = session.generate(&prompt, &options)?;
//! for piece in answer.by_ref() {
//!     print!("{}", piece?);
//! }
//! let report = answer.finish();
//! assert!(report.usage.completion_tokens <= 16);
//! # Ok::<(), forestream::Error>(())
//! ```

mod adapters;
mod answer;
mod backend;
mod cost_curve;
mod engine;
mod error;
mod report;
mod session;
mod statistics;
mod stream_sizes;
mod task_rows;
mod tree_passes;
mod vocabulary;

pub mod bench;
pub mod compare;
pub mod dataset;
pub mod distill;
pub mod inspect;
pub mod places;
pub mod pull;
pub mod trace;
pub mod train;

pub use adapters::AdapterChoice;
pub use answer::Answer;
pub use backend::{BACKENDS, Backend};
pub use engine::{Engine, EngineOptions};
pub use error::Error;
pub use forestream_burn::{DEVICES, NamedDevice};
pub use forestream_decode::strategies::{PLAIN, Requires, StreamPass, StreamingOptions, TreeShape, find as strategy};
pub use forestream_decode::{STRATEGIES, SamplingSettings};
pub use forestream_model::Pruning;
pub use forestream_model::{Format, Isa, TokenId};
pub use forestream_text::{ChatTemplate, Message};
pub use report::{FinishReason, Report, ReportTimings, Speculative, Usage};
pub use session::{AUTO, AtStopToken, GenerateOptions, Session};
pub use trace::Trace;
