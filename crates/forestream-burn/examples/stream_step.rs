//! How long a training step of streams takes: forward pass, cross-entropy, backward pass.
//!
//! `cargo run --release --package forestream-burn --example stream_step -- MODEL TEXTS POSITIONS FIRST_POSITION`
//!
//! Four streams in the four top layers, LoRA of rank 32 everywhere, a draft vocabulary of 8192; states and keys are made up.

use std::io::{Write as _, stdout};
use std::path::Path;
use std::time::Instant;

use burn_tensor::{Device, Int, Tensor, TensorData, activation};
use forestream_burn::{Segment, StreamBase, StreamWeights, stream_logits};
use forestream_model::streams::{
    ADAPTER_FORMAT_VERSION, AdapterConfig, BaseModel, LoraConfig, Projection, StreamConfig, StreamIdentity,
    StreamPosition, TrainingMode,
};
use forestream_model::{Checkpoint, DecoderConfig, TokenId};

const NUM_STREAMS: usize = 4;
const DRAFT_VOCAB_SIZE: usize = 8192;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, texts, positions, first_position] = arguments.as_slice() else {
        return Err("usage: stream_step MODEL TEXTS POSITIONS FIRST_POSITION".into());
    };
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let config = adapter(checkpoint.config());
    let device = Device::flex();
    let vocabulary: Vec<TokenId> = (0..DRAFT_VOCAB_SIZE as TokenId).collect();
    let base = StreamBase::load(&checkpoint, &config, &vocabulary, &device)?;
    let weights = StreamWeights::init(&config, checkpoint.config(), 0, &device);
    let (texts, positions) = (texts.parse::<usize>()?, positions.parse()?);
    let segments = vec![segment(checkpoint.config(), positions, first_position.parse()?); texts];
    let rows = texts * positions * NUM_STREAMS;
    let targets = Tensor::<2, Int>::from_data(TensorData::new(vec![7_i32; rows], [rows, 1]), &device);
    for _ in 0..5 {
        let start = Instant::now();
        let logits = stream_logits(&base, &weights, &segments)?;
        let forward = start.elapsed().as_secs_f64();
        activation::log_softmax(logits, 1).gather(1, targets.clone()).mean().neg().backward();
        let seconds = start.elapsed().as_secs_f64();
        let speed = (texts * positions) as f64 / seconds;
        writeln!(stdout(), "{seconds:.2} s ({forward:.2} s forward), {speed:.1} positions/s")?;
    }
    Ok(())
}

fn adapter(base: &DecoderConfig) -> AdapterConfig {
    AdapterConfig {
        format_version: ADAPTER_FORMAT_VERSION,
        base_model: BaseModel {
            name: String::new(),
            fingerprint: String::new(),
            architecture: base.architecture.clone(),
        },
        mode: TrainingMode::Lossless,
        streams: StreamConfig {
            num_streams: NUM_STREAMS,
            num_msa_layers: 4,
            position: StreamPosition::Following,
            identity: StreamIdentity::Embedding,
            token_conditioning: true,
            sampler_size: Some(256),
            intermediate_size: None,
            draft_vocab_size: Some(DRAFT_VOCAB_SIZE),
            early_exit_rank: None,
        },
        lora: Some(LoraConfig { rank: 32, alpha: 32.0, target_modules: Projection::ALL.to_vec() }),
        main_lora: None,
        calibration: Vec::new(),
    }
}

fn segment(base: &DecoderConfig, positions: usize, first_position: usize) -> Segment {
    let made_up = |count: usize| (0..count).map(|index| (index as f32 * 0.7).sin()).collect::<Vec<f32>>();
    let planes = vec![made_up(base.num_key_value_heads * (first_position + positions) * base.head_dim); 4];
    Segment {
        first_position,
        boundary: made_up(positions * base.hidden_size),
        tokens: (0..positions + NUM_STREAMS).map(|index| (index * 37 % DRAFT_VOCAB_SIZE) as TokenId).collect(),
        keys: planes.clone(),
        values: planes,
    }
}
