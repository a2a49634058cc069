//! What the user typed: every flag of every command, as it stands on the command line.
//!
//! Owns names, aliases, help texts and the range of each single value. Must not know files, models or the environment;
//! variables and the configuration file are put under these definitions in `layers`.

#![expect(clippy::doc_markdown, reason = "the comments are help texts, read on a terminal")]

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use forestream::dataset::Task;
use forestream::{Backend, Format, Isa, NamedDevice};
use serde_json::{Map, Value};

use super::train::{MergeArgs, TrainArgs};
use super::values::{
    LogitBias, OutputFormat, SpecType, StreamPassName, TableFormat, above_zero, at_least_zero, backend, backends,
    device, finite, format, fraction, isa, json_object, positive_fraction, stop_text, strategies, task, threads, top_k,
};

/// Of `--adapter` where nothing but a directory gives streams.
const ADAPTER_ALONE: &str = "Directory of a trained adapter [default: none]";

/// Of `--temp` where answers are greedy unless the flag says otherwise.
const TEMPERATURE: &str = "Temperature; 0 always takes the most probable token";

/// Lossless speculative decoding for local language models.
///
/// Flags can also be given as variables FORESTREAM_<FLAG> or in the configuration file; a flag beats a variable, and a variable
/// beats the file. A switch can be turned off by --<switch>=false.
#[derive(Debug, Parser)]
#[command(
    name = "forestream",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct LowArgs {
    /// Configuration file (TOML); without it, forestream/config.toml in the user's configuration directory
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate text from a prompt
    Generate(GenerateArgs),
    /// Talk with a model
    Chat(ChatArgs),
    /// Measure prompt, decode and verification speed
    Bench(BenchArgs),
    /// Compare strategies on a file of prompts, and check that their tokens are identical
    Compare(CompareArgs),
    /// Let a model answer prompts, as training data for its speculative streams
    Distill(DistillArgs),
    /// Train speculative streams for a model, on its answers or on texts of your own
    Train(TrainArgs),
    /// Write the model that a jointly trained adapter makes, for other programs
    Merge(MergeArgs),
    /// Describe a model file
    Inspect(InspectArgs),
    /// Fetch a model
    Pull(PullArgs),
    /// Print a shell completion script
    Completions(CompletionsArgs),
}

/// Where models come from.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model files")]
pub(crate) struct StoreArgs {
    /// Directory for pulled models and measured cost curves [default: forestream in the user's cache directory]
    #[arg(long, alias = "cache-dir", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Use only what is on this machine
    #[arg(long)]
    pub(crate) offline: bool,
    /// Access token for the Hugging Face Hub
    #[arg(long, value_name = "TOKEN")]
    pub(crate) hf_token: Option<String>,
}

/// Which model, and how it is run.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// GGUF file, Hugging Face directory, llama2.c file (.bin), known name, or Hub repository user/repo[:file-or-quantization]
    #[arg(short, long, aliases = ["model-id", "model-path", "hf", "hf-repo"], value_name = "MODEL",
          default_value = forestream::pull::DEFAULT_MODEL)]
    pub(crate) model: String,
    /// Tokens of context; 0 takes what the model was trained for
    #[arg(short, long, aliases = ["max-model-len", "max-total-tokens", "max-seq-len"], value_name = "N", default_value_t = 0)]
    pub(crate) ctx_size: usize,
    /// Threads; 0 takes one for each core
    #[arg(short, long, aliases = ["threads-batch", "tb"], value_name = "N", default_value_t = 0, value_parser = threads)]
    pub(crate) threads: usize,
    /// Instruction set of the kernels, which never changes a token [default: the fastest that this machine has]
    #[arg(long, value_name = "NAME", value_parser = isa)]
    pub(crate) isa: Option<Isa>,
    /// Store all matrices in this format while loading: q8_0, q4_1, ...
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub(crate) quantize: Option<Format>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// What the model gets besides its own weights.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub(crate) struct AdapterArgs {
    /// Directory of a trained adapter [default: the one that comes with the program, if it knows the model]
    #[arg(long, alias = "lora", value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Add the task of a joint adapter to the weights while loading, instead of computing it beside them
    #[arg(long)]
    pub(crate) merge_adapter: bool,
}

/// What computes the passes.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub(crate) struct BackendArgs {
    /// Back end, which computes the model (--help lists them)
    #[arg(long, value_name = "NAME", value_parser = backend, default_value = "cpu",
          long_help = backends("Back end, which computes the model:"))]
    pub(crate) backend: &'static Backend,
    /// Device of --backend burn [default: flex, the processor]
    #[arg(long, value_name = "NAME", value_parser = device)]
    pub(crate) device: Option<&'static NamedDevice>,
}

/// How tokens are drawn.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Temperature; 0 always takes the most probable token [default: the model's, else 0.8]
    #[arg(long, alias = "temperature", value_name = "T", allow_negative_numbers = true, value_parser = at_least_zero)]
    pub(crate) temp: Option<f32>,
    /// Keep the K most probable tokens; 0 or -1 keeps all [default: the model's, else 40]
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = top_k)]
    pub(crate) top_k: Option<usize>,
    /// Keep the most probable tokens that together reach this probability [default: the model's, else 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = positive_fraction)]
    pub(crate) top_p: Option<f32>,
    /// Drop tokens below this fraction of the most probable one [default: the model's, else 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = fraction)]
    pub(crate) min_p: Option<f32>,
    /// Locally typical sampling with this probability mass; 1 is off
    #[arg(long, alias = "typical-p", value_name = "P", allow_negative_numbers = true, value_parser = positive_fraction)]
    pub(crate) typical: Option<f32>,
    /// Divide the logits of recent tokens by this; 1 is off
    #[arg(long, alias = "repetition-penalty", value_name = "X", allow_negative_numbers = true, value_parser = above_zero)]
    pub(crate) repeat_penalty: Option<f32>,
    /// Subtract this from the logits of recent tokens
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    pub(crate) presence_penalty: Option<f32>,
    /// Subtract this from the logits of recent tokens for each time they occur
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    pub(crate) frequency_penalty: Option<f32>,
    /// How many recent tokens the penalties look at; -1 looks at all
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    pub(crate) repeat_last_n: Option<i64>,
    /// Add a bias to a token's logit: ID=BIAS, ID+BIAS or ID-BIAS; may be repeated
    #[arg(long, value_name = "ID=BIAS", value_delimiter = ',')]
    pub(crate) logit_bias: Vec<LogitBias>,
    /// Seed of the draws; -1 takes a random one, which is reported
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, default_value_t = -1,
          value_parser = clap::value_parser!(i64).range(-1..))]
    pub(crate) seed: i64,
}

/// How tokens are drafted.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Speculation")]
pub(crate) struct SpecArgs {
    /// Strategies that draft tokens, comma separated; the text is the same with any of them (--help lists them)
    #[arg(long, aliases = ["speculative-algorithm"], value_name = "LIST", value_delimiter = ',', default_value = forestream::AUTO,
          long_help = strategies("Strategies that draft tokens, comma separated; the text is the same with any of them:"))]
    pub(crate) spec_type: Vec<SpecType>,
    #[command(flatten)]
    pub(crate) budget: BudgetArgs,
}

/// How much is drafted.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Speculation")]
pub(crate) struct BudgetArgs {
    /// Longest draft, in tokens [default: chosen each round]
    #[arg(long, value_name = "N",
          aliases = ["num-speculative-tokens", "speculative-num-steps", "mtp-n-predict", "speculate", "draft", "draft-n",
                     "draft-max"])]
    pub(crate) spec_draft_n_max: Option<usize>,
    /// Tree nodes that one pass verifies, however long it takes [default: chosen each round, as many as pay]
    #[arg(long, value_name = "N", aliases = ["speculative-num-draft-tokens", "total-token"],
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) spec_tree_max_tokens: Option<u16>,
    /// Children of every node of a stream's tree, the same at each depth (the paper's static tree) [default: the most
    /// probable nodes, wherever they are]
    #[arg(long, value_name = "K", aliases = ["speculative-eagle-topk"], value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) spec_tree_topk: Option<u16>,
    /// When streams run: after acceptance for one node, or before it for all nodes (the paper's fused pass)
    #[arg(long, value_name = "PASS", default_value = "deferred")]
    pub(crate) spec_stream_pass: StreamPassName,
    /// End draft tokens that the early exit of the adapter finds less probable than P before the layers with streams
    /// [default: verify all]
    #[arg(long, value_name = "P", value_parser = positive_fraction)]
    pub(crate) spec_prune_threshold: Option<f32>,
    /// Let the early exit of the adapter choose: N nodes of each tree go on into the layers with streams
    #[arg(long, value_name = "N", conflicts_with = "spec_prune_threshold",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) spec_prune_nodes: Option<u16>,
}

/// How a prompt becomes the text that the model reads.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Prompt")]
pub(crate) struct TemplateArgs {
    /// System prompt
    #[arg(long, aliases = ["system-prompt", "sys"], value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Chat template (Jinja) instead of the model's
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "chat_template_file")]
    pub(crate) chat_template: Option<String>,
    /// File with a chat template instead of the model's
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template_file: Option<PathBuf>,
    /// JSON object with further variables for the chat template
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
}

/// When an answer ends.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Length")]
pub(crate) struct LengthArgs {
    /// Most tokens to generate; -1 goes on until the model stops or the context is full
    #[arg(short = 'n', long, aliases = ["n-predict", "predict", "max-new-tokens"], value_name = "N",
          allow_negative_numbers = true, default_value_t = -1, value_parser = clap::value_parser!(i64).range(-1..))]
    pub(crate) max_tokens: i64,
    /// Do not let the model stop before so many tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) min_tokens: usize,
    /// Stop at this text; may be repeated
    #[arg(short = 'r', long, alias = "reverse-prompt", value_name = "TEXT", value_parser = stop_text)]
    pub(crate) stop: Vec<String>,
    /// Go on when the model wants to stop
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

/// `generate`.
#[derive(Args, Clone, Debug)]
pub(crate) struct GenerateArgs {
    /// The prompt; without -p and -f it is read from standard input
    #[arg(short, long, alias = "input", short_alias = 'i', value_name = "TEXT", conflicts_with = "file")]
    pub(crate) prompt: Option<String>,
    /// File with the prompt
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Give the prompt to the model as it is, without chat template
    #[arg(long, aliases = ["no-chat-template", "no-jinja"],
          conflicts_with_all = ["chat_template", "chat_template_file", "chat_template_kwargs"])]
    pub(crate) raw: bool,
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: OutputFormat,
    /// Generate again without drafts, and fail unless both give the same tokens
    #[arg(long)]
    pub(crate) verify_lossless: bool,
    /// Write a web page that shows every pass of the answer: what was drafted, what was accepted, and the time it took
    #[arg(long, value_name = "FILE.html")]
    pub(crate) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) template: TemplateArgs,
    #[command(flatten)]
    pub(crate) length: LengthArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
}

/// `chat`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) template: TemplateArgs,
    #[command(flatten)]
    pub(crate) length: LengthArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
}

/// `bench`.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("adapter", |adapter| adapter.help(ADAPTER_ALONE)))]
pub(crate) struct BenchArgs {
    /// Prompt lengths to measure; 0 leaves the test out
    #[arg(short = 'p', long, aliases = ["n-prompt"], value_name = "LIST", value_delimiter = ',', default_value = "512")]
    pub(crate) prompt_len: Vec<usize>,
    /// Numbers of tokens to decode one by one; 0 leaves the test out
    #[arg(short = 'n', long, aliases = ["n-gen"], value_name = "LIST", value_delimiter = ',', default_value = "128")]
    pub(crate) gen_len: Vec<usize>,
    /// Numbers of tree nodes to verify in one pass; 0 leaves the test out
    #[arg(short = 'b', long, value_name = "LIST", value_delimiter = ',', default_value = "1,2,4,8,12,16,24,32")]
    pub(crate) verify_len: Vec<usize>,
    /// Tokens that are in the cache before decoding and verification
    #[arg(short = 'd', long, aliases = ["n-depth"], value_name = "N", default_value_t = 128)]
    pub(crate) depth: usize,
    /// Times that each test is repeated
    #[arg(short = 'r', long, alias = "iterations", value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) repetitions: u16,
    /// Leave the warm-up out
    #[arg(long)]
    pub(crate) no_warmup: bool,
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    pub(crate) output: TableFormat,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
}

/// Prompts from a file.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Data")]
pub(crate) struct DataArgs {
    /// Prompts: a file of rows, as JSON Lines, a JSON list, CSV, TSV or Parquet, or a dataset of the Hugging Face Hub
    /// (owner/name[:split])
    #[arg(long, value_name = "FILE", required = true)]
    data: Option<PathBuf>,
    /// Built-in prompt template: e2e, sql, dialogsum, prompts, mt_bench [default: chosen by the fields of the rows]
    #[arg(long, value_name = "NAME", conflicts_with = "template", value_parser = task)]
    pub(crate) task: Option<&'static Task>,
    /// Prompt template with {field} placeholders
    #[arg(long, value_name = "TEXT")]
    pub(crate) template: Option<String>,
    /// Use the first N prompts, of equal ones the first; 0 uses all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) limit: usize,
    /// Give prompts to the model as they are, without chat template
    #[arg(long, aliases = ["no-chat-template", "no-jinja"])]
    pub(crate) raw: bool,
}

impl DataArgs {
    /// Where prompts are; empty where a command can do without, and does.
    pub(crate) fn path(&self) -> &Path {
        self.data.as_deref().unwrap_or(Path::new(""))
    }
}

/// `compare`.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("temp", |temp| temp.help(TEMPERATURE).default_value("0")))]
pub(crate) struct CompareArgs {
    /// Strategies to compare, comma separated; plain decoding is always measured with them (--help lists them)
    #[arg(long, alias = "spec-type", value_name = "LIST", value_delimiter = ',', default_value = "none,ngram,auto",
          long_help = strategies("Strategies to compare, comma separated, several that draft together joined by plus signs; plain \
                                  decoding is always measured with them:"))]
    pub(crate) spec_types: Vec<SpecType>,
    /// Times that each answer is generated with each strategy; the median time counts
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) repetitions: u16,
    /// Tokens to generate for each prompt
    #[arg(short = 'n', long, aliases = ["n-predict", "predict", "max-new-tokens"], value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: OutputFormat,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) budget: BudgetArgs,
}

/// Most tokens of an answer that is training data.
pub(crate) const ANSWER_TOKENS: u32 = 256;
/// Such answers that are generated together.
pub(crate) const ANSWERS_TOGETHER: u16 = 16;

/// `distill`.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("adapter", |adapter| adapter.help(ADAPTER_ALONE)))]
#[command(mut_arg("data", |data| data.required(false).required_unless_present("own_prompts")))]
#[command(mut_arg("temp", |temp| temp.help(TEMPERATURE).default_value("0")))]
#[command(mut_arg("seed", |seed| {
    let numbers = clap::value_parser!(i64).range(0..); // a random one could not be continued
    seed.help("Seed of the draws; each answer has its own, made of this one").default_value("0").value_parser(numbers)
}))]
pub(crate) struct DistillArgs {
    /// File for the answers, one JSON object on each line; one that an earlier run left is continued
    #[arg(short, long = "output", value_name = "FILE")]
    pub(crate) output_file: PathBuf,
    /// Most tokens to generate for each prompt
    #[arg(short = 'n', long, aliases = ["n-predict", "predict", "max-new-tokens"], value_name = "N",
          default_value_t = ANSWER_TOKENS, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// Answers that are generated together; never changes one
    #[arg(short, long, alias = "parallel", value_name = "N", default_value_t = ANSWERS_TOGETHER,
          value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) batch_size: u16,
    /// Instead of --data: let the model write N prompts itself, each as a user's turn of its chat template
    #[arg(long, value_name = "N", conflicts_with_all = ["data", "task", "template", "limit", "raw"])]
    pub(crate) own_prompts: Option<usize>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// `inspect`.
#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// GGUF file, Hugging Face directory, llama2.c file (.bin), known name, or Hub repository user/repo[:file-or-quantization]
    #[arg(value_name = "MODEL")]
    pub(crate) path: String,
    /// Tokens of context to compute the memory for; 0 takes what the model was trained for
    #[arg(short, long, aliases = ["max-model-len", "max-total-tokens", "max-seq-len"], value_name = "N", default_value_t = 0)]
    pub(crate) ctx_size: usize,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: OutputFormat,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// `pull`.
#[derive(Args, Clone, Debug)]
pub(crate) struct PullArgs {
    /// Known name, or Hub repository user/repo[:file-or-quantization]
    #[arg(value_name = "MODEL", default_value = forestream::pull::DEFAULT_MODEL)]
    pub(crate) name: String,
    /// List the known names
    #[arg(long)]
    pub(crate) list: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// `completions`.
#[derive(Args, Clone, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}
