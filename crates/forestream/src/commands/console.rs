//! Everything that reaches standard output and standard error.
//!
//! Standard output carries results only; a reader that goes away (`| head`) ends a command, and is no failure.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};

use forestream::pull::Reporter;
use indicatif::{ProgressBar, ProgressStyle};

/// What an error of [`print`] holds where nobody reads standard output any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
struct NoReader;

/// Writes to standard output and flushes it.
///
/// # Errors
/// Whatever the system says; [`has_no_reader`] tells a reader that has gone from failures.
pub(crate) fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(io::Error::new(ErrorKind::BrokenPipe, NoReader)),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))),
    }
}

/// Writes text to standard output.
///
/// # Errors
/// As [`print_bytes`].
pub(crate) fn print(text: &str) -> io::Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes text to standard output for a command that has more to do than that: a reader that has gone changes nothing.
///
/// # Errors
/// Whatever the system says, except that the reader has gone.
pub(crate) fn print_if_read(text: &str) -> io::Result<()> {
    match print(text) {
        Err(error) if is_no_reader(&error) => Ok(()),
        result => result,
    }
}

/// Whether a command ended because nobody reads what it prints.
pub(crate) fn has_no_reader(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref()).any(is_no_reader)
}

fn is_no_reader(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<NoReader>())
}

/// Writes a line to standard error, with its control characters spelled out; a closed one is nobody's loss.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(line));
}

/// Prints the error of a command, with its causes, once.
pub(crate) fn print_error(error: &anyhow::Error) {
    note(&format!("error: {error:#}"));
}

/// Text with its control characters but newline and tab spelled out: a name in a model file can say anything, also what
/// a terminal would obey. Within a text of JSON the spelling is JSON's own.
pub(crate) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() && !matches!(letter, '\n' | '\t') {
            write!(printable, "\\u{:04x}", u32::from(letter)).expect("writing to a string never fails");
        } else {
            printable.push(letter);
        }
    }
    printable
}

/// A line on a terminal that says what runs; nothing elsewhere.
pub(crate) struct Status {
    line: Option<ProgressBar>,
}

impl Status {
    pub(crate) fn new() -> Self {
        let line = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg}").expect("the template is valid");
            ProgressBar::new_spinner().with_style(style)
        });
        Self { line }
    }

    /// Replaces the line.
    pub(crate) fn show(&mut self, text: &str) {
        if let Some(line) = &self.line {
            line.set_message(text.to_owned());
            line.tick();
        }
    }

    /// Takes the line off the screen.
    pub(crate) fn clear(self) {
        if let Some(line) = self.line {
            line.finish_and_clear();
        }
    }
}

/// Progress of `pull`: a bar on a terminal, lines elsewhere.
pub(crate) struct PullProgress {
    bar: Option<ProgressBar>,
    tenths: Tenths,
}

impl PullProgress {
    pub(crate) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            let style = ProgressStyle::with_template(style).expect("the template is valid");
            let bar = ProgressBar::new(0).with_style(style);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, tenths: Tenths::default() }
    }

    /// Takes the bar off the screen.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Reporter for PullProgress {
    fn say(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        }
    }

    fn advance(&mut self, done_bytes: u64, total_bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total_bytes);
            bar.set_position(done_bytes);
            return;
        }
        if let Some(tenth) = self.tenths.reach(done_bytes, total_bytes) {
            note(&format!("{} % of {total_bytes} bytes", tenth * 10));
        }
    }
}

/// How many tenths of a file are there; one file may follow another.
#[derive(Default)]
struct Tenths {
    done_bytes: u64,
    total_bytes: u64,
    last: u64,
}

impl Tenths {
    /// The tenth that is reached now, once for each.
    fn reach(&mut self, done_bytes: u64, total_bytes: u64) -> Option<u64> {
        let tenth = done_bytes * 10 / total_bytes.max(1);
        if total_bytes != self.total_bytes {
            self.last = 0;
        } else if done_bytes < self.done_bytes {
            self.last = tenth; // another file, or a part of this one that is gone through again
        }
        (self.done_bytes, self.total_bytes) = (done_bytes, total_bytes);
        let is_new = tenth > self.last;
        self.last = self.last.max(tenth);
        is_new.then_some(tenth)
    }
}

/// Progress of `distill`: a bar on a terminal, a line now and then elsewhere.
pub(crate) struct AnswerProgress {
    bar: Option<ProgressBar>,
    start: Instant,
    last_line: Instant,
    /// Answers that an earlier run left.
    first: usize,
    total: usize,
    num_answers: usize,
    num_tokens: usize,
}

impl AnswerProgress {
    pub(crate) fn new(first: usize, total: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {msg}").expect("the template is valid");
            ProgressBar::new(total as u64).with_style(style)
        });
        let start = Instant::now();
        Self { bar, start, last_line: start, first, total, num_answers: first, num_tokens: 0 }
    }

    /// Says how far the run is; `num_tokens` counts those of this run.
    pub(crate) fn show(&mut self, num_answers: usize, num_tokens: usize) {
        const LINE_INTERVAL: Duration = Duration::from_secs(30);
        (self.num_answers, self.num_tokens) = (num_answers, num_tokens);
        if let Some(bar) = &self.bar {
            bar.set_position(num_answers as u64);
            bar.set_message(format!("{}, {}", self.describe(), self.time_left()));
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            note(&format!("{}, {}", self.describe(), self.time_left()));
        }
    }

    /// Takes the bar off the screen and sums up.
    pub(crate) fn finish(self) -> String {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.describe()
    }

    fn describe(&self) -> String {
        let rate = self.num_tokens as f64 / self.start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        format!("{} of {} answers, {} tokens at {rate:.1}/s", self.num_answers, self.total, self.num_tokens)
    }

    fn time_left(&self) -> String {
        let done = self.num_answers.saturating_sub(self.first);
        if done == 0 {
            return "time left unknown".to_owned();
        }
        let seconds = self.start.elapsed().as_secs() * (self.total - self.num_answers) as u64 / done as u64;
        format!("{}:{:02}:{:02} left", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelled_out() {
        let text = "a\u{1b}]0;title\u{7}\r\u{7f}\u{9b}2J\tñ\n";
        assert_eq!(printable(text), "a\\u001b]0;title\\u0007\\u000d\\u007f\\u009b2J\tñ\n");
    }

    #[test]
    fn each_file_of_several_shows_its_progress() {
        let mut tenths = Tenths::default();
        let steps = [
            ((5, 100), None),
            ((10, 100), Some(1)),
            ((15, 100), None),
            ((100, 100), Some(10)),
            ((0, 100), None), // a file of the same size
            ((10, 100), Some(1)),
            ((60, 100), Some(6)),
            ((50, 100), None), // a part once more
            ((60, 100), Some(6)),
            ((65, 100), None),
            ((100, 500), Some(2)), // one of another size
            ((500, 500), Some(10)),
        ];
        for ((done_bytes, total_bytes), expected) in steps {
            assert_eq!(tenths.reach(done_bytes, total_bytes), expected, "{done_bytes} of {total_bytes}");
        }
    }
}
