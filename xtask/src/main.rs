//! Project chores, run as `cargo xtask CHORE`.
//!
//! Owns what a developer or a CI machine runs besides `cargo build`: the whole check, the rules that no compiler knows,
//! golden values from Hugging Face transformers, and the planted bugs that the tests must notice. Nothing of the product
//! depends on it.

mod check;
mod golden;
mod mutate;
mod process;
mod source_tree;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask CHORE

  check                       tidy, fmt, clippy, test, doc, deny: all that must hold before a push
  tidy                        the project's own rules alone
  golden [--smollm2 FILE]     make testdata/models and the golden logits again (needs Python 3.11; installs torch)
  mutate [--only NAME...]     plant bugs one at a time in a copy and report which tests notice
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            process::report(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let root = workspace_root();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["check"] => check::run(root),
        ["tidy"] => tidy::run(root),
        ["golden"] => golden::run(root, None),
        ["golden", "--smollm2", file] => golden::run(root, Some(Path::new(file))),
        ["mutate"] => mutate::run(root, &[]),
        ["mutate", "--only", names @ ..] if !names.is_empty() => mutate::run(root, names),
        [] | ["help" | "--help" | "-h"] => {
            process::report(USAGE);
            Ok(())
        }
        other => bail!("unknown chore `{}`\n{USAGE}", other.join(" ")),
    }
}

/// The folder that holds the workspace's `Cargo.toml`.
fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in a folder of the workspace")
}
