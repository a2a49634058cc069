//! The loop: batches, steps, evaluations, checkpoints, and the best adapter in the output directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use forestream_burn::tensor::Device;
use forestream_burn::{StreamBase, StreamWeights};
use forestream_model::streams::{Adapter, AdapterConfig, MAIN_LAYERS};
use forestream_model::{DecoderConfig, Format, TokenId};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::TrainError;
use crate::adamw::{AdamW, Named, clip};
use crate::batch::Order;
use crate::checkpoint::{self, CHECKPOINT, Checkpoint, Progress};
use crate::data::{Dataset, Example};
use crate::draft_vocabulary::{self, DraftRows};
use crate::evaluate::{Evaluation, evaluate};
use crate::export::{self, CARD, Origin, PROVENANCE, TrainedOn};
use crate::features::FeatureExtractor;
use crate::gradients::{BatchScore, Step};
use crate::initial::initial_weights;
use crate::inner_features::{self, InnerFeatures};
use crate::job::TrainJob;
use crate::measure::Measurement;
use crate::objective::tau;
use crate::pieces::{Piece, PieceMaker};
use crate::progress::{LOG, NextTokenFigures, Observer, StepReport, StepSeconds, TrainLog};
use crate::rows::hexadecimal;
use crate::settings::{Objective, TrainSettings};
use crate::tensorboard::EVENTS;
use crate::workers::Workers;

/// The file that every adapter has.
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// What a run writes beside checkpoint and configuration.
const WRITTEN: [&str; 5] = ["adapter_model.safetensors", CARD, PROVENANCE, LOG, EVENTS];
/// Gradients are scaled down to this norm.
const MAX_GRADIENT_NORM: f64 = 1.0;
/// A kept adapter's main rows have at most this many times the lowest loss that was measured.
const MAX_MAIN_LOSS: f64 = 1.01;

/// Whether a run begins, or goes on from its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From fresh or given weights.
    Fresh,
    /// From the checkpoint in the output directory.
    Resume,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All steps are done; the best evaluation, whose adapter is in the output directory.
    Finished(Evaluation),
    /// It was asked to stop; a checkpoint of this step is in the output directory.
    Stopped(usize),
}

/// A run between two steps.
pub struct Trainer {
    device: Device,
    decoder: DecoderConfig,
    /// The format that the base's matrices were given while loading.
    matrix_format: Option<Format>,
    adapter: AdapterConfig,
    draft_vocabulary: Vec<TokenId>,
    /// So many of them are those of the data.
    num_data_tokens: usize,
    inner_features: InnerFeatures,
    fitted: Option<Adapter>,
    leaves_out_main_changes: bool,
    piece_maker: PieceMaker,
    base: StreamBase,
    workers: Workers,
    training: Dataset,
    held_out: Dataset,
    settings: TrainSettings,
    output: PathBuf,
    origin: Origin,
    order: Order,
    num_steps: usize,
    weights: Named,
    optimizer: AdamW,
    progress: Progress,
}

impl Trainer {
    /// Loads the model and plans the run. Writes nothing.
    ///
    /// # Errors
    /// Settings, data, model or initial weights that do not fit together.
    pub fn new(job: TrainJob<'_>) -> Result<Self, TrainError> {
        job.validate()?;
        let leaves_out_main_changes = job.leaves_out_main_changes();
        let decoder = job.base.config().clone();
        let (draft_vocabulary, num_data_tokens) = draft_vocabulary_of(&job);
        let mut adapter = job.adapter;
        adapter.streams.draft_vocab_size = Some(draft_vocabulary.len()).filter(|&size| size > 0);
        let inner_features = InnerFeatures::of(&adapter, job.initial.as_ref())?;
        let mut wide = adapter.clone();
        wide.streams.intermediate_size = None;
        let device = job.device.open();
        let mut base = StreamBase::load(job.base, &wide, &draft_vocabulary, &device)?;
        let workers = if job.device.has_cores { Workers::apart } else { Workers::together };
        let workers = workers(job.load_options.num_threads)?;
        let num_streams = adapter.streams.num_streams;
        let mut features = FeatureExtractor::load(job.base, base.first_layer(), num_streams, job.load_options)?;
        features.cut(workers.segment_len());
        features.remember(job.trace_memory);
        if let Some(fitted) = &job.fitted {
            base = base.fitted_by(fitted);
            features.fit(fitted, job.base)?;
        }
        if job.settings.objective != Objective::Ce {
            features.teach(match draft_vocabulary.as_slice() {
                [] => (0..decoder.vocab_size as TokenId).collect(),
                tokens => tokens.to_vec(),
            });
        }
        let first = if inner_features.is_open() { &wide } else { &adapter };
        let weights = initial_weights(job.initial, first, &decoder, job.settings.seed, &device)?;
        let base = match inner_features.chosen() {
            [] => base,
            chosen => base.narrowed_to(chosen),
        };
        let draft_rows = DraftRows::new(&draft_vocabulary, decoder.vocab_size);
        let mut order = Order::new(job.training.examples.len(), job.settings.seed);
        let num_steps = plan(&job.settings, &mut order, &job.training.examples);
        Ok(Self {
            piece_maker: PieceMaker::new(features, draft_rows, &adapter, job.settings.depth_decay),
            optimizer: AdamW::new(&weights),
            training: job.training,
            held_out: job.held_out,
            settings: job.settings,
            output: job.output,
            origin: job.origin,
            progress: Progress::default(),
            device,
            decoder,
            matrix_format: job.base.matrix_format(),
            adapter,
            draft_vocabulary,
            num_data_tokens,
            inner_features,
            fitted: job.fitted,
            leaves_out_main_changes,
            base,
            workers,
            order,
            num_steps,
            weights,
        })
    }

    /// Steps of the whole run.
    pub fn num_steps(&self) -> usize {
        self.num_steps
    }

    /// Sizes and switches of the streams.
    pub fn adapter(&self) -> &AdapterConfig {
        &self.adapter
    }

    /// Trained parameters.
    pub fn num_parameters(&self) -> usize {
        self.adapter.num_parameters(&self.decoder)
    }

    /// Whether the adapter to start from changes the model, and this run takes its streams alone.
    pub fn leaves_out_main_changes(&self) -> bool {
        self.leaves_out_main_changes
    }

    /// What is trained on.
    pub fn training(&self) -> &Dataset {
        &self.training
    }

    /// What is measured on.
    pub fn held_out(&self) -> &Dataset {
        &self.held_out
    }

    /// Does one step and writes nothing, for an estimate.
    ///
    /// # Errors
    /// If a pass fails.
    pub fn measure_step(&mut self) -> Result<StepReport, TrainError> {
        self.choose_inner_features(&|| false)?;
        self.step()
    }

    /// Trains until all steps are done or the observer asks to stop.
    ///
    /// # Errors
    /// If a pass fails, the loss stops being a number, or a file cannot be written. Checkpoints stay intact.
    pub fn run(&mut self, start: Start, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
        if !self.output.join(LOG).exists() {
            check_output(&self.output, start)?; // before a file is made: what is refused leaves a directory as it is
        }
        std::fs::create_dir_all(&self.output).map_err(TrainError::write(&self.output))?;
        let log = TrainLog::lock(&self.output)?;
        check_output(&self.output, start)?;
        match start {
            Start::Resume => self.load_checkpoint()?,
            Start::Fresh => self.save_checkpoint()?, // so that a run that is killed at any moment can go on
        }
        if self.inner_features.is_open() {
            if !self.choose_inner_features(&|| observer.is_stop_asked())? {
                return Ok(Outcome::Stopped(self.progress.step));
            }
            self.save_checkpoint()?;
        }
        let mut log = TrainLog::open(&self.output, log, &self.progress)?;
        loop {
            if let Some(best) = self.progress.best.as_ref().filter(|_| self.is_finished()) {
                return Ok(Outcome::Finished(best.clone()));
            }
            let goes_on = self.log_step(&mut log, observer)? && self.log_evaluation(&mut log, observer)?;
            if !goes_on {
                return Ok(Outcome::Stopped(self.progress.step));
            }
        }
    }

    /// Does a step, if the last one awaits nothing more, and saves the run if that is due; `false` where it is to stop.
    fn log_step(&mut self, log: &mut TrainLog, observer: &mut dyn Observer) -> Result<bool, TrainError> {
        if self.progress.awaits_evaluation {
            return Ok(true);
        }
        let report = self.step()?;
        log.step(&report)?;
        observer.step(&report);
        self.progress.awaits_evaluation = self.is_due(self.settings.eval_steps);
        let is_stopped = observer.is_stop_asked();
        // Before the evaluation, which takes long and may fail: it can be made again, and the steps are safe.
        if self.is_due(self.settings.save_steps) || is_stopped {
            self.save_checkpoint()?;
            observer.saved(self.progress.step);
        }
        Ok(!is_stopped)
    }

    /// Measures, if that is due; `false` where it was asked to stop.
    fn log_evaluation(&mut self, log: &mut TrainLog, observer: &mut dyn Observer) -> Result<bool, TrainError> {
        if !self.progress.awaits_evaluation {
            return Ok(true);
        }
        let Some(evaluation) = self.evaluate(&|| observer.is_stop_asked())? else {
            self.save_checkpoint()?;
            observer.saved(self.progress.step);
            return Ok(false);
        };
        log.evaluation(self.progress.step, &evaluation)?;
        observer.evaluated(self.progress.step, &evaluation);
        if self.is_due(self.settings.save_steps) {
            self.save_checkpoint()?; // the same weights, which no longer await anything
        }
        Ok(true)
    }

    /// Drops the inner features of stream rows that a narrow run does without, where that is not done yet; `false` where it
    /// was asked to stop.
    fn choose_inner_features(&mut self, is_stop_asked: &dyn Fn() -> bool) -> Result<bool, TrainError> {
        let InnerFeatures::Open { size, given } = &self.inner_features else { return Ok(true) };
        let weights = StreamWeights::from_values(self.base.adapter(), &self.decoder, &self.weights, &self.device);
        let examples = &self.training.examples;
        let mut measurement = Measurement { maker: &mut self.piece_maker, workers: &self.workers, is_stop_asked };
        let kept = inner_features::choose(*size, &mut measurement, &self.base, &weights, examples)?;
        let Some(mut kept) = kept else { return Ok(false) };
        let num_new = kept.len() - given.len();
        kept[num_new..].clone_from_slice(given);
        let first_layer = self.adapter.first_msa_layer(&self.decoder);
        inner_features::narrow(&mut self.weights, first_layer, &kept, self.decoder.intermediate_size);
        self.optimizer = AdamW::new(&self.weights);
        self.keep(kept);
        Ok(true)
    }

    fn keep(&mut self, inner_features: Vec<Vec<u32>>) {
        self.base = self.base.clone().narrowed_to(&inner_features);
        self.inner_features = InnerFeatures::Chosen(inner_features);
    }

    /// Whether all steps are done.
    fn is_done(&self) -> bool {
        self.share_done() >= 1.0
    }

    /// Whether all steps are done, and what is due after the last one.
    fn is_finished(&self) -> bool {
        self.is_done() && !self.progress.awaits_evaluation
    }

    /// Whether something that is done every `steps` steps, and at the end, is to be done now.
    fn is_due(&self, steps: usize) -> bool {
        self.progress.step.is_multiple_of(steps) || self.is_done()
    }

    /// The part of the run that is done, by steps or by the clock.
    fn share_done(&self) -> f64 {
        self.share_after(self.progress.step)
    }

    fn share_after(&self, steps: usize) -> f64 {
        let by_steps = steps as f64 / self.num_steps as f64;
        let by_clock = self.settings.max_minutes.map_or(0.0, |minutes| self.progress.seconds / (60.0 * minutes));
        by_steps.max(by_clock)
    }

    fn step(&mut self) -> Result<StepReport, TrainError> {
        let started = Instant::now();
        let place = self.progress.place;
        let indices = self.order.batch(place, &self.training.examples, self.settings.batch_tokens);
        let pieces = self.pieces(&indices)?;
        let num_positions = pieces.iter().map(Piece::num_positions).sum();
        let after_features = started.elapsed().as_secs_f64();
        let pass = Step {
            base: &self.base,
            weights: &self.weights,
            device: &self.device,
            settings: &self.settings,
            workers: &self.workers,
        };
        let (score, mut gradients) = pass.gradients(pieces)?;
        let BatchScore { streams: score, main, early_exit } = score;
        let after_passes = started.elapsed().as_secs_f64();
        let step = self.progress.step + 1;
        // By kind of row: the great gradients of fresh streams must not hold main rows back.
        let norms = [false, true]
            .map(|is_main| clip(&mut gradients, MAX_GRADIENT_NORM, &|name| is_of_main_rows(name) == is_main));
        let gradient_norm = norms[0].hypot(norms[1]);
        if !(score.loss + main.loss + early_exit.loss).is_finite() || !gradient_norm.is_finite() {
            return Err(TrainError::NotFinite { step });
        }
        let factor = self.settings.schedule.factor(self.settings.warm_up, self.share_after(step));
        let rate = self.settings.lr * factor;
        let main_rate = self.settings.joint.as_ref().map_or(0.0, |joint| joint.main_lr * factor);
        let rate_of = |name: &str| if is_of_main_rows(name) { main_rate as f32 } else { rate as f32 };
        self.optimizer.update(&mut self.weights, &gradients, &rate_of, step);
        let seconds = started.elapsed().as_secs_f64();
        self.progress.step = step;
        self.progress.place += indices.len();
        self.progress.num_positions += num_positions;
        self.progress.seconds += seconds;
        let accuracy = score.accuracy();
        let share = self.share_done();
        Ok(StepReport {
            step,
            num_steps: self.num_steps,
            epoch: place / self.training.examples.len(),
            loss: score.mean_loss(),
            tau: tau(&accuracy),
            accuracy,
            main: NextTokenFigures::of(&main),
            early_exit: NextTokenFigures::of(&early_exit),
            lr: rate,
            gradient_norm,
            num_positions,
            positions_per_second: num_positions as f64 / seconds,
            seconds_left: self.progress.seconds * (1.0 - share).max(0.0) / share,
            seconds: StepSeconds {
                features: after_features,
                passes: after_passes - after_features,
                optimizer: seconds - after_passes,
            },
        })
    }

    fn pieces(&mut self, indices: &[usize]) -> Result<Vec<Piece>, TrainError> {
        let mut pieces = Vec::new();
        for &index in indices {
            pieces.extend(self.piece_maker.pieces(&self.training.examples[index])?);
        }
        Ok(pieces)
    }

    /// Measures on held-out examples, and exports the adapter if it is the one to keep; `None` where it was asked to stop.
    fn evaluate(&mut self, is_stop_asked: &dyn Fn() -> bool) -> Result<Option<Evaluation>, TrainError> {
        let started = Instant::now();
        let weights = StreamWeights::from_values(&self.adapter, &self.decoder, &self.weights, &self.device).frozen();
        let mut measurement = Measurement { maker: &mut self.piece_maker, workers: &self.workers, is_stop_asked };
        let evaluation = evaluate(&mut measurement, &self.base, &weights, &self.held_out.examples)?;
        let Some(evaluation) = evaluation else { return Ok(None) };
        if !evaluation.is_finite() {
            return Err(TrainError::NotFinite { step: self.progress.step });
        }
        if self.is_to_be_kept(&evaluation) {
            self.export(&evaluation)?;
            self.progress.best = Some(evaluation.clone());
        }
        self.progress.seconds += started.elapsed().as_secs_f64();
        self.progress.awaits_evaluation = false;
        Ok(Some(evaluation))
    }

    /// Without a task the greatest tau is kept. With one, the latest weights whose main rows are about as good as any
    /// before: streams draft for the main rows of their own step, and still get better when these do not.
    fn is_to_be_kept(&mut self, evaluation: &Evaluation) -> bool {
        let Some(main) = &evaluation.main else {
            let rank = |evaluation: &Evaluation| (evaluation.tau, -evaluation.loss);
            return self.progress.best.as_ref().is_none_or(|best| rank(evaluation) > rank(best));
        };
        let lowest = self.progress.lowest_main_loss.map_or(main.loss, |lowest| lowest.min(main.loss));
        self.progress.lowest_main_loss = Some(lowest);
        main.loss <= MAX_MAIN_LOSS * lowest
    }

    fn export(&self, evaluation: &Evaluation) -> Result<(), TrainError> {
        let mut config = self.adapter.clone();
        config.calibration.clone_from(&evaluation.calibration);
        let mut tensors = self.weights.clone();
        if let Some(fitted) = &self.fitted {
            (config.mode, config.main_lora) = (fitted.config.mode, fitted.config.main_lora.clone());
            tensors.extend(main_tensors(fitted).map(|(name, values)| (name.clone(), values.clone())));
        }
        let draft_vocabulary = self.draft_vocabulary.clone();
        let inner_features = self.inner_features.chosen().to_vec();
        let adapter = Adapter { config, tensors, draft_vocabulary, inner_features };
        let trained_on = TrainedOn {
            step: self.progress.step,
            num_positions: self.progress.num_positions,
            seconds: self.progress.seconds,
            num_parameters: self.num_parameters(),
            training: &self.training,
            held_out: &self.held_out,
            settings: &self.settings,
        };
        let mut files = adapter.files(&self.output, &self.decoder)?;
        files.extend(export::describe(&self.output, &adapter.config, &trained_on, evaluation, &self.origin));
        checkpoint::replace(&files)
    }

    fn save_checkpoint(&self) -> Result<(), TrainError> {
        let checkpoint = Checkpoint {
            run: self.identity(),
            origin: self.origin.clone(),
            progress: Progress { is_finished: self.is_finished(), ..self.progress.clone() },
            inner_features: self.inner_features.given().to_vec(),
            weights: self.weights.clone(),
            optimizer: self.optimizer.clone(),
        };
        checkpoint.save(&self.output.join(CHECKPOINT))
    }

    fn load_checkpoint(&mut self) -> Result<(), TrainError> {
        let path = self.output.join(CHECKPOINT);
        let checkpoint = Checkpoint::load(&path)?;
        checkpoint.check_run(&self.identity(), &path)?;
        if !checkpoint.inner_features.ends_with(self.inner_features.given()) {
            let problem =
                "its run began with an adapter that keeps other inner features; name that one with --init-from";
            return Err(TrainError::Checkpoint { path, problem: problem.to_owned() });
        }
        self.origin = checkpoint.origin;
        self.progress = checkpoint.progress;
        self.progress.awaits_evaluation |= self.is_done() && self.progress.best.is_none();
        self.weights = checkpoint.weights;
        self.optimizer = checkpoint.optimizer;
        let is_chosen = checkpoint.inner_features.len() == self.adapter.streams.num_msa_layers;
        if self.inner_features.is_open() && is_chosen {
            self.keep(checkpoint.inner_features); // the weights to start from may be narrow already
        }
        Ok(())
    }

    /// Settings, streams, model and data of this run, by name.
    fn identity(&self) -> Map<String, Value> {
        let mut identity = Map::new();
        let plain = "settings are plain data";
        flatten("", serde_json::to_value(&self.settings).expect(plain), &mut identity);
        flatten("", serde_json::to_value(&self.adapter).expect(plain), &mut identity);
        if let Some(format) = self.matrix_format {
            identity.insert("quantize".to_owned(), format.to_string().into());
        }
        if let Some(fitted) = &self.fitted {
            identity.insert("adapter.task_digest".to_owned(), fitted.task_digest().into());
        }
        let added = &self.draft_vocabulary[self.num_data_tokens..];
        if !added.is_empty() {
            let bytes: Vec<u8> = added.iter().flat_map(|token| token.to_le_bytes()).collect();
            identity.insert("init_from.draft_vocabulary".to_owned(), hexadecimal(&Sha256::digest(bytes)).into());
        }
        for (name, data) in [("data", &self.training), ("eval_data", &self.held_out)] {
            identity.insert(format!("{name}.sha256"), data.sha256.clone().into());
            identity.insert(format!("{name}.examples"), data.examples.len().into());
            identity.insert(format!("{name}.positions"), data.num_positions().into());
            identity.extend(data.selection.clone().map(|selection| (format!("{name}.selection"), selection.into())));
        }
        identity
    }
}

/// The tokens that streams can propose: the most frequent ones of the data, then, up to the asked size, those that the streams
/// to start from can propose, in their order. And how many are those of the data.
fn draft_vocabulary_of(job: &TrainJob<'_>) -> (Vec<TokenId>, usize) {
    let Some(size) = job.adapter.streams.draft_vocab_size else { return (Vec::new(), 0) };
    let mut tokens = draft_vocabulary::choose(&job.training.examples, size, job.base.config().vocab_size);
    let num_data_tokens = tokens.len();
    let known: BTreeSet<TokenId> = tokens.iter().copied().collect();
    let given = job.initial.iter().flat_map(|initial| &initial.draft_vocabulary).copied();
    tokens.extend(given.filter(|token| !known.contains(token)).take(size - num_data_tokens));
    (tokens, num_data_tokens)
}

/// Fresh streams need about so many steps before they are worth anything.
const ENOUGH_STEPS: usize = 400;
/// More often than this, examples teach nothing new.
const MAX_USUAL_EPOCHS: usize = 20;

/// The steps of a run.
fn plan(settings: &TrainSettings, order: &mut Order, examples: &[Example]) -> usize {
    let steps_of_epoch = order.steps_of_epoch(0, examples, settings.batch_tokens);
    let usual_epochs = ENOUGH_STEPS.div_ceil(steps_of_epoch).clamp(1, MAX_USUAL_EPOCHS);
    let epochs = settings.epochs.unwrap_or(usual_epochs);
    let by_epochs = || (0..epochs).map(|epoch| order.steps_of_epoch(epoch, examples, settings.batch_tokens)).sum();
    settings.steps.unwrap_or_else(by_epochs)
}

/// What an adapter changes of main rows, by name.
fn main_tensors(adapter: &Adapter) -> impl Iterator<Item = (&String, &Vec<f32>)> {
    adapter.tensors.iter().filter(|(name, _)| is_of_main_rows(name))
}

/// Whether a tensor changes main rows.
fn is_of_main_rows(name: &str) -> bool {
    name.starts_with(MAIN_LAYERS)
}

/// Nested objects as one, with dotted names.
fn flatten(prefix: &str, value: Value, flat: &mut Map<String, Value>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                flatten(&name, value, flat);
            }
        }
        value => {
            flat.insert(prefix.to_owned(), value);
        }
    }
}

/// Checks that an output directory is one to start in.
///
/// # Errors
/// A run, an adapter or somebody else's file that is there already; for [`Start::Resume`], no run.
pub fn check_output(output: &Path, start: Start) -> Result<(), TrainError> {
    let [path, adapter] = [CHECKPOINT, ADAPTER_CONFIG].map(|name| output.join(name));
    let directory = output.to_owned();
    match start {
        Start::Resume if path.exists() => Ok(()),
        Start::Resume => Err(TrainError::NothingToResume { path }),
        Start::Fresh if path.exists() => {
            let is_finished = Checkpoint::load(&path)?.progress.is_finished;
            Err(if is_finished { TrainError::Finished { path, directory } } else { TrainError::Unfinished { path } })
        }
        Start::Fresh if adapter.exists() => Err(TrainError::AdapterExists { path: adapter, directory }),
        Start::Fresh => {
            let has_content = |path: &PathBuf| path.metadata().is_ok_and(|metadata| metadata.len() > 0);
            let mut in_the_way = WRITTEN.iter().map(|name| output.join(name)).filter(has_content);
            in_the_way.next().map_or(Ok(()), |path| Err(TrainError::InTheWay { path }))
        }
    }
}
