//! What `adapter_config.json` says: which streams an adapter adds to which base model.
//!
//! The file decides the names and shapes of all tensors ([`AdapterConfig::tensors`]), so that the trainer that writes an
//! adapter and the engine that reads it cannot disagree. Source: Speculative Streaming (arXiv 2402.11131); token
//! conditioning and sampler are additions of this project (`docs/speculative-streaming.md`).

use serde::{Deserialize, Serialize};

use super::StreamIdentity;
use crate::DecoderConfig;

/// The version of the directory's format that this build reads and writes.
pub const ADAPTER_FORMAT_VERSION: u32 = 1;

/// The names of tensors that change layers of stream rows begin with this.
pub const STREAM_LAYERS: &str = "layers";
/// The names of tensors that change layers of main rows begin with this.
pub const MAIN_LAYERS: &str = "main.layers";

/// Low-rank changes, samplers and early exits are no wider inside: more would be a mistake, and fill the memory.
const MAX_INNER_SIZE: usize = 4096;

/// The content of `adapter_config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// [`ADAPTER_FORMAT_VERSION`].
    pub format_version: u32,
    /// The model that the adapter belongs to.
    pub base_model: BaseModel,
    /// What was trained beside the streams.
    pub mode: TrainingMode,
    /// The streams.
    pub streams: StreamConfig,
    /// Low-rank changes of the projections that stream rows use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Low-rank changes of the projections that main rows use; joint mode only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main_lora: Option<MainLoraConfig>,
    /// By depth: how the drafter's confidence turns into acceptance, measured on held-out text.
    #[serde(default)]
    pub calibration: Vec<Calibration>,
}

/// The model that an adapter was trained for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseModel {
    /// Its name, for people.
    pub name: String,
    /// [`crate::Checkpoint::fingerprint`].
    pub fingerprint: String,
    /// The registered architecture.
    pub architecture: String,
}

/// What was trained beside the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainingMode {
    /// Nothing: the base is untouched and gives its own tokens.
    Lossless,
    /// A task, by LoRA on main rows: a model of its own.
    Joint,
}

/// Sizes and switches of the streams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// Streams per position (γ).
    pub num_streams: usize,
    /// Top layers with multi-stream attention (`N_s`).
    pub num_msa_layers: usize,
    /// The rotary position of a stream.
    pub position: StreamPosition,
    /// What tells the streams of a position apart.
    #[serde(default, skip_serializing_if = "StreamIdentity::has_embeddings")]
    pub identity: StreamIdentity,
    /// Whether streams start from the emitted token too: `M + W norm(emb(y)) + P_j`.
    pub token_conditioning: bool,
    /// Width inside the sampler MLP; none without a sampler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler_size: Option<usize>,
    /// Inner features of the MLP that stream rows use in each layer with streams; none means all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Tokens that streams can propose; none means all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft_vocab_size: Option<usize>,
    /// Rank of the early exit's map, which tells improbable draft tokens before the layers with streams; none without an
    /// early exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_exit_rank: Option<usize>,
}

/// Where stream `j` of position `t` stands for rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamPosition {
    /// At `t + j`, where the token stands that it stands for.
    Following,
    /// At `t`; the stream embedding carries the offset.
    Anchor,
}

/// Low-rank changes: each target's weight becomes `W + alpha / rank * B A`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Scale of the change, times the rank.
    pub alpha: f32,
    /// Projections by their names: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`.
    pub target_modules: Vec<Projection>,
}

impl LoraConfig {
    /// The factor of `B A`.
    pub fn scaling(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

/// LoRA of main rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MainLoraConfig {
    /// How many top layers carry it.
    pub num_layers: usize,
    /// Rank, scale and targets.
    #[serde(flatten)]
    pub lora: LoraConfig,
}

/// A projection of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of the checkpoint")]
pub enum Projection {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

impl Projection {
    /// All projections of a layer, in the order in which a pass uses them.
    pub const ALL: [Self; 7] =
        [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    /// The name inside a layer: `self_attn.q_proj`.
    pub const fn path(self) -> &'static str {
        match self {
            Self::QProj => "self_attn.q_proj",
            Self::KProj => "self_attn.k_proj",
            Self::VProj => "self_attn.v_proj",
            Self::OProj => "self_attn.o_proj",
            Self::GateProj => "mlp.gate_proj",
            Self::UpProj => "mlp.up_proj",
            Self::DownProj => "mlp.down_proj",
        }
    }

    /// Output and input features of this projection.
    pub fn shape(self, config: &DecoderConfig) -> [usize; 2] {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let q_len = config.num_attention_heads * config.head_dim;
        let kv_len = config.num_key_value_heads * config.head_dim;
        match self {
            Self::QProj => [q_len, hidden],
            Self::KProj | Self::VProj => [kv_len, hidden],
            Self::OProj => [hidden, q_len],
            Self::GateProj | Self::UpProj => [inner, hidden],
            Self::DownProj => [hidden, inner],
        }
    }
}

/// The probability of acceptance is `sigmoid(slope * logit(p) + intercept)` for a proposal of probability `p`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Factor of the log-odds.
    pub slope: f32,
    /// Shift of the log-odds.
    pub intercept: f32,
}

impl Default for Calibration {
    /// Takes the drafter at its word.
    fn default() -> Self {
        Self { slope: 1.0, intercept: 0.0 }
    }
}

impl Calibration {
    /// The probability of acceptance of a proposal of probability `p`, given that its parent is accepted.
    pub fn apply(self, p: f32) -> f32 {
        const EDGE: f32 = 1e-6;
        let p = p.clamp(EDGE, 1.0 - EDGE);
        let log_odds = self.slope * (p / (1.0 - p)).ln() + self.intercept;
        1.0 / (1.0 + (-log_odds).exp())
    }
}

/// A tensor that an adapter must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in `adapter_model.safetensors`.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
}

impl AdapterConfig {
    /// The first layer with streams (L0) of a base model of these sizes.
    pub fn first_msa_layer(&self, base: &DecoderConfig) -> usize {
        base.num_hidden_layers - self.streams.num_msa_layers
    }

    /// The base model's sizes as stream rows see them: their MLP may be narrower.
    pub fn stream_decoder(&self, base: &DecoderConfig) -> DecoderConfig {
        let intermediate_size = self.streams.intermediate_size.unwrap_or(base.intermediate_size);
        DecoderConfig { intermediate_size, ..base.clone() }
    }

    /// Every trained tensor, in a fixed order; there may be none. `draft_vocabulary` (token ids, `[draft_vocab_size]`) and
    /// `inner_features` (`[num_msa_layers, intermediate_size]`) come beside them.
    pub fn tensors(&self, base: &DecoderConfig) -> Vec<TensorSpec> {
        let (streams, hidden) = (&self.streams, base.hidden_size);
        let mut specs = Vec::new();
        if streams.identity.has_embeddings() {
            specs.push(spec("stream_embeddings", [streams.num_streams, hidden]));
        }
        if streams.token_conditioning {
            specs.push(spec("token_conditioning.weight", [hidden, hidden]));
        }
        if let Some(size) = streams.sampler_size {
            specs.push(spec("sampler.down_proj.weight", [size, hidden]));
            specs.push(spec("sampler.up_proj.weight", [hidden, size]));
        }
        if let Some(rank) = streams.early_exit_rank {
            specs.push(spec("early_exit.down_proj.weight", [rank, hidden]));
            specs.push(spec("early_exit.up_proj.weight", [hidden, rank]));
        }
        if let Some(lora) = &self.lora {
            push_lora(&mut specs, STREAM_LAYERS, self.first_msa_layer(base), lora, &self.stream_decoder(base));
        }
        if let Some(main) = &self.main_lora {
            push_lora(&mut specs, MAIN_LAYERS, base.num_hidden_layers - main.num_layers, &main.lora, base);
        }
        specs
    }

    /// Number of trained parameters.
    pub fn num_parameters(&self, base: &DecoderConfig) -> usize {
        self.tensors(base).iter().map(|tensor| tensor.shape[0] * tensor.shape[1]).sum()
    }

    /// Checks the sizes against a base model.
    ///
    /// # Errors
    /// The field, its value, and what it may be.
    pub fn validate(&self, base: &DecoderConfig) -> Result<(), String> {
        let (streams, num_layers) = (&self.streams, base.num_hidden_layers);
        let may_be = |size: usize| (1..=MAX_INNER_SIZE).contains(&size);
        let is_whole = |lora: &LoraConfig| {
            let targets = &lora.target_modules;
            let is_repeated = |index: usize| targets[..index].contains(&targets[index]);
            let are_distinct = !targets.is_empty() && !(0..targets.len()).any(is_repeated);
            may_be(lora.rank) && lora.alpha.is_finite() && are_distinct
        };
        let main_layers = self.main_lora.as_ref().map_or(1, |main| main.num_layers);
        let loras = self.lora.iter().chain(self.main_lora.iter().map(|main| &main.lora));
        let checks = [
            (self.format_version == ADAPTER_FORMAT_VERSION, format!("format_version must be {ADAPTER_FORMAT_VERSION}")),
            (
                self.base_model.architecture == base.architecture,
                format!("base_model.architecture must be `{}`", base.architecture),
            ),
            ((1..=16).contains(&streams.num_streams), "num_streams must be from 1 to 16".to_owned()),
            (
                (1..=num_layers).contains(&streams.num_msa_layers),
                format!("num_msa_layers must be from 1 to {num_layers}"),
            ),
            (streams.sampler_size.is_none_or(may_be), format!("sampler_size must be from 1 to {MAX_INNER_SIZE}")),
            (streams.early_exit_rank.is_none_or(may_be), format!("early_exit_rank must be from 1 to {MAX_INNER_SIZE}")),
            (
                streams.intermediate_size.is_none_or(|size| (1..=base.intermediate_size).contains(&size)),
                format!("the streams' intermediate_size must be from 1 to {}", base.intermediate_size),
            ),
            (
                streams.draft_vocab_size.is_none_or(|size| (1..=base.vocab_size).contains(&size)),
                format!("draft_vocab_size must be from 1 to {}", base.vocab_size),
            ),
            (
                loras.into_iter().all(is_whole),
                format!(
                    "a LoRA needs a rank from 1 to {MAX_INNER_SIZE}, a finite alpha, and target_modules, each once"
                ),
            ),
            ((1..=num_layers).contains(&main_layers), format!("main_lora.num_layers must be from 1 to {num_layers}")),
            (
                self.main_lora.is_some() == (self.mode == TrainingMode::Joint),
                "main_lora belongs to mode `joint`, and mode `joint` to main_lora".to_owned(),
            ),
        ];
        checks.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, problem)| Err(problem))?;
        streams.identity.validate(streams.num_streams)
    }
}

fn spec(name: impl Into<String>, shape: [usize; 2]) -> TensorSpec {
    TensorSpec { name: name.into(), shape }
}

fn push_lora(specs: &mut Vec<TensorSpec>, prefix: &str, first: usize, lora: &LoraConfig, base: &DecoderConfig) {
    for layer in first..base.num_hidden_layers {
        for projection in &lora.target_modules {
            let [rows, cols] = projection.shape(base);
            let path = projection.path();
            specs.push(spec(format!("{prefix}.{layer}.{path}.lora_A.weight"), [lora.rank, cols]));
            specs.push(spec(format!("{prefix}.{layer}.{path}.lora_B.weight"), [rows, lora.rank]));
        }
    }
}
