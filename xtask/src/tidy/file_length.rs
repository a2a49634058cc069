//! A Rust file has at most 600 lines before its tests.

use std::path::Path;

use anyhow::Result;

use super::Finding;
use crate::source_tree::SourceTree;

const MAX_LINES: usize = 600;

pub(super) fn check(tree: &SourceTree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.with_extension("rs").filter(|file| !is_test_file(file)) {
        let num_lines = num_lines_before_tests(&tree.text(file)?);
        if num_lines > MAX_LINES {
            let message = format!("{num_lines} lines before its tests, at most {MAX_LINES}: split it by concept");
            findings.push(Finding::in_file(file, message));
        }
    }
    Ok(findings)
}

fn is_test_file(file: &Path) -> bool {
    file.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches")
}

/// Lines before the first inline test module.
fn num_lines_before_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let opens_tests = |pair: &[&str]| pair[0].trim() == "#[cfg(test)]" && pair[1].ends_with('{');
    lines.windows(2).position(opens_tests).unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::super::testing::findings;
    use super::check;

    fn said_about(path: &str, text: &str) -> Vec<String> {
        findings(check, &[(path, text)])
    }

    #[test]
    fn the_limit_itself_is_fine_and_one_more_is_not() {
        assert!(said_about("src/a.rs", &"x\n".repeat(600)).is_empty());
        let said = said_about("src/a.rs", &"x\n".repeat(601));
        assert_eq!(said, ["src/a.rs: 601 lines before its tests, at most 600: split it by concept"]);
    }

    #[test]
    fn tests_do_not_count() {
        let text = format!("{}#[cfg(test)]\nmod tests {{\n{}", "x\n".repeat(600), "y\n".repeat(600));
        assert!(said_about("src/a.rs", &text).is_empty());
        assert!(said_about("tests/a.rs", &"x\n".repeat(900)).is_empty());
    }

    #[test]
    fn a_test_module_in_another_file_ends_nothing() {
        let text = format!("#[cfg(test)]\nmod tests;\n{}", "x\n".repeat(600));
        assert_eq!(said_about("src/a.rs", &text).len(), 1);
    }
}
