//! What can go wrong between a data file and an adapter.

use std::path::{Path, PathBuf};

use forestream_burn::BurnError;
use forestream_model::ModelError;

use crate::data::DataError;

/// Errors of this crate. Each names the place, and both sides where two things disagree.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model, or an adapter, cannot be read, run or written.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The differentiable model failed.
    #[error(transparent)]
    Burn(#[from] BurnError),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A setting that cannot be used.
    #[error("{what}: {problem}")]
    Setting {
        /// The flag that sets it, or in words what several flags set.
        what: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file of the run cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file of the run cannot be written.
    #[error("cannot write {path}; what was written before it is intact, so make room or choose another --output")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file of a merged model cannot be written.
    #[error("cannot write {path}; nothing of the model is left behind, so make room or choose another --output")]
    Merge {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A checkpoint that is not one.
    #[error("{path}: {problem}; remove it to start from the beginning")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A run is there already.
    #[error("{path} is the checkpoint of an unfinished run; continue it with --resume, or choose another --output")]
    Unfinished {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A run is there already, and done.
    #[error(
        "{path} is the checkpoint of a finished run, whose adapter stands beside it; start in another --output, and to \
         go on from that adapter add --init-from {directory}"
    )]
    Finished {
        /// The checkpoint.
        path: PathBuf,
        /// The directory of checkpoint and adapter.
        directory: PathBuf,
    },
    /// An adapter is there already.
    #[error(
        "{path} belongs to an adapter, which is not written over; start in another --output, and to go on from that \
         adapter add --init-from {directory}"
    )]
    AdapterExists {
        /// The adapter's configuration.
        path: PathBuf,
        /// The adapter's directory.
        directory: PathBuf,
    },
    /// A file of somebody else has the name of one that the run would write.
    #[error("{path} would be written over; choose another --output, or move it away")]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// Another run writes into the directory.
    #[error("another run writes to {path}; wait for its end, or choose another --output")]
    InUse {
        /// The file that it holds.
        path: PathBuf,
    },
    /// Nothing to resume.
    #[error("--resume: there is no checkpoint {path}; start without --resume")]
    NothingToResume {
        /// Where it should be.
        path: PathBuf,
    },
    /// The run to be resumed was another one.
    #[error("--resume: {path} was made with {name} = {then}, but now it is {now}; use the same settings and data")]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// The setting.
        name: String,
        /// Its value in the checkpoint.
        then: String,
        /// Its value now.
        now: String,
    },
    /// The loss is not a number any more.
    #[error(
        "the loss of step {step} is not finite; start again with a lower --lr in another --output (--init-from takes the \
         kept adapter of this one, if an evaluation has written one)"
    )]
    NotFinite {
        /// The step.
        step: usize,
    },
}

impl TrainError {
    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        |source| Self::Write { path: path.to_owned(), source }
    }

    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        |source| Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn setting(what: &'static str, problem: impl Into<String>) -> Self {
        Self::Setting { what, problem: problem.into() }
    }
}
