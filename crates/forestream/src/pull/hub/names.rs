//! What a server says and paths in the cache are made of: nothing that leads out of it.

use super::choice::is_plain_file_name;
use crate::pull::SourceError;

/// Who answers, and for what.
#[derive(Clone, Copy)]
pub(super) struct Answer<'a> {
    pub(super) server: &'a str,
    pub(super) repository: &'a str,
}

impl Answer<'_> {
    /// Refuses a file that would not be kept inside its snapshot.
    pub(super) fn check_file(self, name: &str) -> Result<(), SourceError> {
        self.check("file name", name, name.split('/').all(is_plain_file_name))
    }

    /// Refuses a commit or an etag that could not be the name of a directory or a file.
    pub(super) fn check_commit_and_etag(self, commit: &str, etag: &str) -> Result<(), SourceError> {
        self.check("commit", commit, is_word(commit, ""))?;
        // Servers that pack what they send mark its etag as weak.
        self.check("etag", etag, is_word(etag.strip_prefix("W/").unwrap_or(etag), "-_+="))
    }

    fn check(self, what: &'static str, name: &str, is_safe: bool) -> Result<(), SourceError> {
        let Self { server, repository } = self;
        let [server, repository, name] = [server, repository, name].map(str::to_owned);
        if is_safe { Ok(()) } else { Err(SourceError::UnsafeName { server, repository, what, name }) }
    }
}

/// Whether `text` is made of letters and digits of ASCII, and of `marks`.
fn is_word(text: &str, marks: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: Answer = Answer { server: "http://hub", repository: "somebody/tiny" };

    #[test]
    fn files_stay_in_their_snapshot() {
        for name in ["config.json", "onnx/model.safetensors", "a b.gguf", "..gguf", ".hidden", "c/train/0000.parquet"] {
            ANSWER.check_file(name).unwrap();
        }
        for name in ["", ".", "..", "/a", "a/", "a//b", "./a", "../a", "a/..", "a/../b", "a/./b"] {
            let error = ANSWER.check_file(name).unwrap_err().to_string();
            let start = format!("http://hub answers for somebody/tiny with the file name {name:?}");
            assert!(error.starts_with(&start), "{error}");
        }
    }

    #[test]
    fn commits_and_etags_are_words() {
        let commit = "8f14e45fceea167a5a36dedd4bea2543";
        for etag in [commit, "1", "5f3759df-86c", "W/d-1ZtcDrY6", "a+b="] {
            ANSWER.check_commit_and_etag(commit, etag).unwrap();
        }
        for wrong in ["", ".", "..", "../a", "/a", "a/b", "a\\b", "C:a", "W/", "W/../a", "W/W/a", "a.part", "é"] {
            assert!(ANSWER.check_commit_and_etag(wrong, commit).is_err(), "commit {wrong:?}");
            assert!(ANSWER.check_commit_and_etag(commit, wrong).is_err(), "etag {wrong:?}");
        }
    }
}
