//! Training of adapters from a model's path: joins the model's files, its tokenizer and the trainer.

use std::path::{Path, PathBuf};

use forestream_burn::NamedDevice;
use forestream_model::streams::{
    ADAPTER_FORMAT_VERSION, Adapter, AdapterConfig, BaseModel, MainLoraConfig, TrainingMode,
};
use forestream_model::{Checkpoint, LoadOptions};
use forestream_text::TextError;
use forestream_train::{DataReader, RowTexts, TrainJob};

use crate::vocabulary::tokenizer_of;
use crate::{EngineOptions, Error};

pub use crate::stream_sizes::StreamSizes;
pub use crate::task_rows::TaskRows;
pub use forestream_model::streams::{Projection, StreamIdentity, TrainingMode as Mode};
pub use forestream_train::{
    CHECKPOINT, Draw, Evaluation, JointSettings, LOG, MainFigures, Objective, Observer, Origin, Outcome, PROVENANCE,
    Preset, Schedule, Start, StepReport, StepSeconds, TrainError, TrainSettings, Trainer,
};

/// The longest text, if nothing else is asked for and the model was trained for more.
const MAX_LEN: usize = 2048;

/// What to train, on what, and where it goes.
#[derive(Clone, Debug)]
pub struct TrainRequest {
    /// Sizes and switches of the streams. Those of an adapter to start from may differ in what no tensor depends on (the
    /// tokens that can be proposed), gain an early exit, and become narrow.
    pub sizes: StreamSizes,
    /// Low-rank changes of main rows' top layers, all of them if it says 0; the mode is joint where there are any.
    pub main_lora: Option<MainLoraConfig>,
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
pub fn open(path: &Path, options: &EngineOptions, request: TrainRequest) -> Result<Trainer, Error> {
    let checkpoint = Checkpoint::open(path)?;
    let trained = checkpoint.config().max_position_embeddings;
    let max_len = options.ctx_size.unwrap_or(trained.min(MAX_LEN));
    if max_len > trained {
        return Err(Error::ContextTooLong { asked: max_len, trained });
    }
    let fingerprint = checkpoint.fingerprint();
    let tokenizer = tokenizer_of(checkpoint.contents())?;
    let template = match tokenizer.chat_template() {
        Ok(template) => Some(template),
        Err(TextError::NoChatTemplate) => None,
        Err(error) => return Err(error.into()),
    };
    let reader = DataReader {
        tokenizer: &tokenizer,
        template: template.as_ref(),
        fingerprint: &fingerprint,
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
    let architecture = checkpoint.config().architecture.clone();
    let name = options.name.clone().unwrap_or_else(|| crate::engine::file_name(path));
    let open = |path: &PathBuf| Adapter::open(path, checkpoint.config(), &fingerprint);
    let fitted = request.adapter.as_ref().map(open).transpose()?;
    let initial = request.init_from.as_ref().map(open).transpose()?.or_else(|| fitted.clone());
    let mode = if request.main_lora.is_some() { TrainingMode::Joint } else { TrainingMode::Lossless };
    let (streams, lora) = request.sizes.resolve(initial.as_ref(), mode, checkpoint.config());
    let usual = LoadOptions::default();
    let load_options = LoadOptions {
        num_threads: options.threads.unwrap_or(usual.num_threads),
        isa: options.isa.unwrap_or(usual.isa),
    };
    let checkpoint = match options.quantize {
        Some(format) => checkpoint.quantized(format)?,
        None => checkpoint,
    };
    let mut main_lora = request.main_lora;
    if let Some(main) = main_lora.as_mut().filter(|main| main.num_layers == 0) {
        main.num_layers = checkpoint.config().num_hidden_layers;
    }
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
    let previous = request.init_from.as_ref().or(request.adapter.as_ref()).and_then(|path| provenance(path));
    let origin = Origin { previous, ..request.origin };
    Ok(Trainer::new(TrainJob {
        base: &checkpoint,
        load_options,
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
fn provenance(adapter: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(adapter.join(PROVENANCE)).ok()?).ok()
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
