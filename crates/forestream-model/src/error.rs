//! What can go wrong between a file and its logits.

use std::path::{Path, PathBuf};

use crate::TokenId;

/// Errors of this crate. Each names the place, and both sides where two things disagree.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file's content contradicts its format.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, where, and what to do.
        problem: String,
    },
    /// The file is valid, but this build cannot run it.
    #[error("{path}: {problem}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported, and what is.
        problem: String,
    },
    /// The system does not start as many threads as are asked for.
    #[error("{reason}; lower --threads")]
    Threads {
        /// Which thread, and what the system said.
        reason: std::io::Error,
    },
    /// A token id beyond the vocabulary.
    #[error("token id {token} is not in the vocabulary of {vocab_size} tokens")]
    TokenOutOfRange {
        /// The offending id.
        token: TokenId,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// More positions are asked for than the context has.
    #[error(
        "the context of {capacity} tokens is full: {needed} are needed; shorten the prompt, or raise --ctx-size if the \
         model was trained for more"
    )]
    ContextFull {
        /// Positions that the cache may hold.
        capacity: usize,
        /// Positions that the pass needs.
        needed: usize,
    },
}

impl ModelError {
    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn unsupported(path: &Path, problem: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), problem: problem.into() }
    }

    /// What makes an error of the system's, while `path` is written.
    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        |source| Self::Write { path, source }
    }
}
