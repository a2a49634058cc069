//! `cargo xtask tidy`: the rules that no compiler knows.
//!
//! One file per rule; a rule reads a [`SourceTree`] and returns findings. It judges text and never builds anything.

mod arrows;
mod doc_paths;
mod file_length;
mod forbidden_words;
mod module_names;
mod registries;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::process::report;
use crate::source_tree::SourceTree;

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    file: PathBuf,
    /// Counted from 1; `None` for the file as a whole.
    line: Option<usize>,
    message: String,
}

impl Finding {
    fn in_file(file: &Path, message: String) -> Self {
        Self { file: file.to_owned(), line: None, message }
    }

    fn at_line(file: &Path, line_index: usize, message: String) -> Self {
        Self { file: file.to_owned(), line: Some(line_index + 1), message }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        write!(formatter, ": {}", self.message)
    }
}

type Rule = fn(&SourceTree) -> Result<Vec<Finding>>;

const RULES: &[Rule] = &[
    arrows::check,
    registries::check,
    doc_paths::check,
    file_length::check,
    module_names::check,
    forbidden_words::check,
];

/// Applies every rule to the workspace at `root` and prints what is broken.
///
/// # Errors
/// If a rule is broken or a file cannot be read.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tree = SourceTree::read(root)?;
    let mut num_findings = 0;
    for rule in RULES {
        for finding in rule(&tree)? {
            report(&finding.to_string());
            num_findings += 1;
        }
    }
    if num_findings > 0 {
        bail!("tidy: {num_findings} findings");
    }
    report("tidy: nothing to say");
    Ok(())
}

#[cfg(test)]
mod testing {
    //! Small made-up trees.

    use std::fs;

    use super::{Rule, SourceTree};

    /// Writes `files` (path, text) into a fresh folder and returns what `rule` says about them.
    pub(super) fn findings(rule: Rule, files: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let tree = SourceTree::read(folder.path()).unwrap();
        rule(&tree).unwrap().iter().map(ToString::to_string).collect()
    }
}
