//! What a run tells while it runs: reports of steps, an observer, and the log of JSON lines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::TrainError;
use crate::checkpoint::Progress;
use crate::evaluate::Evaluation;
use crate::objective::NextTokenScore;
use crate::tensorboard::EventFile;

/// The name of the log in the output directory.
pub const LOG: &str = "train_log.jsonl";

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: usize,
    /// Steps of the run.
    pub num_steps: usize,
    /// The epoch, from 0.
    pub epoch: usize,
    /// Mean loss of streams over weighted targets, before the step.
    pub loss: f64,
    /// By depth: how often the most probable token was the target.
    pub accuracy: Vec<f64>,
    /// `1 + sum_k prod_(i<=k) accuracy_i`.
    pub tau: f64,
    /// The main rows, where they are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<NextTokenFigures>,
    /// The early exit, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_exit: Option<NextTokenFigures>,
    /// The learning rate of streams.
    pub lr: f64,
    /// The norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Positions of the step.
    pub num_positions: usize,
    /// Positions in a second.
    pub positions_per_second: f64,
    /// Seconds until the end, at the run's mean speed.
    pub seconds_left: f64,
    /// Where the time went.
    pub seconds: StepSeconds,
}

/// How main rows, or the early exit, predict the next token of completions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NextTokenFigures {
    /// Mean loss: the logarithm of the perplexity.
    pub loss: f64,
    /// The share of rows whose most probable token is the next one.
    pub accuracy: f64,
}

impl NextTokenFigures {
    /// The figures of a score; none where no row was scored.
    pub(crate) fn of(score: &NextTokenScore) -> Option<Self> {
        (score.rows > 0).then(|| Self { loss: score.mean_loss(), accuracy: score.accuracy() })
    }
}

/// Where the time of a step went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepSeconds {
    /// The engine's passes over the texts.
    pub features: f64,
    /// Trained rows forward and backward.
    pub passes: f64,
    /// Clipping and update.
    pub optimizer: f64,
}

/// Who watches a run, and may end it.
pub trait Observer {
    /// A step is done.
    fn step(&mut self, report: &StepReport);
    /// Held-out examples were measured.
    fn evaluated(&mut self, step: usize, evaluation: &Evaluation);
    /// A checkpoint was written.
    fn saved(&mut self, step: usize);
    /// Whether the run should save itself and stop. It is asked after each step, and before each example while held-out ones
    /// are measured.
    fn is_stop_asked(&self) -> bool;
}

/// The log: one JSON object for each step and each evaluation, and the same figures for TensorBoard.
pub(crate) struct TrainLog {
    path: PathBuf,
    file: File,
    events: EventFile,
}

impl TrainLog {
    /// Takes the log, and with it the directory, for one run until the file is closed.
    ///
    /// # Errors
    /// If another run has it, or the file cannot be opened.
    pub(crate) fn lock(directory: &Path) -> Result<File, TrainError> {
        let path = directory.join(LOG);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(TrainError::write(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(TrainError::InUse { path }),
            Err(TryLockError::Error(_)) | Ok(()) => Ok(file), // not every file system has locks
        }
    }

    /// Opens the log of a run that has come so far, and drops what was written after that.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub(crate) fn open(directory: &Path, mut file: File, progress: &Progress) -> Result<Self, TrainError> {
        let path = directory.join(LOG);
        let text = io::read_to_string(&file).map_err(TrainError::read(&path))?;
        // Lines are in the order of their steps. They are cut off and not written anew: a run may be killed at any moment.
        let kept = text.split_inclusive('\n').take_while(|line| is_done(line, progress));
        let len = kept.map(|line| line.len() as u64).sum();
        let cut = file.set_len(len).and_then(|()| file.seek(SeekFrom::Start(len)));
        cut.map_err(TrainError::write(&path))?;
        Ok(Self { path, file, events: EventFile::open(directory, progress.step)? })
    }

    pub(crate) fn step(&mut self, report: &StepReport) -> Result<(), TrainError> {
        self.write(&serde_json::to_value(report).expect("a report is plain data"))?;
        let mut figures = figures("train", report.loss, report.tau, &report.accuracy);
        figures.extend(next_token_figures("train/main", report.main));
        figures.extend(next_token_figures("train/early_exit", report.early_exit));
        figures.push(("train/learning_rate".to_owned(), report.lr));
        figures.push(("train/gradient_norm".to_owned(), report.gradient_norm));
        figures.push(("train/positions_per_second".to_owned(), report.positions_per_second));
        self.events.scalars(report.step, &figures)
    }

    pub(crate) fn evaluation(&mut self, step: usize, evaluation: &Evaluation) -> Result<(), TrainError> {
        self.write(&serde_json::json!({ "step": step, "evaluation": evaluation }))?;
        let mut figures = figures("held_out", evaluation.loss, evaluation.tau, &evaluation.accuracy);
        figures.extend(next_token_figures("held_out/main", evaluation.main));
        figures.extend(next_token_figures("held_out/early_exit", evaluation.early_exit));
        figures.push(("held_out/chain".to_owned(), evaluation.chain));
        self.events.scalars(step, &figures)
    }

    fn write(&mut self, line: &Value) -> Result<(), TrainError> {
        let line = format!("{line}\n"); // in one piece, since a run may be killed at any moment
        self.file.write_all(line.as_bytes()).map_err(TrainError::write(&self.path))
    }
}

/// What steps and evaluations have in common, with names for TensorBoard.
fn figures(group: &str, loss: f64, tau: f64, accuracy: &[f64]) -> Vec<(String, f64)> {
    let mut figures = vec![(format!("{group}/loss"), loss), (format!("{group}/tau"), tau)];
    let depths = accuracy.iter().enumerate();
    figures.extend(depths.map(|(depth, &accuracy)| (format!("{group}/accuracy_{}", depth + 1), accuracy)));
    figures
}

/// The figures of rows that predict the next token, where they are trained.
fn next_token_figures(rows: &str, figures: Option<NextTokenFigures>) -> impl Iterator<Item = (String, f64)> {
    let named = |figures: NextTokenFigures| [("loss", figures.loss), ("accuracy", figures.accuracy)];
    figures.into_iter().flat_map(named).map(move |(name, value)| (format!("{rows}_{name}"), value))
}

/// Whether a line is whole and tells of what a run has done that has come so far.
fn is_done(line: &str, progress: &Progress) -> bool {
    let line = line.strip_suffix('\n').and_then(|line| serde_json::from_str::<Value>(line).ok());
    let step = |line: &Value| usize::try_from(line.get("step")?.as_u64()?).ok();
    line.is_some_and(|line| {
        let is_awaited = progress.awaits_evaluation && line.get("evaluation").is_some();
        step(&line).is_some_and(|step| step < progress.step || step == progress.step && !is_awaited)
    })
}
