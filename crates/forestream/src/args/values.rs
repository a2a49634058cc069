//! Values of single flags: their types, and what is accepted.

use std::str::FromStr;

use clap::ValueEnum;
use forestream::dataset::{self, Task};
use forestream::{BACKENDS, Backend, DEVICES, Format, Isa, NamedDevice, Requires, StreamPass};
use serde_json::{Map, Value};

/// Form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    Text,
    /// One JSON value.
    Json,
}

/// Form of a table of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    /// A Markdown table.
    Md,
    /// Comma-separated values.
    Csv,
    /// One JSON array.
    Json,
    /// One JSON object on each line.
    Jsonl,
}

/// Registered strategies, joined by plus signs where several draft together, or `auto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpecType(pub(crate) String);

impl SpecType {
    /// Whether drafting may need an adapter.
    pub(crate) fn may_use_streams(&self) -> bool {
        let needs_streams = |name| forestream::strategy(name).is_ok_and(|it| it.requires == Requires::Streams);
        self.0 == forestream::AUTO || self.0.split('+').any(needs_streams)
    }
}

/// `intro`, and below it each strategy with what it does.
pub(super) fn strategies(intro: &str) -> String {
    let auto = format!(
        "\n- {}: streams, with ngram, where the model has an adapter; ngram where it has none",
        forestream::AUTO
    );
    let registered = forestream::STRATEGIES.iter().map(|it| format!("\n- {}: {}", it.name, it.summary));
    format!("{intro}\n{auto}{}", registered.collect::<String>())
}

impl FromStr for SpecType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = forestream::STRATEGIES.iter().map(|strategy| strategy.name).collect();
        if text == forestream::AUTO || text.split('+').all(|name| names.contains(&name)) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("there is no such strategy; known are {}, {}", forestream::AUTO, names.join(", ")))
    }
}

/// When streams run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamPassName {
    /// After acceptance.
    Deferred,
    /// Before verification.
    Fused,
}

impl From<StreamPassName> for StreamPass {
    fn from(name: StreamPassName) -> Self {
        match name {
            StreamPassName::Deferred => Self::Deferred,
            StreamPassName::Fused => Self::Fused,
        }
    }
}

/// A bias for one token's logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LogitBias {
    /// The token.
    pub(crate) token: u32,
    /// What is added to its logit.
    pub(crate) bias: f32,
}

impl FromStr for LogitBias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not of the form ID=BIAS, ID+BIAS or ID-BIAS, such as 15043=-1.5");
        let end = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
        let token = text[..end].parse().map_err(|_| wrong())?;
        let bias: f32 = text[end..].trim_start_matches('=').parse().map_err(|_| wrong())?;
        match bias {
            _ if bias.is_nan() => Err(wrong()),
            f32::INFINITY => Err(format!("{text:?} has no finite bias; only -inf can be given, which bans the token")),
            _ => Ok(Self { token, bias }),
        }
    }
}

/// A built-in task.
pub(super) fn task(name: &str) -> Result<&'static Task, String> {
    let names: Vec<&str> = dataset::TASKS.iter().map(|task| task.name).collect();
    dataset::task(name).ok_or_else(|| format!("there is no such task; known are {}", names.join(", ")))
}

/// A weight format, in upper or lower case.
pub(super) fn format(text: &str) -> Result<Format, String> {
    text.to_ascii_uppercase().parse().map_err(|error| format!("{error}"))
}

/// An instruction set of this machine.
pub(super) fn isa(name: &str) -> Result<Isa, String> {
    let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    Isa::named(name).ok_or_else(|| format!("this machine does not have it; it has {}", names.join(", ")))
}

/// A back end.
pub(super) fn backend(name: &str) -> Result<&'static Backend, String> {
    let known = || BACKENDS.iter().map(|backend| format!("{} ({})", backend.name, backend.summary)).collect::<Vec<_>>();
    Backend::named(name).ok_or_else(|| format!("there is no such back end; known are {}", known().join(", ")))
}

/// `intro`, and below it each back end with what it is.
pub(super) fn backends(intro: &str) -> String {
    let one = |backend: &Backend| format!("\n- {}: {}", backend.name, backend.summary);
    format!("{intro}\n{}", BACKENDS.iter().map(one).collect::<String>())
}

/// A device of this build.
pub(super) fn device(name: &str) -> Result<&'static NamedDevice, String> {
    let names: Vec<&str> = DEVICES.iter().map(|device| device.name).collect();
    let found = DEVICES.iter().find(|device| device.name == name);
    found.ok_or_else(|| format!("this build does not have it; it has {}", names.join(", ")))
}

/// A JSON object.
pub(super) fn json_object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it must be a JSON object, such as {\"enable_thinking\": false}".to_owned()),
        Err(error) => Err(format!("it is not JSON: {error}")),
    }
}

fn number(text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| "it is not a number".to_owned())
}

/// A finite number.
pub(super) fn finite(text: &str) -> Result<f32, String> {
    let number = number(text)?;
    if number.is_finite() { Ok(number) } else { Err("it must be a finite number".to_owned()) }
}

/// A finite number above 0.
pub(super) fn above_zero(text: &str) -> Result<f32, String> {
    let number = number(text)?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("it must be a finite number above 0".to_owned()) }
}

/// A number from 0 to 1.
pub(super) fn fraction(text: &str) -> Result<f32, String> {
    let number = number(text)?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("it must be 0 or more, and 1 at most".to_owned()) }
}

/// A finite number that is not negative.
pub(super) fn at_least_zero(text: &str) -> Result<f32, String> {
    let number = number(text)?;
    if number.is_finite() && number >= 0.0 {
        Ok(number)
    } else {
        Err("it must be a finite number, 0 or more".to_owned())
    }
}

/// A number above 0, up to 1.
pub(super) fn positive_fraction(text: &str) -> Result<f32, String> {
    let number = number(text)?;
    if number > 0.0 && number <= 1.0 { Ok(number) } else { Err("it must be above 0, and 1 at most".to_owned()) }
}

/// How many of the most probable tokens are kept; 0, or -1 in other tools, keeps all.
pub(super) fn top_k(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(0),
        Ok(number) => usize::try_from(number).map_err(|_| "it must be 0 or more, or -1, which keeps all".to_owned()),
        Err(_) => Err("it is not a whole number".to_owned()),
    }
}

/// A text at which an answer ends.
pub(super) fn stop_text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// The most threads that may be asked for.
const MAX_THREADS: usize = 1024;

/// A number of threads.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "it is not a whole number".to_owned())?;
    if number <= MAX_THREADS { Ok(number) } else { Err(format!("it must be {MAX_THREADS} at most")) }
}

/// A switch, where it has a value.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" | "enabled" => Ok(true),
        "false" | "0" | "off" | "no" | "disabled" => Ok(false),
        _ => Err("it must be true, 1, on, yes or enabled, or else false, 0, off, no or disabled".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logit_biases_are_read_in_every_spelling() {
        let cases = [("15=1.5", 15, 1.5), ("15+1", 15, 1.0), ("15-2", 15, -2.0), ("0=-inf", 0, f32::NEG_INFINITY)];
        for (text, token, bias) in cases {
            assert_eq!(text.parse(), Ok(LogitBias { token, bias }), "{text}");
        }
        for text in ["", "15", "=1", "x=1", "15=", "15=nan", "15=inf", "99999999999=1"] {
            assert!(text.parse::<LogitBias>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_outside_their_range_are_refused() {
        for text in ["-1", "nan", "inf", "warm", ""] {
            assert!(at_least_zero(text).is_err(), "{text}");
        }
        for text in ["0", "1.1", "nan", "-0.5"] {
            assert!(positive_fraction(text).is_err(), "{text}");
        }
    }
}
