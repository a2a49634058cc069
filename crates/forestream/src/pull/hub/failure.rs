//! What a failure of the Hub's client means, and what to do about it.

use std::io::{self, ErrorKind};

use hf_hub::Cache;
use hf_hub::api::sync::ApiError;

use crate::pull::SourceError;

/// How the client words the answer of a server; its type for it is not public.
const STATUS: &str = "http status: ";

/// What was asked of the Hub.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) repository: &'a str,
    /// A file of it; none where the repository was listed.
    pub(super) file: Option<&'a str>,
    /// Bytes that were still to come, where that is known.
    pub(super) needed_bytes: Option<u64>,
}

/// The failure in the user's words.
pub(super) fn describe(error: ApiError, question: Question) -> SourceError {
    let Question { repository, file, needed_bytes } = question;
    let what = file.map_or_else(|| repository.to_owned(), |file| format!("{file} of {repository}"));
    match error {
        ApiError::IoError(error) if is_full(&error) => {
            SourceError::DiskFull { directory: Cache::from_env().path().clone(), needed_bytes }
        }
        ApiError::LockAcquisition(path) => SourceError::Busy { path },
        ApiError::RequestError(error) => describe_answer(&error.to_string(), &what, question),
        error => SourceError::Hub(format!("{what}: {error}")),
    }
}

fn describe_answer(answer: &str, what: &str, question: Question) -> SourceError {
    let repository = question.repository;
    match answer.strip_prefix(STATUS).and_then(|status| status.parse::<u16>().ok()) {
        Some(status @ (401 | 403)) => SourceError::Refused(format!(
            "{what} is refused (status {status}): accept the licence on the repository's page, and give a token that may read \
             {repository} with --hf-token; the Hub also says this when there is no such repository"
        )),
        Some(404) => SourceError::NotFound(match question.file {
            Some(file) => format!("there is no file {file} in {repository} (status 404)"),
            None => format!("there is no repository {repository} (status 404)"),
        }),
        _ => SourceError::Hub(format!("{what}: {answer}")),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: Question = Question { repository: "nobody/tiny", file: None, needed_bytes: None };
    const FILE: Question = Question { repository: "nobody/tiny", file: Some("config.json"), needed_bytes: Some(12) };

    #[test]
    fn a_full_disk_is_told_from_the_network() {
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            let error = describe(ApiError::IoError(kind.into()), FILE);
            assert!(matches!(error, SourceError::DiskFull { needed_bytes: Some(12), .. }), "{error}");
        }
        let error = describe(ApiError::IoError(ErrorKind::ConnectionReset.into()), FILE);
        assert!(matches!(&error, SourceError::Hub(text) if text.contains("config.json of nobody/tiny")), "{error}");
    }

    #[test]
    fn each_answer_has_its_remedy() {
        let cases = [
            (401, LISTING, "--hf-token"),
            (403, FILE, "accept the licence"),
            (404, LISTING, "no repository nobody/tiny"),
            (404, FILE, "no file config.json in nobody/tiny"),
            (503, FILE, "http status: 503"),
        ];
        for (status, question, expected) in cases {
            let message = describe_answer(&format!("{STATUS}{status}"), "it", question).to_string();
            assert!(message.contains(expected), "{expected} is not in: {message}");
        }
    }
}
