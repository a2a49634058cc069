//! Training of adapters from a model's path: joins the model's files, its tokenizer and the trainer.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use forestream_burn::NamedDevice;
use forestream_model::streams::{ADAPTER_FORMAT_VERSION, Adapter, AdapterConfig, BaseModel, TrainingMode};
use forestream_model::{Checkpoint, Format, Isa, ModelError};
use forestream_train::{DataReader, RowTexts, TrainJob, Writer};

use crate::Error;
use crate::backend::load_options;
use crate::engine::{chat_template_of, context, file_name};
use crate::vocabulary::tokenizer_of;

pub use crate::stream_sizes::{MainLoraSizes, StreamSizes};
pub use crate::task_rows::TaskRows;
pub use forestream_model::streams::{Projection, StreamIdentity, StreamPosition, TrainingMode as Mode};
pub use forestream_train::{
    CHECKPOINT, Draw, Evaluation, JointSettings, LOG, NextTokenFigures, Objective, Observer, Origin, Outcome,
    PROVENANCE, Preset, Schedule, Start, StepReport, StepSeconds, TrainError, TrainSettings, Trainer, check_output,
};

/// The longest text, if nothing else is asked for and the model was trained for more.
pub const USUAL_MAX_LEN: usize = 2048;

/// What to train, on what, and where it goes.
#[derive(Clone, Debug)]
pub struct TrainRequest {
    /// The model's name in the adapter's card; `None` takes that of the file.
    pub name: Option<String>,
    /// The longest text in tokens; `None` takes [`USUAL_MAX_LEN`], or what the model was trained for if that is less.
    pub ctx_size: Option<usize>,
    /// Threads; `None` takes one for each core. Never changes a bit of the result.
    pub threads: Option<usize>,
    /// The instruction set of the engine's kernels; `None` takes the fastest.
    pub isa: Option<Isa>,
    /// Stores all of the model's matrices in this format.
    pub quantize: Option<Format>,
    /// Sizes and switches of the streams. Those of an adapter to start from may differ in what no tensor depends on (the
    /// tokens that can be proposed), gain an early exit, and become narrow.
    pub sizes: StreamSizes,
    /// Low-rank changes of main rows; the mode is joint where there are any.
    pub main_lora: Option<MainLoraSizes>,
    /// Rows to train on.
    pub data: PathBuf,
    /// How rows are read, if not by the names of their fields.
    pub rows: Option<TaskRows>,
    /// Which rows of `data` are taken; without it, all.
    pub draw: Option<Draw>,
    /// Rows to measure on; without it, a part of `data`.
    pub eval_data: Option<PathBuf>,
    /// That part.
    pub eval_split: f64,
    /// How to train.
    pub settings: TrainSettings,
    /// What computes the trained rows and their gradients; the frozen ones are the engine's.
    pub device: &'static NamedDevice,
    /// Bytes for what the frozen model computed of rows, for later epochs.
    pub trace_memory: usize,
    /// Directory of the adapter.
    pub output: PathBuf,
    /// An adapter of joint mode whose model gets the streams. Without another adapter to start from, they go on from its own.
    pub adapter: Option<PathBuf>,
    /// An adapter whose streams the run starts from.
    pub init_from: Option<PathBuf>,
    /// What the card says about the run.
    pub origin: Origin,
}

/// Loads model and data and plans the run.
///
/// # Errors
/// A model that cannot be loaded, rows that cannot be used, or settings that do not fit the model.
pub fn open(path: &Path, request: TrainRequest) -> Result<Trainer, Error> {
    let checkpoint = Checkpoint::open(path)?;
    let max_len = context(request.ctx_size, USUAL_MAX_LEN, checkpoint.config())?;
    let fingerprint = checkpoint.fingerprint();
    let tokenizer = tokenizer_of(checkpoint.contents())?;
    let template = chat_template_of(&tokenizer)?;
    let architecture = checkpoint.config().architecture.clone();
    let name = request.name.unwrap_or_else(|| file_name(path));
    let open = |path: &PathBuf| Adapter::open(path, checkpoint.config(), &fingerprint);
    let fitted = request.adapter.as_ref().map(open).transpose()?;
    let initial = request.init_from.as_ref().map(open).transpose()?.or_else(|| fitted.clone());
    let mode = if request.main_lora.is_some() { TrainingMode::Joint } else { TrainingMode::Lossless };
    let task_digest = fitted.as_ref().and_then(Adapter::task_digest);
    let reader = DataReader {
        tokenizer: &tokenizer,
        template: template.as_ref(),
        fingerprint: &fingerprint,
        writer: match mode {
            TrainingMode::Lossless => Writer::Target(task_digest.as_deref()),
            TrainingMode::Joint => Writer::Any,
        },
        vocab_size: checkpoint.config().vocab_size,
        max_len,
        rows: request.rows.as_ref().map(|rows| rows as &dyn RowTexts),
    };
    let read = |path: &Path, draw| reader.read(path, draw).map_err(TrainError::from);
    let mut training = read(&request.data, request.draw)?;
    let held_out = match &request.eval_data {
        Some(path) => read(path, None)?,
        None => training.split_off(request.eval_split).map_err(TrainError::from)?,
    };
    let (streams, lora) = request.sizes.resolve(initial.as_ref(), mode, checkpoint.config());
    let checkpoint = match request.quantize {
        Some(format) => checkpoint.quantized(format)?,
        None => checkpoint,
    };
    let main_lora = request.main_lora.map(|sizes| sizes.resolve(initial.as_ref(), checkpoint.config()));
    let adapter = AdapterConfig {
        format_version: ADAPTER_FORMAT_VERSION,
        base_model: BaseModel { name, fingerprint, architecture },
        mode,
        streams,
        lora,
        main_lora,
        calibration: Vec::new(),
    };
    let (settings, output) = (request.settings, request.output);
    let previous = match request.init_from.as_ref().or(request.adapter.as_ref()) {
        Some(path) => provenance(path)?,
        None => None,
    };
    let origin = Origin { previous, ..request.origin };
    Ok(Trainer::new(TrainJob {
        base: &checkpoint,
        load_options: load_options(request.threads, request.isa),
        device: request.device,
        adapter,
        training,
        held_out,
        settings,
        trace_memory: request.trace_memory,
        output,
        fitted,
        initial,
        origin,
    })?)
}

/// What an adapter's directory says about its training; adapters of other makers need not say anything.
fn provenance(adapter: &Path) -> Result<Option<serde_json::Value>, ModelError> {
    let path = adapter.join(PROVENANCE);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            let problem = format!(
                "not the provenance of an adapter: {error}; restore the file, or remove it, and the new adapter's says nothing \
                 of this one"
            );
            ModelError::Malformed { path, problem }
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModelError::Read { path, source }),
    }
}

/// Writes the model that an adapter of joint mode makes of the base at `path` into `output`, as a Hugging Face directory;
/// returns the names of the files.
///
/// # Errors
/// A base or adapter that cannot be loaded, an adapter that changes nothing, or a file that cannot be written.
pub fn merge(path: &Path, adapter: &Path, output: &Path) -> Result<Vec<String>, Error> {
    let checkpoint = Checkpoint::open(path)?;
    let adapter = Adapter::open(adapter, checkpoint.config(), &checkpoint.fingerprint())?;
    Ok(forestream_train::merge(&checkpoint, &adapter, output)?)
}
