//! A module is named after what it holds.

use std::path::Path;

use anyhow::Result;

use super::Finding;
use crate::source_tree::SourceTree;

const FORBIDDEN: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

pub(super) fn check(tree: &SourceTree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.with_extension("rs") {
        let named = file.with_extension("");
        let parts = named.components().filter_map(|part| part.as_os_str().to_str());
        findings.extend(parts.filter(|part| FORBIDDEN.contains(part)).map(|name| unnamed(file, None, name)));
        for (line_index, line) in tree.text(file)?.lines().enumerate() {
            findings.extend(inline_module(line).map(|name| unnamed(file, Some(line_index), name)));
        }
    }
    Ok(findings)
}

/// The forbidden name of a module that opens on this line.
fn inline_module(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("mod ")?;
    let name = after.strip_suffix('{')?.trim_end();
    let is_declaration = before.is_empty() || before.ends_with(' ');
    (is_declaration && FORBIDDEN.contains(&name)).then_some(name)
}

fn unnamed(file: &Path, line_index: Option<usize>, name: &str) -> Finding {
    let message = format!("`{name}` says nothing: name the module after what it holds");
    match line_index {
        Some(index) => Finding::at_line(file, index, message),
        None => Finding::in_file(file, message),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::findings;
    use super::check;

    #[test]
    fn files_folders_and_inline_modules_are_found() {
        let said = findings(
            check,
            &[
                ("crates/a/src/utils.rs", ""),
                ("crates/a/tests/common/mod.rs", ""),
                ("crates/a/src/lib.rs", "mod round;\npub(crate) mod helpers {\n}\n"),
            ],
        );
        assert_eq!(
            said,
            [
                "crates/a/src/lib.rs:2: `helpers` says nothing: name the module after what it holds",
                "crates/a/src/utils.rs: `utils` says nothing: name the module after what it holds",
                "crates/a/tests/common/mod.rs: `common` says nothing: name the module after what it holds",
            ]
        );
    }

    #[test]
    fn other_names_are_fine() {
        assert!(findings(check, &[("crates/a/src/common_prefix.rs", "mod tests {\n// mod utils\n")]).is_empty());
    }
}
