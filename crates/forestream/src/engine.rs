//! A model that is ready to answer: weights, tokenizer, chat template and what its authors suggest.
//!
//! Owns the way from a path to a running model. Must not know the command line, or where models come from.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use forestream_decode::strategies::{self, Requires, Resources, StreamingOptions};
use forestream_decode::{Budget, LiveCurve, SamplingSettings};
use forestream_model::architectures::GenerationDefaults;
use forestream_model::{Checkpoint, DecoderConfig, Format, Isa, KvCache, Model};
use forestream_text::{ChatTemplate, TextError, Tokenizer};

use crate::adapters::{self, AdapterChoice};
use crate::backend::Place;
use crate::cost_curve::{self, CostCurveKey, Supervision};
use crate::vocabulary::tokenizer_of;
use crate::{AUTO, Backend, Error, NamedDevice, Session};

/// How a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// The name in reports; `None` takes that of the file.
    pub name: Option<String>,
    /// What computes passes.
    pub backend: &'static Backend,
    /// What the back end runs on, where it can choose; `None` takes the processor.
    pub device: Option<&'static NamedDevice>,
    /// Threads; `None` takes one for each core.
    pub threads: Option<usize>,
    /// Tokens of context; `None` takes what the model was trained for.
    pub ctx_size: Option<usize>,
    /// The instruction set of the kernels; `None` takes the fastest. Never changes a token.
    pub isa: Option<Isa>,
    /// Stores all matrices in this format, those that the file has in another quantized one too.
    pub quantize: Option<Format>,
    /// The speculative streams that the model gets. They never change a token of a lossless adapter's base.
    pub adapter: AdapterChoice,
    /// Whether a task that the adapter carries becomes part of the weights, see [`CpuModel::attach_merged`].
    ///
    /// [`CpuModel::attach_merged`]: forestream_model::CpuModel::attach_merged
    pub merge_adapter: bool,
    /// Where measured cost curves are kept; `None` measures them again each time.
    pub cost_curve_directory: Option<PathBuf>,
    /// Is told, for whoever waits, where the measurement of a cost curve takes longer than a moment.
    pub note: Option<fn(&str)>,
    /// Whether such a measurement shall end early, as whoever waits has asked for the end of everything.
    pub is_stopped: Option<fn() -> bool>,
}

/// A model that is ready to answer.
pub struct Engine {
    model: Arc<dyn Model>,
    tokenizer: Tokenizer,
    defaults: GenerationDefaults,
    name: String,
    place: Place,
    ctx_size: usize,
    cost_curve_key: CostCurveKey,
    cost_curve_directory: Option<PathBuf>,
    cost_curve: OnceLock<Arc<LiveCurve>>,
    note: Option<fn(&str)>,
    is_stopped: Option<fn() -> bool>,
}

impl Engine {
    /// Loads the model at `path`: a GGUF file or a Hugging Face directory.
    ///
    /// # Errors
    /// A file that is missing, damaged or not supported, or has no tokenizer; a setting that the back end does not honour.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Self, Error> {
        options.backend.check(options)?;
        let checkpoint = Checkpoint::open(path)?;
        let ctx_size = context(options.ctx_size, usize::MAX, checkpoint.config())?;
        let tokenizer = tokenizer_of(checkpoint.contents())?;
        let checkpoint = match options.quantize {
            Some(format) => checkpoint.quantized(format)?,
            None => checkpoint,
        };
        let place = options.backend.place(options);
        let adapter = adapters::choose(&options.adapter, &checkpoint)?;
        if options.merge_adapter && adapter.as_ref().is_none_or(|adapter| adapter.config.main_lora.is_none()) {
            return Err(Error::NothingToMerge);
        }
        let weights = weight_format(options);
        let cost_curve_key = CostCurveKey::new(&checkpoint, weights, place, adapter.as_ref());
        checkpoint.release(); // what the tokenizer and the key have read need not stay in memory beside the weights
        Ok(Self {
            model: options.backend.load(&checkpoint, options, adapter)?,
            tokenizer,
            defaults: checkpoint.generation_defaults().clone(),
            name: options.name.clone().unwrap_or_else(|| file_name(path)),
            place,
            ctx_size,
            cost_curve_key,
            cost_curve_directory: options.cost_curve_directory.clone(),
            cost_curve: OnceLock::new(),
            note: options.note,
            is_stopped: options.is_stopped,
        })
    }

    /// A conversation with an empty cache.
    pub fn session(&self) -> Session<'_> {
        Session::new(self)
    }

    /// The name of the model, for reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What tells the base model from others, see [`Checkpoint::fingerprint`].
    pub fn fingerprint(&self) -> &str {
        self.cost_curve_key.fingerprint()
    }

    /// The format that weights were given while loading, or `as stored`; and whether a task was merged into them.
    pub fn weight_format(&self) -> &str {
        self.cost_curve_key.format()
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.place.threads
    }

    /// The strategy when nobody names one: what this model can draft with.
    pub fn default_strategy(&self) -> &'static str {
        if self.model.streams().is_some() { "ngram,streaming" } else { "ngram" }
    }

    /// A list of strategies with what [`AUTO`] stands for.
    pub(crate) fn resolve(&self, strategies: &str) -> String {
        let names = strategies.split([',', '+']).map(str::trim);
        let names = names.map(|name| if name == AUTO { self.default_strategy() } else { name });
        names.collect::<Vec<_>>().join(",")
    }

    /// What strategies of this model are built from.
    pub(crate) fn resources(&self, streaming: StreamingOptions) -> Resources<'_> {
        Resources::of(self.model(), streaming)
    }

    /// Whether one of these strategies drafts with streams.
    pub fn drafts_with_streams(&self, strategies: &str) -> bool {
        let needs_streams = |name| strategies::find(name).is_ok_and(|strategy| strategy.requires == Requires::Streams);
        self.resolve(strategies).split(',').any(needs_streams)
    }

    /// Weights that a strategy adds to the model's own.
    pub(crate) fn extra_parameters(&self, strategy: &str) -> u64 {
        let streams = self.model.streams().filter(|_| self.drafts_with_streams(strategy));
        streams.map_or(0, |streams| streams.num_parameters() as u64)
    }

    /// The name of the instruction set in use, or of the device.
    pub fn isa(&self) -> &'static str {
        self.place.kernels
    }

    /// The most tokens of prompt and answer together.
    pub fn ctx_size(&self) -> usize {
        self.ctx_size
    }

    /// Sizes and switches of the model.
    pub fn config(&self) -> &DecoderConfig {
        self.model.config()
    }

    /// The model itself.
    pub fn model(&self) -> &dyn Model {
        self.model.as_ref()
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// An empty cache for one text.
    pub fn new_cache(&self) -> KvCache {
        self.model.new_cache(self.ctx_size)
    }

    /// The model's own chat template, if it has one.
    ///
    /// # Errors
    /// A template that is not valid.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, Error> {
        chat_template_of(&self.tokenizer)
    }

    /// Tokens after which the model has nothing more to say.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let mut tokens: Vec<u32> = self.tokenizer.end_of_generation().iter().copied().collect();
        tokens.extend(
            self.defaults.eos_token_ids.iter().filter(|token| !self.tokenizer.end_of_generation().contains(token)),
        );
        tokens
    }

    /// What the model's authors suggest, else the usual settings of local chat; with a random seed.
    pub fn default_sampling(&self) -> SamplingSettings {
        const TEMPERATURE: f64 = 0.8;
        const TOP_K: u64 = 40;
        const TOP_P: f64 = 0.95;
        const MIN_P: f64 = 0.05;
        let usual = SamplingSettings::default();
        let repeat_penalty = self.defaults.repetition_penalty;
        SamplingSettings {
            temperature: self.defaults.temperature.unwrap_or(TEMPERATURE) as f32,
            top_k: Some(self.defaults.top_k.unwrap_or(TOP_K) as usize).filter(|&k| k > 0),
            top_p: self.defaults.top_p.unwrap_or(TOP_P) as f32,
            min_p: self.defaults.min_p.unwrap_or(MIN_P) as f32,
            repeat_penalty: repeat_penalty.map_or(usual.repeat_penalty, |penalty| penalty as f32),
            // Authors mean all tokens, not the last ones.
            penalty_last_n: if repeat_penalty.is_some() { None } else { usual.penalty_last_n },
            seed: random_seed(),
            ..usual
        }
    }

    /// The budget that picks, each round, what pays on this machine. Measured at first use, in about five seconds at most unless
    /// single passes take longer, and kept unless the measurement is stopped.
    ///
    /// # Errors
    /// If a pass of the measurement fails.
    pub fn auto_budget(&self) -> Result<Budget, Error> {
        if let Some(curve) = self.cost_curve.get() {
            return Ok(Budget::Live(Arc::clone(curve)));
        }
        let start = Instant::now();
        let clock = move || start.elapsed().as_secs_f64();
        let supervision = Supervision { clock: &clock, note: self.note, is_stopped: self.is_stopped };
        let directory = self.cost_curve_directory.as_deref();
        let measured = cost_curve::load_or_measure(self.model(), &self.cost_curve_key, directory, &supervision)?;
        let curve = Arc::new(LiveCurve::new(measured.curve, clock));
        if !measured.is_complete {
            return Ok(Budget::Live(curve));
        }
        Ok(Budget::Live(Arc::clone(self.cost_curve.get_or_init(|| curve))))
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Engine")
            .field("name", &self.name)
            .field("threads", &self.threads())
            .field("ctx_size", &self.ctx_size)
            .finish_non_exhaustive()
    }
}

/// The tokens of context: what is asked for, else `usual`, or what the model was trained for if that is less.
pub(crate) fn context(asked: Option<usize>, usual: usize, config: &DecoderConfig) -> Result<usize, Error> {
    let trained = config.max_position_embeddings;
    match asked {
        Some(asked) if asked > trained => Err(Error::ContextTooLong { asked, trained }),
        asked => Ok(asked.unwrap_or(trained.min(usual))),
    }
}

/// The chat template of a tokenizer, if it has one.
pub(crate) fn chat_template_of(tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, Error> {
    match tokenizer.chat_template() {
        Ok(template) => Ok(Some(template)),
        Err(TextError::NoChatTemplate) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// How weights are stored, for reports and whatever depends on it.
fn weight_format(options: &EngineOptions) -> String {
    let format = options.quantize.map_or_else(|| "as stored".to_owned(), |format| format.to_string());
    if options.merge_adapter { format + ", adapter merged" } else { format }
}

/// The name of a file without its extension, or of a directory.
pub(crate) fn file_name(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A seed from the operating system's randomness, small enough to be typed again.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish() & u64::from(u32::MAX)
}
