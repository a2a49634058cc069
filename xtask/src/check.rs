//! `cargo xtask check`: everything that must hold before a push.

use std::path::Path;

use anyhow::{Result, bail};

use crate::process::{command, is_installed, report, run as run_program};
use crate::tidy;

/// A step's name and the arguments that it gives to cargo.
const CARGO_STEPS: &[(&str, &[&str])] = &[
    ("fmt", &["fmt", "--all", "--check"]),
    ("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("test", &["test", "--workspace"]),
    ("doc", &["doc", "--workspace", "--no-deps"]),
];

/// Runs every step, also after a failed one, so that one run shows all that is wrong.
///
/// # Errors
/// If any step failed; the message names them all.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut failed = Vec::new();
    let mut note = |name, result: Result<()>| {
        if let Err(error) = result {
            report(&format!("{name}: {error:#}"));
            failed.push(name);
        }
    };
    note("tidy", tidy::run(root));
    for &(name, arguments) in CARGO_STEPS {
        let mut cargo = command(root, "cargo", arguments);
        if name == "doc" {
            cargo.env("RUSTDOCFLAGS", "-D warnings");
        }
        note(name, run_program(cargo));
    }
    if is_installed("cargo", &["deny", "--version"]) {
        note("deny", run_program(command(root, "cargo", &["deny", "check"])));
    } else {
        report("deny: left out, cargo-deny is not installed (cargo install cargo-deny)");
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    report("check: all passed");
    Ok(())
}
