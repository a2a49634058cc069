//! One run of the engine's tests, and what it says.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::process::command;

/// The crates that hold the promise of exactness, and the one that holds streams to what was trained.
const PACKAGES: &[&str] = &["forestream-decode", "forestream-model", "forestream-burn"];

/// A planted bug may make a loop endless. In seconds.
const TIME_LIMIT: &str = "900";

/// What `timeout` ends with when it had to end the program.
const TIMED_OUT: i32 = 124;

/// What a run of the tests says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every test passed.
    Passed,
    /// It does not compile.
    NotCompiled(String),
    /// Tests failed.
    Failed(Vec<FailedSuite>),
    /// It did not end.
    TimedOut,
}

/// A test program and its tests that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FailedSuite {
    name: String,
    tests: Vec<String>,
}

impl Outcome {
    pub(super) fn is_noticed(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::TimedOut)
    }

    /// One cell of the table: suites, and how many of their tests failed.
    pub(super) fn summary(&self) -> String {
        match self {
            Self::Failed(suites) => {
                let counts: Vec<String> =
                    suites.iter().map(|suite| format!("{} ({})", suite.name, suite.tests.len())).collect();
                counts.join(", ")
            }
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => formatter.write_str("**nothing**"),
            Self::NotCompiled(error) => write!(formatter, "it does not compile: {error}"),
            Self::TimedOut => formatter.write_str("a test that did not end"),
            Self::Failed(suites) => {
                let suites: Vec<String> =
                    suites.iter().map(|suite| format!("{}: `{}`", suite.name, suite.tests.join("`, `"))).collect();
                formatter.write_str(&suites.join("; "))
            }
        }
    }
}

/// Builds and runs the tests of [`PACKAGES`] in `workspace`.
///
/// # Errors
/// If cargo cannot be started.
pub(super) fn run(workspace: &Path) -> Result<Outcome> {
    let mut arguments = vec![TIME_LIMIT, "cargo", "test", "--no-fail-fast", "--lib", "--tests"];
    arguments.extend(PACKAGES.iter().flat_map(|package| ["--package", package]));
    let mut cargo = command(workspace, "timeout", &arguments); // ends the tests together with cargo
    cargo.env("CARGO_TARGET_DIR", workspace.with_file_name("build")).env("CARGO_TERM_COLOR", "never");
    let output = cargo.output().context("cannot start `timeout` (of GNU coreutils)")?;
    if output.status.success() {
        return Ok(Outcome::Passed);
    }
    if output.status.code() == Some(TIMED_OUT) {
        return Ok(Outcome::TimedOut);
    }
    Ok(judge(&String::from_utf8_lossy(&output.stdout), &String::from_utf8_lossy(&output.stderr)))
}

/// Reads cargo's words: which tests failed, or why nothing ran.
///
/// The test programs write to `stdout` and cargo names the failed ones on `stderr`, both in the order of running.
fn judge(stdout: &str, stderr: &str) -> Outcome {
    let names = stderr.lines().filter_map(|line| line.split_once("to rerun pass `")?.1.strip_suffix('`'));
    let reports = stdout.split("\ntest result: ").filter(|report| report.contains("\nfailures:\n"));
    let suites: Vec<FailedSuite> = names
        .zip(reports)
        .map(|(name, report)| FailedSuite { name: suite_name(name), tests: failed_tests(report) })
        .collect();
    if suites.is_empty() {
        let error = stderr.lines().find(|line| line.starts_with("error")).unwrap_or("no test failed, but cargo did");
        return Outcome::NotCompiled(error.to_owned());
    }
    Outcome::Failed(suites)
}

/// `-p forestream-decode --test conformance` in words.
fn suite_name(arguments: &str) -> String {
    arguments.trim_start_matches("-p ").replace("--lib", "unit tests").replace("--test ", "")
}

/// The names in the last list of a test program's report.
fn failed_tests(report: &str) -> Vec<String> {
    let list = report.rsplit("\nfailures:\n").next().unwrap_or_default();
    list.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::judge;

    const STDOUT: &str = "
running 2 tests
test round::tests::a ... ok
test round::tests::b ... FAILED

failures:

---- round::tests::b stdout ----
thread panicked at x.rs:1

failures:
    round::tests::b

test result: FAILED. 1 passed; 1 failed

running 1 test
test c ... ok

test result: ok. 1 passed

running 2 tests
test greedy ... FAILED
test sampled ... FAILED

failures:

---- greedy stdout ----

failures:
    greedy
    sampled

test result: FAILED. 0 passed; 2 failed
";

    const STDERR: &str = "
     Running unittests src/lib.rs (target/debug/deps/forestream_decode-1)
error: test failed, to rerun pass `-p forestream-decode --lib`
     Running tests/conformance.rs (target/debug/deps/conformance-1)
error: test failed, to rerun pass `-p forestream-decode --test conformance`
error: 2 targets failed:
    `-p forestream-decode --lib`
    `-p forestream-decode --test conformance`
";

    #[test]
    fn failed_tests_are_read_suite_by_suite() {
        let outcome = judge(STDOUT, STDERR);
        let expected =
            "forestream-decode unit tests: `round::tests::b`; forestream-decode conformance: `greedy`, `sampled`";
        assert_eq!(outcome.to_string(), expected);
        assert_eq!(outcome.summary(), "forestream-decode unit tests (1), forestream-decode conformance (2)");
        assert!(outcome.is_noticed());
    }

    #[test]
    fn a_compiler_error_is_not_a_noticed_bug() {
        let outcome = judge("", "warning: x\nerror[E0308]: mismatched types\nerror: could not compile\n");
        assert_eq!(outcome.to_string(), "it does not compile: error[E0308]: mismatched types");
        assert!(!outcome.is_noticed());
    }
}
