//! Words that must not be committed: unfinished code, switched-off tests, one machine's paths, registry hosts.

use std::path::Path;

use anyhow::Result;

use super::Finding;
use crate::source_tree::SourceTree;

/// A word and what to do instead.
const FORBIDDEN: &[(&str, &str)] = &[
    ("todo!", "write it, or leave it out"),
    ("unimplemented!", "write it, or leave it out"),
    ("#[ignore", "assert what holds today, with a FIXME"),
    ("/home/", "name no path of one machine"),
    ("/root/", "name no path of one machine"),
    ("://index.", "let the client find its registry"),
    ("://static.", "let the client find its registry"),
    ("://registry.", "let the client find its registry"),
    ("://files.", "let the client find its registry"),
];

const EXTENSIONS: &[&str] = &["rs", "md", "toml", "py", "sh", "yml", "yaml"];

pub(super) fn check(tree: &SourceTree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.files().iter().filter(|file| is_source(file) && !is_this_file(file)) {
        for (line_index, line) in tree.text(file)?.lines().enumerate() {
            let found = FORBIDDEN.iter().filter(|(word, _)| line.contains(word));
            findings.extend(
                found.map(|(word, remedy)| {
                    Finding::at_line(file, line_index, format!("`{word}` is forbidden: {remedy}"))
                }),
            );
        }
    }
    Ok(findings)
}

fn is_source(file: &Path) -> bool {
    let has_extension = |extension: &&str| file.extension().is_some_and(|own| *own == **extension);
    EXTENSIONS.iter().any(has_extension) || file.starts_with(".ci")
}

/// The list itself cannot but name the words.
fn is_this_file(file: &Path) -> bool {
    file.ends_with("xtask/src/tidy/forbidden_words.rs")
}

#[cfg(test)]
mod tests {
    use super::super::testing::findings;
    use super::{FORBIDDEN, check};

    #[test]
    fn every_word_is_found_with_its_line() {
        for (word, remedy) in FORBIDDEN {
            let said = findings(check, &[("crates/a/src/lib.rs", &format!("//! A crate.\n    {word}\n"))]);
            assert_eq!(said, [format!("crates/a/src/lib.rs:2: `{word}` is forbidden: {remedy}")]);
        }
    }

    #[test]
    fn scripts_and_documents_are_read_and_data_is_not() {
        let text = "/home/main";
        let said = findings(check, &[(".ci/run", text), ("README.md", text), ("testdata/text/a.txt", text)]);
        assert_eq!(
            said,
            [
                ".ci/run:1: `/home/` is forbidden: name no path of one machine",
                "README.md:1: `/home/` is forbidden: name no path of one machine",
            ]
        );
    }
}
