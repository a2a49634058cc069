//! Crates depend on each other along these arrows alone (the map of ARCHITECTURE.md).

use std::path::Path;

use anyhow::{Context, Result};
use toml::Table;

use super::Finding;
use crate::source_tree::SourceTree;

/// A crate and the crates of this workspace that it may name in its `Cargo.toml`.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "forestream",
        &[
            "forestream-serve",
            "forestream-eval",
            "forestream-train",
            "forestream-burn",
            "forestream-decode",
            "forestream-text",
            "forestream-model",
        ],
    ),
    ("forestream-serve", &["forestream-decode", "forestream-text", "forestream-model"]),
    ("forestream-eval", &["forestream-decode", "forestream-text", "forestream-model"]),
    ("forestream-train", &["forestream-decode", "forestream-burn", "forestream-text", "forestream-model"]),
    ("forestream-burn", &["forestream-model"]),
    ("forestream-decode", &["forestream-model"]),
    ("forestream-model", &["forestream-kernels"]),
    ("forestream-kernels", &[]),
    ("forestream-text", &[]),
    ("xtask", &[]),
];

pub(super) fn check(tree: &SourceTree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.with_extension("toml").filter(|file| file.ends_with("Cargo.toml")) {
        let manifest: Table = tree.text(file)?.parse().with_context(|| format!("{} is not TOML", file.display()))?;
        findings.extend(check_manifest(file, &manifest));
    }
    Ok(findings)
}

fn check_manifest(file: &Path, manifest: &Table) -> Vec<Finding> {
    let Some(name) = manifest.get("package").and_then(|package| package.get("name")?.as_str()) else {
        return Vec::new(); // the virtual root
    };
    let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == name) else {
        return vec![Finding::in_file(file, format!("crate `{name}` is not on the map: add it to ARROWS in tidy"))];
    };
    let own = |dependency: &String| ARROWS.iter().any(|(from, _)| from == dependency);
    let wrong = dependencies(manifest).into_iter().filter(|to| own(to) && !allowed.contains(&to.as_str()));
    wrong.map(|to| Finding::in_file(file, format!("no arrow leads from `{name}` to `{to}`"))).collect()
}

/// The packages that a manifest depends on, in any section, renamed ones by their real name.
fn dependencies(manifest: &Table) -> Vec<String> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let tables = std::iter::once(manifest)
        .chain(targets.into_iter().flat_map(|targets| targets.values().filter_map(toml::Value::as_table)));
    let sections = ["dependencies", "dev-dependencies", "build-dependencies"];
    let mut names = Vec::new();
    for table in tables {
        for section in sections.iter().filter_map(|section| table.get(*section)?.as_table()) {
            names.extend(section.iter().map(|(key, value)| {
                let renamed = value.get("package").and_then(toml::Value::as_str);
                renamed.unwrap_or(key).to_owned()
            }));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::super::testing::findings;
    use super::check;

    fn said_about(manifest: &str) -> Vec<String> {
        findings(check, &[("crates/x/Cargo.toml", manifest)])
    }

    #[test]
    fn an_arrow_that_points_down_is_fine() {
        let manifest =
            "package.name = 'forestream-decode'\n[dependencies]\nforestream-model.workspace = true\nserde = '1'";
        assert!(said_about(manifest).is_empty());
    }

    #[test]
    fn any_other_edge_is_found_in_every_section() {
        for section in ["dependencies", "dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"] {
            let manifest = format!("package.name = 'forestream-text'\n[{section}]\nforestream-model.workspace = true");
            assert_eq!(
                said_about(&manifest),
                ["crates/x/Cargo.toml: no arrow leads from `forestream-text` to `forestream-model`"],
                "{section}"
            );
        }
    }

    #[test]
    fn renaming_a_crate_does_not_hide_it() {
        let manifest =
            "package.name = 'forestream-model'\n[dependencies]\nround = { package = 'forestream-decode', path = '..' }";
        assert_eq!(
            said_about(manifest),
            ["crates/x/Cargo.toml: no arrow leads from `forestream-model` to `forestream-decode`"]
        );
    }

    #[test]
    fn a_crate_off_the_map_is_found() {
        let said = said_about("package.name = 'forestream-extras'");
        assert_eq!(
            said,
            ["crates/x/Cargo.toml: crate `forestream-extras` is not on the map: add it to ARROWS in tidy"]
        );
    }
}
