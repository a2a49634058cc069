//! `train`: speculative streams for a model, from rows of text.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use forestream::train::{
    self, Evaluation, NextTokenFigures, Observer, Origin, Outcome, Start, StepReport, StepSeconds, Trainer,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::{console, distill, interrupt, model, pull};
use crate::args::{self, AdapterArgs, BackendArgs, ModeName, TrainArgs};

/// What a model answered to prompts of its own, in the output directory.
const OWN_ANSWERS: &str = "answers.jsonl";

pub(super) fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let (path, name) = model::locate(&args.model)?;
    if let Some(flag) = args::idle_joint_flag(args) {
        console::note(&format!("warning: {flag} changes nothing in lossless mode; it belongs to --mode joint"));
    }
    let mut request = args::train_request(args, name, origin())?;
    let start = if args.resume { Start::Resume } else { Start::Fresh };
    if let Some(num_prompts) = args.own_prompts {
        let Some(answers) = own_answers(args, start, num_prompts)? else { return Ok(ExitCode::FAILURE) };
        request.data = answers;
    }
    for data in [Some(&mut request.data), request.eval_data.as_mut()].into_iter().flatten() {
        *data = pull::fetch_data(&args.model.store, data)?;
    }
    let mut trainer = train::open(&path, request)?;
    if args.own_prompts.is_none() {
        interrupt::install()?;
    }
    for line in plan(&trainer) {
        console::note(&line);
    }
    if args.dry_run {
        return dry_run(&mut trainer);
    }
    let mut progress = Progress::new(trainer.num_steps());
    let outcome = trainer.run(start, &mut progress)?;
    progress.finish();
    let output = args.output.display();
    match outcome {
        Outcome::Finished(best) => console::print(&format!("{output}: the best adapter, {}\n", describe(&best)))?,
        Outcome::Stopped(step) => {
            console::note(&format!("stopped after step {step}; {output} has a checkpoint, continue with --resume"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A file in the output directory where the model answered prompts of its own; `None` where that was interrupted.
fn own_answers(args: &TrainArgs, start: Start, num_prompts: usize) -> anyhow::Result<Option<PathBuf>> {
    if args.streams.mode == ModeName::Joint {
        bail!("--own-prompts is for a model that stays as it is, and --mode joint learns a task: give its --data");
    }
    train::check_output(&args.output, start)?;
    interrupt::install()?;
    let adapter = AdapterArgs { adapter: args.adapter.clone(), merge_adapter: false };
    let engine = model::open(&args.model, &adapter, &BackendArgs::default(), &[])?;
    fs::create_dir_all(&args.output).with_context(|| format!("cannot create {}", args.output.display()))?;
    let answers = args.output.join(OWN_ANSWERS);
    if distill::write_own_answers(&engine, &adapter, num_prompts, args.run.seed, &answers)? {
        return Ok(Some(answers));
    }
    console::note("interrupted; the same command goes on from here");
    Ok(None)
}

/// What the run will do, line by line.
fn plan(trainer: &Trainer) -> Vec<String> {
    let mut lines = Vec::new();
    for (what, data) in [("train on", trainer.training()), ("measure on", trainer.held_out())] {
        let (name, examples, positions) = (&data.name, data.examples.len(), data.num_positions());
        lines.push(format!("{what} {name}: {examples} examples, {positions} positions"));
        if data.num_too_short > 0 {
            lines.push(format!("  {} more have answers of fewer than two tokens", data.num_too_short));
        }
        if data.num_cut > 0 {
            lines.push(format!("  {} texts were cut to the longest; --ctx-size allows longer ones", data.num_cut));
        }
    }
    if let Some(main) = &trainer.adapter().main_lora {
        lines.push(format!(
            "the model itself learns in its top {} layers, with rank {}",
            main.num_layers, main.lora.rank
        ));
    }
    if trainer.leaves_out_main_changes() {
        lines.push(
            "the adapter to start from also changes the model itself; that is left out, and --adapter in place of \
             --init-from keeps it"
                .to_owned(),
        );
    }
    let streams = &trainer.adapter().streams;
    lines.push(format!(
        "{} streams in the top {} layers{}, {} trained parameters, {} steps",
        streams.num_streams,
        streams.num_msa_layers,
        streams.intermediate_size.map_or(String::new(), |size| format!(" ({size} inner features of each MLP)")),
        trainer.num_parameters(),
        trainer.num_steps()
    ));
    lines
}

fn dry_run(trainer: &mut Trainer) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let report = trainer.measure_step()?;
    let seconds = whole_run(started.elapsed().as_secs_f64(), report.seconds, trainer.num_steps());
    let memory =
        peak_memory().map_or("unknown".to_owned(), |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)));
    console::print(&format!(
        "one step: {} positions, {:.0} positions/s, loss {:.3}\nestimated time without measurements: {}\npeak memory: \
         {memory}\n",
        report.num_positions,
        report.positions_per_second,
        report.loss,
        duration(seconds)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Seconds of a run of `num_steps` steps, of which the first took `step` and `elapsed` with all that is done once before it.
fn whole_run(elapsed: f64, step: StepSeconds, num_steps: usize) -> f64 {
    let step = step.features + step.passes + step.optimizer;
    elapsed + step * num_steps.saturating_sub(1) as f64
}

/// The greatest memory that this process has used, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// Shows steps: a bar on a terminal, a line every few seconds elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    shown: Option<Instant>,
}

impl Progress {
    const LINE_INTERVAL: Duration = Duration::from_secs(20);

    fn new(num_steps: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos} of {len} {msg}").expect("the template is valid");
            ProgressBar::new(num_steps as u64).with_style(style)
        });
        Self { bar, shown: None }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| console::note(line)),
            None => console::note(line),
        }
    }

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn step(&mut self, report: &StepReport) {
        let text = format!(
            "{}loss {:.3}  accuracy {}  tau {:.2}  {:.0} positions/s  {} left  lr {:.1e}",
            main_figures(report.main.as_ref()),
            report.loss,
            accuracies(&report.accuracy),
            report.tau,
            report.positions_per_second,
            duration(report.seconds_left),
            report.lr
        );
        if let Some(bar) = &self.bar {
            bar.set_position(report.step as u64);
            bar.set_message(text);
        } else if self.shown.is_none_or(|shown| shown.elapsed() >= Self::LINE_INTERVAL) {
            console::note(&format!("step {} of {}  {text}", report.step, report.num_steps));
            self.shown = Some(Instant::now());
        }
    }

    fn evaluated(&mut self, step: usize, evaluation: &Evaluation) {
        self.say(&format!("held out, step {step}: {}", describe(evaluation)));
    }

    fn saved(&mut self, step: usize) {
        self.say(&format!("checkpoint of step {step}"));
    }

    fn is_stop_asked(&self) -> bool {
        interrupt::is_asked()
    }
}

fn describe(evaluation: &Evaluation) -> String {
    format!(
        "{}loss {:.3}, accuracy {}, tau {:.2}, chain {:.2} tokens per pass{}",
        main_figures(evaluation.main.as_ref()),
        evaluation.loss,
        accuracies(&evaluation.accuracy),
        evaluation.tau,
        evaluation.chain,
        evaluation.early_exit.map(|exit| format!("; early exit right {:.3}", exit.accuracy)).unwrap_or_default()
    )
}

/// What main rows did, before what the streams did; nothing where they are not trained.
fn main_figures(main: Option<&NextTokenFigures>) -> String {
    let line = |main: &NextTokenFigures| {
        format!(
            "model: loss {:.3} perplexity {:.2} accuracy {:.3}; streams: ",
            main.loss,
            main.loss.exp(),
            main.accuracy
        )
    };
    main.map(line).unwrap_or_default()
}

fn accuracies(accuracy: &[f64]) -> String {
    accuracy.iter().map(|accuracy| format!("{accuracy:.3}")).collect::<Vec<_>>().join(" ")
}

fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    if minutes < 60 { format!("{minutes} min") } else { format!("{} h {:02} min", minutes / 60, minutes % 60) }
}

/// What the adapter's card says about the run.
fn origin() -> Origin {
    let days = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86400);
    Origin {
        command: command(std::env::args_os()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("FORESTREAM_COMMIT").map(str::to_owned),
        date: date(days as i64),
        previous: None,
    }
}

/// The command of these arguments as a card may show it: whatever the program's file is called, without access tokens and
/// without the directories of this machine, which are nobody's business.
fn command(arguments: impl Iterator<Item = OsString>) -> String {
    const SECRET: &str = "--hf-token";
    let mut words = vec!["forestream".to_owned()];
    let mut arguments = arguments.skip(1);
    while let Some(argument) = arguments.next() {
        let argument = argument.to_string_lossy();
        match flag_with_value(&argument) {
            None if argument == SECRET => drop(arguments.next()),
            Some((flag, _)) if flag.strip_suffix('=') == Some(SECRET) => {}
            Some((flag, value)) => words.push(format!("{flag}{}", shown(value))),
            None => words.push(shown(&argument)),
        }
    }
    words.join(" ")
}

/// A flag, its `=` included, and the value that stands in the same argument: `--model=PATH`, `-m=PATH`, `-mPATH`.
fn flag_with_value(argument: &str) -> Option<(&str, &str)> {
    let is_in_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let value = match argument.split_once('=') {
        Some((flag, value)) if flag.starts_with('-') && flag.chars().all(is_in_name) => value,
        _ => argument.strip_prefix('-')?.strip_prefix(|c: char| c.is_ascii_alphabetic())?,
    };
    (!value.is_empty()).then(|| argument.split_at(argument.len() - value.len()))
}

/// A value, of a path its last part, in quotes where a shell needs them.
fn shown(argument: &str) -> String {
    let path = Path::new(argument);
    let is_path = path.is_absolute() || argument.starts_with("./") || argument.starts_with("../") || path.exists();
    let last = path.components().next_back().and_then(|last| last.as_os_str().to_str());
    let name = last.filter(|_| is_path).unwrap_or(argument);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if name.is_empty() || !name.chars().all(is_plain) {
        return format!("'{}'", name.replace('\'', "'\\''"));
    }
    name.to_owned()
}

/// The date of a day since 1970 (Howard Hinnant's `civil_from_days`).
fn date(days: i64) -> String {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_once_counts_once() {
        let step = StepSeconds { features: 0.25, passes: 0.5, optimizer: 0.25 };
        assert!((whole_run(31.0, step, 100) - 130.0).abs() < 1e-9);
        assert_eq!(duration(197.0), "3 min");
    }

    #[test]
    fn days_become_dates() {
        for (days, expected) in [(0, "1970-01-01"), (11_016, "2000-02-29"), (20_780, "2026-11-23")] {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn cards_show_no_directories_and_no_tokens() {
        let shown = |arguments: &[&str]| command(arguments.iter().map(OsString::from));
        let cases: &[(&[&str], &str)] = &[
            (&["/builds/former", "train", "--data", "../own/rows.jsonl"], "train --data rows.jsonl"),
            (&["f", "--data=/own/rows.jsonl", "--lr", "0.5"], "--data=rows.jsonl --lr 0.5"),
            (&["f", "--hf-token", "secret", "-s", "1", "--hf-token=secret"], "-s 1"),
            (
                &["f", "--data", "owner/name:split", "--template", "a/b {x}'s"],
                "--data owner/name:split --template 'a/b {x}'\\''s'",
            ),
            (&["f", env!("CARGO_MANIFEST_DIR")], "forestream"),
            (&["f", "-m/own/tiny", "-m=/own/tiny", "-o../runs/new"], "-mtiny -m=tiny -onew"),
            (&["f", "-m/own/a=b", "-o/own/it's", "-hf=/own/tiny"], "-ma=b -o'it'\\''s' -hf=tiny"),
            (&["f", "-o/own/runs/..", "-s", "-5", "-s7", "-o=", "--resume"], "-o.. -s -5 -s7 -o= --resume"),
        ];
        for (arguments, expected) in cases {
            assert_eq!(shown(arguments), format!("forestream {expected}"));
        }
    }
}
