//! The sizes and switches of a decoder, whatever file they came from.

/// Sizes and switches of a Llama-family decoder, in Hugging Face names.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The registered architecture: `llama`, `qwen2`, `qwen3`.
    pub architecture: String,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Positions that the model was trained for.
    pub max_position_embeddings: usize,
    /// The epsilon inside RMS norms.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Whether the LM head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether `q_proj`, `k_proj` and `v_proj` have a bias.
    pub has_qkv_bias: bool,
    /// Whether queries and keys are normalized per head before rotation.
    pub has_qk_norm: bool,
}

/// Rotary position embedding: base frequency, pairing and scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies.
    pub theta: f64,
    /// Which channels form a pair.
    pub style: RopeStyle,
    /// Stretching for contexts beyond the original one.
    pub scaling: RopeScaling,
}

/// Which channels of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Channel `i` with `i + head_dim / 2` (Hugging Face checkpoints, Qwen GGUF files).
    Halves,
    /// Channel `2 i` with `2 i + 1` (Llama GGUF files, llama2.c).
    Interleaved,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Below this many turns over the original context a frequency is low.
        low_freq_factor: f64,
        /// Above this many turns it is high.
        high_freq_factor: f64,
        /// The context of pre-training.
        original_max_position_embeddings: usize,
    },
    /// One divisor for each channel pair, as GGUF files store them (`rope_freqs.weight`).
    Factors(Vec<f32>),
}

impl RopeConfig {
    /// The angular frequency of each channel pair, `[head_dim / 2]`, in radians per position.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let half = head_dim / 2;
        let plain = |i: usize| self.theta.powf(-(i as f64) / half as f64);
        (0..half).map(|i| self.scaling.apply(plain(i), i)).collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f64, pair_index: usize) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Factors(factors) => frequency / f64::from(factors[pair_index]),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = *original_max_position_embeddings as f64;
                let turns = original * frequency / std::f64::consts::TAU;
                let ramp = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - ramp) * frequency / factor + ramp * frequency
            }
        }
    }
}
