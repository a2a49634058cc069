//! Training of adapters: texts in, speculative streams out, and in joint mode a task for the model's own rows.
//!
//! The types that matter: [`DataReader`], rows of a file as [`Example`]s; [`TrainJob`], what to train; and [`Trainer`],
//! the run, which can be stopped and resumed bit for bit. The crate knows no command line. Source: Speculative Streaming
//! (arXiv 2402.11131), section 3.

mod adamw;
mod batch;
mod calibration;
mod checkpoint;
mod data;
mod draft_vocabulary;
mod error;
mod evaluate;
mod export;
mod features;
mod gradients;
mod initial;
mod inner_features;
mod job;
mod measure;
mod merge;
mod objective;
mod pieces;
mod preset;
mod progress;
mod rows;
mod schedule;
mod settings;
mod targets;
mod tensorboard;
mod trace_memory;
mod trainer;
mod workers;

pub use checkpoint::CHECKPOINT;
pub use data::{DataError, DataReader, Dataset, Draw, Example, RowTexts, Writer};
pub use error::TrainError;
pub use evaluate::Evaluation;
pub use export::{Origin, PROVENANCE};
pub use job::TrainJob;
pub use merge::merge;
pub use preset::Preset;
pub use progress::{LOG, NextTokenFigures, Observer, StepReport, StepSeconds};
pub use rows::{Place, Row, RowError, RowFile};
pub use schedule::Schedule;
pub use settings::{JointSettings, Objective, TrainSettings};
pub use tensorboard::EVENTS;
pub use trainer::{Outcome, Start, Trainer, check_output};
