//! Errors of the file of answers.

use std::path::PathBuf;

/// Errors of the file of answers.
#[derive(Debug, thiserror::Error)]
pub enum DistillError {
    /// The file cannot be opened, read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried: open, read, write.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another run writes the file.
    #[error("another run writes to {path}; wait for its end, or give another --output")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file exists and is something else.
    #[error("{path} does not begin as a file of answers does; it is left as it is, so give another --output")]
    NotAnswers {
        /// The file.
        path: PathBuf,
    },
    /// The answers in the file were made otherwise.
    #[error(
        "{path} holds answers made with {setting} {in_file}, and {asked} is asked for now; give another --output, or the \
         same settings"
    )]
    OtherSettings {
        /// The file.
        path: PathBuf,
        /// What differs.
        setting: String,
        /// What the file says.
        in_file: String,
        /// What was asked for.
        asked: String,
    },
    /// A line of the file is no answer.
    #[error(
        "{path}, line {line}: not an answer: {problem}; remove this line and those after it, or give another --output"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A line of the file answers another prompt than the data have at its place.
    #[error(
        "{path}, line {line}: the answer is to {in_file:?}, but prompt {number} of the data is {asked:?}; give another \
         --output, or the data that the file was made with"
    )]
    OtherPrompt {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The prompt of the line, shortened.
        in_file: String,
        /// The prompt's number, from 1.
        number: usize,
        /// The prompt of the data, shortened.
        asked: String,
    },
    /// The file answers more prompts than the data have.
    #[error(
        "{path} has {num_answers} answers, and the data have {num_prompts} prompts; give another --output, or the data \
         that the file was made with"
    )]
    TooManyAnswers {
        /// The file.
        path: PathBuf,
        /// Answers in the file.
        num_answers: usize,
        /// Prompts of the data.
        num_prompts: usize,
    },
}
