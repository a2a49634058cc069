//! Every path that a Markdown file names exists.
//!
//! Two forms count as naming a path: the target of a link, and inline code that starts with a folder of the root or is
//! a file name of the root. Fenced blocks and placeholders (`<name>`, `*`) are left alone.

use std::path::Path;

use anyhow::Result;

use super::Finding;
use crate::source_tree::SourceTree;

/// Inline code that starts so is a path from the root.
const ROOT_FOLDERS: &[&str] =
    &["crates/", "docs/", "xtask/", "testdata/", "examples/", "adapters/", ".ci/", ".cargo/", "./", "../"];

/// Inline code that ends so and has no slash is a file of the root or of the Markdown file's folder.
const ROOT_ENDINGS: &[&str] = &[".md"];

pub(super) fn check(tree: &SourceTree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.with_extension("md") {
        let text = tree.text(file)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        for (line_index, line) in prose_lines(&text) {
            let from_root = inline_code(line).filter(|code| is_path(code)).map(|path| (path, true));
            let from_folder = link_targets(line).map(|path| (path, false));
            for (path, may_start_at_root) in from_root.chain(from_folder) {
                let exists = tree.contains(&folder.join(path)) || (may_start_at_root && tree.contains(Path::new(path)));
                if !exists {
                    findings.push(Finding::at_line(file, line_index, format!("`{path}` does not exist")));
                }
            }
        }
    }
    Ok(findings)
}

/// The lines outside fenced blocks, with their indices.
fn prose_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_fenced = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        !is_fenced && !is_fence
    })
}

/// What stands between single back quotes.
fn inline_code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn is_path(code: &str) -> bool {
    let plain = code.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let starts = ROOT_FOLDERS.iter().any(|folder| code.starts_with(folder));
    let ends = !code.contains('/') && ROOT_ENDINGS.iter().any(|ending| code.ends_with(ending) && code != *ending);
    plain && (starts || ends)
}

/// The targets of `[text](target)` that are paths, without their anchors.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let paths = targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
    paths.filter_map(|target| target.split('#').next()).filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::testing::findings;
    use super::check;

    fn said_about(markdown: &str) -> Vec<String> {
        findings(
            check,
            &[("docs/page.md", markdown), ("docs/other.md", ""), ("crates/a/src/lib.rs", ""), ("TOP.md", "")],
        )
    }

    #[test]
    fn paths_that_exist_are_fine() {
        let text =
            "See [other](other.md#part), [up](../TOP.md), `crates/a/src/lib.rs`, `crates/a`, `TOP.md`, `docs/`.\n";
        assert!(said_about(text).is_empty());
    }

    #[test]
    fn what_names_no_path_is_left_alone() {
        let text = "`crates/<name>/src`, `a/b`, `.md`, [web](https://example.org/x), [here](#anchor)\n```\n`docs/no.md`\n```\n";
        assert!(said_about(text).is_empty());
    }

    #[test]
    fn a_missing_path_is_found_with_its_line() {
        let text = "\n[gone](gone.md) and `crates/b/src/lib.rs`\n```\n```\n`GONE.md`\n";
        assert_eq!(
            said_about(text),
            [
                "docs/page.md:2: `crates/b/src/lib.rs` does not exist",
                "docs/page.md:2: `gone.md` does not exist",
                "docs/page.md:5: `GONE.md` does not exist",
            ]
        );
    }
}
