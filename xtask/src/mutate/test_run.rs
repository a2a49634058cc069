//! One run of the engine's tests, and what it says.

use std::fmt;
use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, ensure};

use crate::process::command;

/// The crates that hold the promise of exactness, and the one that holds streams to what was trained.
const PACKAGES: &[&str] = &["forestream-decode", "forestream-model", "forestream-burn"];

/// A planted bug may make a loop endless. In seconds, of running; compiling may take what it takes.
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
    /// Empty where they are not known.
    tests: Vec<String>,
}

impl FailedSuite {
    fn summary(&self) -> String {
        match self.tests.len() {
            0 => self.name.clone(),
            count => format!("{} ({count})", self.name),
        }
    }

    fn description(&self) -> String {
        match &self.tests[..] {
            [] => self.name.clone(),
            tests => format!("{}: `{}`", self.name, tests.join("`, `")),
        }
    }
}

impl Outcome {
    pub(super) fn is_noticed(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::TimedOut)
    }

    /// One cell of the table: suites, and how many of their tests failed.
    pub(super) fn summary(&self) -> String {
        match self {
            Self::Failed(suites) => suites.iter().map(FailedSuite::summary).collect::<Vec<_>>().join(", "),
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
                let suites: Vec<String> = suites.iter().map(FailedSuite::description).collect();
                formatter.write_str(&suites.join("; "))
            }
        }
    }
}

/// Builds and runs the tests of [`PACKAGES`] in `workspace`.
///
/// # Errors
/// If cargo cannot be started, or fails and names neither an error of the compiler nor a test program.
pub(super) fn run(workspace: &Path) -> Result<Outcome> {
    let mut cargo = vec!["cargo", "test", "--no-fail-fast", "--lib", "--tests"];
    cargo.extend(PACKAGES.iter().flat_map(|package| ["--package", package]));
    let build = output(workspace, &[&cargo[..], &["--no-run"]].concat())?;
    if !build.status.success() {
        return Ok(not_compiled(&String::from_utf8_lossy(&build.stderr)));
    }
    let tests = output(workspace, &[&["timeout", TIME_LIMIT], &cargo[..]].concat())?; // ends the tests with cargo
    if tests.status.success() {
        return Ok(Outcome::Passed);
    }
    if tests.status.code() == Some(TIMED_OUT) {
        return Ok(Outcome::TimedOut);
    }
    judge(&String::from_utf8_lossy(&tests.stdout), &String::from_utf8_lossy(&tests.stderr))
}

fn output(workspace: &Path, words: &[&str]) -> Result<Output> {
    let mut command = command(workspace, words[0], &words[1..]);
    command.env("CARGO_TARGET_DIR", workspace.with_file_name("build")).env("CARGO_TERM_COLOR", "never");
    command.output().with_context(|| format!("cannot start `{}` (`timeout` is of GNU coreutils)", words[0]))
}

fn not_compiled(stderr: &str) -> Outcome {
    let error = stderr.lines().find(|line| line.starts_with("error")).unwrap_or("cargo does not say why");
    Outcome::NotCompiled(error.to_owned())
}

/// Reads cargo's words: which tests failed.
///
/// The test programs write to `stdout` and cargo names the failed ones on `stderr`, both in the order of running. One
/// that was aborted (a full stack, say) is named, but leaves no report, so that nobody knows whose report is missing.
fn judge(stdout: &str, stderr: &str) -> Result<Outcome> {
    let names = stderr.lines().filter_map(|line| line.split_once("to rerun pass `")?.1.strip_suffix('`'));
    let names: Vec<String> = names.map(suite_name).collect();
    ensure!(!names.is_empty(), "cargo failed, but names no test program that did:\n{stderr}");
    let reports = stdout.split("\ntest result: ").filter(|report| report.contains("\nfailures:\n"));
    let reports: Vec<Vec<String>> = reports.map(failed_tests).collect();
    let is_any_missing = names.len() > reports.len();
    let tests = if is_any_missing { vec![Vec::new(); names.len()] } else { reports };
    Ok(Outcome::Failed(names.into_iter().zip(tests).map(|(name, tests)| FailedSuite { name, tests }).collect()))
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
    use super::{judge, not_compiled};

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
        let outcome = judge(STDOUT, STDERR).unwrap();
        let expected =
            "forestream-decode unit tests: `round::tests::b`; forestream-decode conformance: `greedy`, `sampled`";
        assert_eq!(outcome.to_string(), expected);
        assert_eq!(outcome.summary(), "forestream-decode unit tests (1), forestream-decode conformance (2)");
        assert!(outcome.is_noticed());
    }

    #[test]
    fn a_compiler_error_is_not_a_noticed_bug() {
        let outcome = not_compiled("warning: x\nerror[E0308]: mismatched types\nerror: could not compile\n");
        assert_eq!(outcome.to_string(), "it does not compile: error[E0308]: mismatched types");
        assert!(!outcome.is_noticed());
    }
    const ABORTED: &str = "
     Running tests/deep.rs (target/debug/deps/deep-1)
error: test failed, to rerun pass `-p forestream-decode --test deep`

Caused by:
  process didn't exit successfully: `target/debug/deps/deep-1` (signal: 6, SIGABRT: process abort signal)
";

    #[test]
    fn a_test_program_that_aborts_is_a_noticed_bug() {
        let outcome = judge("\nrunning 2 tests\ntest a ... ok\n", ABORTED).unwrap();
        assert_eq!(outcome.to_string(), "forestream-decode deep");
        assert_eq!(outcome.summary(), "forestream-decode deep");
        assert!(outcome.is_noticed());
    }

    #[test]
    fn the_tests_of_one_suite_are_not_told_of_another_that_aborted() {
        let outcome =
            judge(&format!("\nrunning 2 tests\ntest a ... ok\n{STDOUT}"), &format!("{ABORTED}{STDERR}")).unwrap();
        let expected = "forestream-decode deep; forestream-decode unit tests; forestream-decode conformance";
        assert_eq!(outcome.to_string(), expected);
        assert_eq!(outcome.summary(), expected.replace(';', ","));
        assert!(outcome.is_noticed());
    }
    #[test]
    fn a_failure_of_cargo_itself_is_no_outcome() {
        let error = judge("", "error: no space left\n").unwrap_err().to_string();
        assert!(error.contains("names no test program") && error.contains("no space left"), "{error}");
    }
}
