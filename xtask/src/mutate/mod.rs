//! `cargo xtask mutate`: plants known bugs one at a time and reports which tests notice.
//!
//! Works in a copy of the workspace below `target/`, so that an interrupted run leaves no bug behind. A bug is a text
//! substitution ([`MUTATIONS`]); what noticed it goes into the table of `docs/testing.md`.

mod bugs;
mod test_run;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::process::report;
use crate::source_tree::SourceTree;
use bugs::{MUTATIONS, Mutation};
use test_run::Outcome;

/// Where the table stands in the page.
const TABLE_PAGE: &str = "docs/testing.md";
const TABLE_START: &str = "<!-- planted bugs: written by cargo xtask mutate -->\n";
const TABLE_END: &str = "<!-- end of planted bugs -->";

/// Plants every bug (or those named in `only`) and writes their rows of the table.
///
/// # Errors
/// If the tests fail without a bug, a bug cannot be planted, or a bug goes unnoticed.
pub(crate) fn run(root: &Path, only: &[&str]) -> Result<()> {
    let unknown = only.iter().find(|name| MUTATIONS.iter().all(|bug| bug.name != **name));
    ensure!(unknown.is_none(), "no planted bug is named `{}`; there are {}", unknown.unwrap_or(&""), names());
    let wanted: Vec<&Mutation> = MUTATIONS.iter().filter(|bug| only.is_empty() || only.contains(&bug.name)).collect();
    let copy = copy_workspace(root)?;
    report("mutate: the tests without a bug");
    let unchanged = test_run::run(&copy)?;
    ensure!(unchanged == Outcome::Passed, "the tests do not pass without a planted bug: {unchanged}");
    let mut outcomes = Vec::new();
    for bug in wanted {
        report(&format!("mutate: {}", bug.name));
        let outcome = with_bug(&copy, bug, || test_run::run(&copy))?;
        report(&format!("  {outcome}"));
        outcomes.push((bug, outcome));
    }
    write_table(root, &outcomes)?;
    let unnoticed: Vec<&str> =
        outcomes.iter().filter(|(_, outcome)| !outcome.is_noticed()).map(|(bug, _)| bug.name).collect();
    if !unnoticed.is_empty() {
        bail!("not noticed: {}", unnoticed.join(", "));
    }
    Ok(())
}

fn names() -> String {
    MUTATIONS.iter().map(|bug| bug.name).collect::<Vec<_>>().join(", ")
}

/// Copies the project's files; those that did not change keep their time, so that cargo builds little.
fn copy_workspace(root: &Path) -> Result<PathBuf> {
    let copy = root.join("target/mutate/workspace");
    fs::create_dir_all(&copy)?;
    let files = SourceTree::read(root)?;
    for stale in SourceTree::read(&copy)?.files().iter().filter(|file| !files.contains(file)) {
        fs::remove_file(copy.join(stale))?;
    }
    for file in files.files() {
        let (from, to) = (root.join(file), copy.join(file));
        let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        if fs::read(&to).is_ok_and(|copied| copied == text) {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(&copy))?;
        fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(copy)
}

/// Runs `body` while the bug is in the copy.
fn with_bug(copy: &Path, bug: &Mutation, body: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
    let file = copy.join(bug.file);
    let healthy = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    fs::write(&file, planted(&healthy, bug)?)?;
    let outcome = body();
    fs::write(&file, healthy)?;
    outcome
}

fn planted(healthy: &str, bug: &Mutation) -> Result<String> {
    let num_places = healthy.matches(bug.healthy).count();
    ensure!(
        num_places == 1,
        "bug `{}`: expected its text once in {}, found it {num_places} times; update xtask/src/mutate/bugs.rs",
        bug.name,
        bug.file
    );
    Ok(healthy.replacen(bug.healthy, bug.broken, 1))
}

fn write_table(root: &Path, outcomes: &[(&Mutation, Outcome)]) -> Result<()> {
    let page = root.join(TABLE_PAGE);
    let text = fs::read_to_string(&page)?;
    fs::write(&page, with_table(&text, |old| table(outcomes, old))?)?;
    report(&format!("mutate: the table is in {TABLE_PAGE}"));
    Ok(())
}

/// The rows of all bugs in their order: of those that ran now, and what `old` says of the others.
fn table(outcomes: &[(&Mutation, Outcome)], old: &str) -> String {
    let mut table = String::from("\n| bug | planted in | noticed by (failed tests) |\n|---|---|---|\n");
    for bug in MUTATIONS {
        let start = format!("| {} | `{}` |", bug.what, bug.file);
        if let Some((_, outcome)) = outcomes.iter().find(|(run, _)| run.name == bug.name) {
            let _ = writeln!(table, "{start} {} |", outcome.summary());
        } else if let Some(row) = old.lines().find(|row| row.starts_with(&start)) {
            let _ = writeln!(table, "{row}");
        }
    }
    table.push('\n');
    table
}

/// The page with what stands between the marks replaced by what `table` makes of it.
fn with_table(page: &str, table: impl FnOnce(&str) -> String) -> Result<String> {
    let start = page.find(TABLE_START).context("the table's first mark is missing")? + TABLE_START.len();
    let end = start + page[start..].find(TABLE_END).context("the table's last mark is missing")?;
    Ok(format!("{}{}{}", &page[..start], table(&page[start..end]), &page[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUG: Mutation = Mutation { name: "b", what: "a bug", file: "a.rs", healthy: "x + 1", broken: "x - 1" };

    #[test]
    fn a_bug_is_planted_where_its_text_stands_once() {
        assert_eq!(planted("let y = x + 1;", &BUG).unwrap(), "let y = x - 1;");
        for text in ["let y = x + 2;", "x + 1; x + 1;"] {
            assert!(planted(text, &BUG).unwrap_err().to_string().contains("update xtask/src/mutate/bugs.rs"));
        }
    }

    #[test]
    fn every_bug_finds_its_text_in_the_workspace() {
        for bug in MUTATIONS {
            let file = crate::workspace_root().join(bug.file);
            planted(&fs::read_to_string(file).unwrap(), bug).unwrap();
        }
    }

    #[test]
    fn the_table_keeps_the_rows_of_bugs_that_did_not_run() {
        let row = |bug: &Mutation, said: &str| format!("| {} | `{}` | {said} |\n", bug.what, bug.file);
        let [first, second] = [&MUTATIONS[0], &MUTATIONS[1]];
        let old =
            row(first, "a test (1)") + &row(second, "another (2)") + "| a bug that is gone | `x.rs` | a test (1) |\n";
        let page = format!("before\n{TABLE_START}{old}{TABLE_END}\nafter\n");
        let page = with_table(&page, |old| table(&[(second, Outcome::Passed)], old)).unwrap();
        let head = "\n| bug | planted in | noticed by (failed tests) |\n|---|---|---|\n";
        let rows = row(first, "a test (1)") + &row(second, "**nothing**");
        assert_eq!(page, format!("before\n{TABLE_START}{head}{rows}\n{TABLE_END}\nafter\n"));
    }
}
