//! What the user typed after `train`.

#![expect(clippy::doc_markdown, reason = "the comments are help texts, read on a terminal")]

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use forestream::NamedDevice;
use forestream::dataset::Task;
use forestream::train::{
    Draw, JointSettings, MainLoraSizes, Objective, Origin, Preset, Projection, Schedule, StreamIdentity,
    StreamPosition, StreamSizes, TaskRows, TrainRequest, TrainSettings, USUAL_MAX_LEN,
};

use super::high::nonzero;
use super::low::{ModelArgs, StoreArgs};
use super::values::{device, task};

/// `train`.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("ctx_size", |ctx_size| ctx_size.help(format!(
    "Longest text in tokens; 0 takes {USUAL_MAX_LEN}, or what the model was trained for if that is less"
))))]
pub(crate) struct TrainArgs {
    /// Rows to train on: a file of `forestream distill`, or rows with `prompt` and `completion`, `messages`, `conversations`, or
    /// `input_ids` with `loss_mask`, as JSON Lines, a JSON list, CSV, TSV or Parquet, or a dataset of the Hugging Face Hub
    /// (owner/name[:split])
    #[arg(long, value_name = "FILE", required_unless_present = "own_prompts")]
    pub(crate) data: Option<PathBuf>,
    /// Instead of --data: let the model write N prompts itself, each as a user's turn of its chat template, and answer them, into
    /// answers.jsonl of the output directory
    #[arg(long, value_name = "N", conflicts_with_all = ["data", "form", "limit", "dry_run"])]
    pub(crate) own_prompts: Option<usize>,
    /// Directory for the adapter, its log and checkpoints
    #[arg(id = "output_file", short, long = "output", alias = "save-path", value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Continue the unfinished run in the output directory, with the same settings and data
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) resume: bool,
    /// Start from the streams of this adapter, and take its sizes
    #[arg(long, value_name = "DIR")]
    pub(crate) init_from: Option<PathBuf>,
    /// A joint adapter whose model gets the streams; without --init-from they go on from its own [default: none]
    #[arg(long, alias = "lora", value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Show sizes, steps, memory and time, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
    #[command(flatten)]
    pub(crate) streams: StreamArgs,
    #[command(flatten)]
    pub(crate) main: MainRowArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// `merge`.
#[derive(Args, Clone, Debug)]
pub(crate) struct MergeArgs {
    /// GGUF file, Hugging Face directory, llama2.c file (.bin), known name, or Hub repository user/repo[:file-or-quantization]
    #[arg(short, long, aliases = ["model-id", "model-path", "hf", "hf-repo"], value_name = "MODEL",
          default_value = forestream::pull::DEFAULT_MODEL)]
    pub(crate) model: String,
    /// Directory of an adapter that was trained with --mode joint
    #[arg(long, alias = "lora", value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// Directory for the model: config.json, and weights in half precision
    #[arg(id = "output_file", short, long = "output", alias = "save-path", value_name = "DIR")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// How rows become prompts and completions.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Rows")]
pub(crate) struct RowArgs {
    /// Built-in prompt template and completion: e2e, sql, dialogsum, prompts, mt_bench
    #[arg(long, value_name = "NAME", group = "form", value_parser = task)]
    pub(crate) task: Option<&'static Task>,
    /// Prompt template with {field} placeholders
    #[arg(long, value_name = "TEXT", group = "form", requires = "completion_field")]
    pub(crate) template: Option<String>,
    /// The field that holds the completion
    #[arg(long, value_name = "NAME", requires = "form")]
    pub(crate) completion_field: Option<String>,
    /// Use N rows, drawn by the seed; 0 uses all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) limit: usize,
}

/// What is trained of the model itself.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The model itself (with --mode joint)")]
pub(crate) struct MainRowArgs {
    /// Top layers that learn the task; 0 takes all [default: those of the adapter to start from, else all]
    #[arg(long, value_name = "N")]
    pub(crate) main_lora_layers: Option<usize>,
    /// Rank of their low-rank changes [default: that of the adapter to start from, else 16]
    #[arg(long, value_name = "N")]
    pub(crate) main_lora_rank: Option<usize>,
    /// Scale of these changes, times the rank [default: that of the adapter to start from, else 32]
    #[arg(long, value_name = "X")]
    pub(crate) main_lora_alpha: Option<f32>,
    /// The greatest learning rate of these changes
    #[arg(long, value_name = "X", default_value_t = JointSettings::default().main_lr)]
    pub(crate) main_lr: f64,
    /// Weight of the model's own loss
    #[arg(long, value_name = "X", default_value_t = JointSettings::default().main_loss_weight)]
    pub(crate) main_loss_weight: f64,
    /// Weight of the streams' loss
    #[arg(long, value_name = "X", default_value_t = JointSettings::default().stream_loss_weight)]
    pub(crate) stream_loss_weight: f64,
}

/// What is trained.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Streams")]
pub(crate) struct StreamArgs {
    /// What is trained beside the streams: `lossless` leaves the model as it is, `joint` teaches it a task
    #[arg(long, value_name = "MODE", default_value = "lossless")]
    pub(crate) mode: ModeName,
    /// Sizes to start from; the flags below change single ones [default: those of the adapter to start from, else fast]
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<PresetName>,
    /// Streams for each position
    #[arg(long, value_name = "N")]
    pub(crate) num_streams: Option<usize>,
    /// Top layers with streams
    #[arg(long, value_name = "N")]
    pub(crate) num_msa_layers: Option<usize>,
    /// Rank of the low-rank changes of stream rows; 0 leaves them out
    #[arg(long, alias = "lora-r", value_name = "N")]
    pub(crate) lora_rank: Option<usize>,
    /// Scale of the low-rank changes, times the rank
    #[arg(long, value_name = "X")]
    pub(crate) lora_alpha: Option<f32>,
    /// Projections with low-rank changes: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj
    #[arg(long, alias = "lora-target", value_name = "NAMES", value_delimiter = ',', value_parser = projection)]
    pub(crate) lora_target_modules: Option<Vec<Projection>>,
    /// Inner features of each layer's MLP that streams use, those that add most to them; drafts cost less, and foresee a
    /// little less. Multiples of 32 are fast; 0 takes all
    #[arg(long, value_name = "N")]
    pub(crate) stream_intermediate_size: Option<usize>,
    /// Tokens that streams can propose, the most frequent ones of the data; 0 takes all
    #[arg(long, value_name = "N")]
    pub(crate) draft_vocab_size: Option<usize>,
    /// Width of the sampler, which corrects a stream by the token before; 0 leaves it out
    #[arg(long, value_name = "N")]
    pub(crate) sampler_size: Option<usize>,
    /// Rank of the early exit, which ends improbable draft tokens with --spec-prune-threshold; 0 leaves it out
    #[arg(long, value_name = "N")]
    pub(crate) early_exit_rank: Option<usize>,
    /// Do not start streams from the emitted token
    #[arg(long)]
    pub(crate) no_token_conditioning: bool,
    /// Tell streams apart without parameters: the values of stream n turn by n times EPSILON radians, from 0 to pi / 2 / streams.
    /// The paper's bound is pi / 2 / (longest text + streams) [default: stream n starts from a learned embedding]
    #[arg(long, value_name = "EPSILON", allow_negative_numbers = true)]
    pub(crate) value_rotation: Option<f32>,
    /// Where streams stand for rotary embedding: each at the place of its token, or all at their position
    /// [default: that of the adapter to start from, else following]
    #[arg(long, value_name = "RULE")]
    pub(crate) stream_position: Option<PositionName>,
}

/// How it is trained.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub(crate) struct RunArgs {
    /// Rows to measure on
    #[arg(long, value_name = "FILE", conflicts_with = "eval_split")]
    pub(crate) eval_data: Option<PathBuf>,
    /// Part of the data to measure on instead
    #[arg(long, value_name = "FRACTION", default_value_t = 0.02, value_parser = fraction)]
    pub(crate) eval_split: f64,
    /// What streams learn from: the data's tokens (ce), or the model's own distributions (kl, tv, lk)
    #[arg(long, value_name = "NAME", default_value = "ce")]
    pub(crate) objective: ObjectiveName,
    /// How often every row is trained on [default: once; small files more often, for about 400 steps]
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<usize>,
    /// Steps, instead of epochs
    #[arg(long, alias = "max-steps", value_name = "N", conflicts_with = "epochs")]
    pub(crate) steps: Option<usize>,
    /// End after so many minutes, with the learning rate lowered in time; such a run is not repeatable bit for bit
    #[arg(long, value_name = "X")]
    pub(crate) max_minutes: Option<f64>,
    /// Positions of a step
    #[arg(long, value_name = "N", default_value_t = TrainSettings::default().batch_tokens)]
    pub(crate) batch_tokens: usize,
    /// Weight of each further stream in the loss, relative to the one before; 1 counts all alike
    #[arg(long, value_name = "X", default_value_t = TrainSettings::default().depth_decay)]
    pub(crate) depth_decay: f32,
    /// The greatest learning rate
    #[arg(long, value_name = "X", default_value_t = TrainSettings::default().lr)]
    pub(crate) lr: f64,
    /// How the learning rate falls to a tenth
    #[arg(long, aliases = ["lr-schedule", "scheduler", "scheduler-type"], value_name = "NAME", default_value = "cosine")]
    pub(crate) lr_scheduler_type: ScheduleName,
    /// Part of the run in which the learning rate rises first
    #[arg(long, value_name = "FRACTION", default_value_t = TrainSettings::default().warm_up)]
    pub(crate) warmup_ratio: f64,
    /// Steps between checkpoints
    #[arg(long, alias = "save-every", value_name = "N", default_value_t = TrainSettings::default().save_steps)]
    pub(crate) save_steps: usize,
    /// Steps between measurements on held-out rows
    #[arg(long, alias = "eval-every", value_name = "N", default_value_t = TrainSettings::default().eval_steps)]
    pub(crate) eval_steps: usize,
    /// Device on which streams learn; what the frozen model computes for them is the engine's, on the processor [default: flex,
    /// the processor]
    #[arg(long, value_name = "NAME", value_parser = device)]
    pub(crate) device: Option<&'static NamedDevice>,
    /// MiB for what the frozen model computed of rows, so that later epochs need not compute it again; 0 keeps nothing
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) cache_ram: usize,
    /// What the order of rows and fresh weights depend on
    #[arg(short, long, value_name = "N", default_value_t = TrainSettings::default().seed)]
    pub(crate) seed: u64,
}

/// What is trained beside the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeName {
    /// Nothing.
    Lossless,
    /// The main rows.
    Joint,
}

/// What streams learn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectiveName {
    /// Cross entropy with the tokens of the data.
    Ce,
    /// Kullback-Leibler divergence from the model's distributions.
    Kl,
    /// Total variation from the model's distributions.
    Tv,
    /// From the one to the other as more is accepted.
    Lk,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScheduleName {
    /// Along half a cosine.
    Cosine,
    /// Along a line.
    Linear,
}

/// Where streams stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PositionName {
    /// Stream n of position t at t + n.
    Following,
    /// At t.
    Anchor,
}

/// A preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PresetName {
    /// Fewest passes.
    Fast,
    /// Fewest parameters, as in the paper.
    Paper,
}

/// A number between 0 and 1.
fn fraction(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if number > 0.0 && number < 1.0 { Ok(number) } else { Err("it must be between 0 and 1".to_owned()) }
}

/// A projection by the last part of its name.
fn projection(name: &str) -> Result<Projection, String> {
    let last = |projection: &Projection| projection.path().rsplit('.').next() == Some(name);
    let names: Vec<&str> =
        Projection::ALL.iter().filter_map(|projection| projection.path().rsplit('.').next()).collect();
    Projection::ALL
        .into_iter()
        .find(last)
        .ok_or_else(|| format!("there is no such projection; known are {}", names.join(", ")))
}

/// What the library takes, with the `name` of the model in the adapter's card.
///
/// # Errors
/// Rows without a known completion, or a template that is malformed.
pub(crate) fn train_request(args: &TrainArgs, name: Option<String>, origin: Origin) -> anyhow::Result<TrainRequest> {
    let run = &args.run;
    let is_joint = args.streams.mode == ModeName::Joint;
    let main_lora = MainLoraSizes {
        num_layers: args.main.main_lora_layers,
        rank: args.main.main_lora_rank,
        alpha: args.main.main_lora_alpha,
    };
    Ok(TrainRequest {
        name,
        ctx_size: nonzero(args.model.ctx_size),
        threads: nonzero(args.model.threads),
        isa: args.model.isa,
        quantize: args.model.quantize,
        sizes: stream_sizes(&args.streams),
        main_lora: is_joint.then_some(main_lora),
        data: args.data.clone().unwrap_or_default(),
        rows: task_rows(&args.rows)?,
        draw: Some(Draw { count: args.rows.limit, seed: run.seed }).filter(|draw| draw.count > 0),
        eval_data: run.eval_data.clone(),
        eval_split: run.eval_split,
        settings: TrainSettings {
            lr: run.lr,
            schedule: match run.lr_scheduler_type {
                ScheduleName::Cosine => Schedule::Cosine,
                ScheduleName::Linear => Schedule::Linear,
            },
            warm_up: run.warmup_ratio,
            batch_tokens: run.batch_tokens,
            depth_decay: run.depth_decay,
            epochs: run.epochs,
            steps: run.steps,
            max_minutes: run.max_minutes,
            seed: run.seed,
            save_steps: run.save_steps,
            eval_steps: run.eval_steps,
            objective: match run.objective {
                ObjectiveName::Ce => Objective::Ce,
                ObjectiveName::Kl => Objective::Kl,
                ObjectiveName::Tv => Objective::Tv,
                ObjectiveName::Lk => Objective::Lk,
            },
            joint: is_joint.then_some(JointSettings {
                main_lr: args.main.main_lr,
                main_loss_weight: args.main.main_loss_weight,
                stream_loss_weight: args.main.stream_loss_weight,
            }),
        },
        device: run.device.unwrap_or_default(),
        trace_memory: run.cache_ram.saturating_mul(1 << 20),
        output: args.output.clone(),
        adapter: args.adapter.clone(),
        init_from: args.init_from.clone(),
        origin,
    })
}

/// A flag of joint mode that was given for a lossless run, in which it changes nothing.
pub(crate) fn idle_joint_flag(args: &TrainArgs) -> Option<&'static str> {
    let (main, usual) = (&args.main, JointSettings::default());
    let flags = [
        ("--main-lora-layers", main.main_lora_layers.is_some()),
        ("--main-lora-rank", main.main_lora_rank.is_some()),
        ("--main-lora-alpha", main.main_lora_alpha.is_some()),
        ("--main-lr", main.main_lr != usual.main_lr),
        ("--main-loss-weight", main.main_loss_weight != usual.main_loss_weight),
        ("--stream-loss-weight", main.stream_loss_weight != usual.stream_loss_weight),
    ];
    let given = flags.into_iter().find_map(|(flag, is_given)| is_given.then_some(flag));
    given.filter(|_| args.streams.mode == ModeName::Lossless)
}

fn task_rows(args: &RowArgs) -> anyhow::Result<Option<TaskRows>> {
    let field = args.completion_field.as_deref();
    match (args.task, &args.template, field) {
        (Some(task), _, field) => match TaskRows::of_task(task, field) {
            None => {
                anyhow::bail!("rows of the task {} have no known completion; name its --completion-field", task.name)
            }
            rows => Ok(rows),
        },
        (None, Some(template), Some(field)) => Ok(Some(TaskRows::new(template, field)?)),
        (None, _, _) => Ok(None),
    }
}

/// The sizes that were typed.
fn stream_sizes(args: &StreamArgs) -> StreamSizes {
    StreamSizes {
        preset: args.preset.map(|preset| match preset {
            PresetName::Fast => Preset::Fast,
            PresetName::Paper => Preset::Paper,
        }),
        num_streams: args.num_streams,
        num_msa_layers: args.num_msa_layers,
        lora_rank: args.lora_rank,
        lora_alpha: args.lora_alpha,
        lora_target_modules: args.lora_target_modules.clone(),
        intermediate_size: args.stream_intermediate_size,
        draft_vocab_size: args.draft_vocab_size,
        sampler_size: args.sampler_size,
        early_exit_rank: args.early_exit_rank,
        token_conditioning: args.no_token_conditioning.then_some(false),
        identity: args.value_rotation.map(|angle| StreamIdentity::ValueRotation { angle }),
        position: args.stream_position.map(|position| match position {
            PositionName::Following => StreamPosition::Following,
            PositionName::Anchor => StreamPosition::Anchor,
        }),
    }
}
