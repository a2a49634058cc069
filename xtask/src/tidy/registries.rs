//! A file in a registry's folder is in the registry's list.

use std::path::Path;

use anyhow::Result;

use super::Finding;
use crate::source_tree::SourceTree;

/// A folder of entries and the list, in its `mod.rs`, that must name each of them.
struct Registry {
    folder: &'static str,
    list: &'static str,
    /// What a file holds that is an entry, and not something that entries share.
    marks: &'static [&'static str],
}

const REGISTRIES: &[Registry] = &[
    Registry {
        folder: "crates/forestream-decode/src/strategies",
        list: "STRATEGIES",
        marks: &["impl Drafter for", ": Strategy ="],
    },
    Registry {
        folder: "crates/forestream-model/src/architectures",
        list: "ARCHITECTURES",
        marks: &[": Architecture ="],
    },
];

pub(super) fn check(tree: &SourceTree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for registry in REGISTRIES.iter().filter(|registry| tree.contains(Path::new(registry.folder))) {
        check_registry(tree, registry, &mut findings)?;
    }
    Ok(findings)
}

fn check_registry(tree: &SourceTree, registry: &Registry, findings: &mut Vec<Finding>) -> Result<()> {
    let folder = Path::new(registry.folder);
    let mod_file = folder.join("mod.rs");
    let text = if tree.contains(&mod_file) { tree.text(&mod_file)? } else { String::new() };
    let Some(list) = list_of(&text, registry.list) else {
        findings.push(Finding::in_file(&mod_file, format!("the list `{}` is missing", registry.list)));
        return Ok(());
    };
    for file in tree.files().iter().filter(|file| file.parent() == Some(folder) && **file != mod_file) {
        let text = tree.text(file)?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let is_entry = registry.marks.iter().any(|mark| text.contains(mark));
        if is_entry && !list.contains(&format!("{name}::")) {
            findings.push(Finding::in_file(file, format!("`{name}` is not registered in {}", registry.list)));
        }
    }
    Ok(())
}

/// The text of `static NAME: ... = ...;` (or `const`) after its `=`.
fn list_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let definition = ["static", "const"].iter().find_map(|keyword| text.find(&format!("{keyword} {name}:")))?;
    let definition = &text[definition..];
    let value = &definition[definition.find('=')?..];
    Some(&value[..value.find("];")?])
}

#[cfg(test)]
mod tests {
    use super::super::testing::findings;
    use super::check;

    const FOLDER: &str = "crates/forestream-decode/src/strategies";

    fn said_about(mod_text: &str, entry_text: &str) -> Vec<String> {
        let [mod_file, entry] = ["mod.rs", "ngram.rs"].map(|name| format!("{FOLDER}/{name}"));
        findings(check, &[(&mod_file, mod_text), (&entry, entry_text)])
    }

    #[test]
    fn a_registered_file_is_fine() {
        let text = "mod ngram;\npub static STRATEGIES: &[&Strategy] = &[\n    &ngram::STRATEGY,\n];";
        assert!(said_about(text, "impl Drafter for Ngram {}").is_empty());
    }

    #[test]
    fn a_file_that_only_its_module_line_names_is_found() {
        let text = "mod ngram;\npub const STRATEGIES: &[&Strategy] = &[\n];\nuse ngram::STRATEGY;";
        for entry in ["impl Drafter for Ngram {}", "pub(super) const STRATEGY: Strategy = Strategy {};"] {
            let said = said_about(text, entry);
            assert_eq!(said, [format!("{FOLDER}/ngram.rs: `ngram` is not registered in STRATEGIES")]);
        }
    }

    #[test]
    fn what_entries_share_needs_no_registration() {
        assert!(said_about("mod ngram;\npub static STRATEGIES: &[&Strategy] = &[];", "struct Suffixes;").is_empty());
    }

    #[test]
    fn a_missing_list_is_found() {
        assert_eq!(said_about("mod ngram;", ""), [format!("{FOLDER}/mod.rs: the list `STRATEGIES` is missing")]);
    }
}
