//! What stands beside an adapter's weights: a card for people, and its provenance for programs.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use forestream_model::streams::{AdapterConfig, StreamIdentity};
use serde::{Deserialize, Serialize};

use crate::data::Dataset;
use crate::evaluate::Evaluation;
use crate::settings::TrainSettings;

/// File that describes the adapter, for people.
pub(crate) const CARD: &str = "README.md";
/// File with what made the adapter, for programs.
pub const PROVENANCE: &str = "provenance.json";

/// Who made the adapter. A resumed run keeps that of its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The command line.
    pub command: String,
    /// Version of the program.
    pub version: String,
    /// Commit of its source, if known.
    pub commit: Option<String>,
    /// The day, `YYYY-MM-DD`.
    pub date: String,
    /// The provenance of the adapter that the run goes on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<serde_json::Value>,
}

/// What the weights have seen.
pub(crate) struct TrainedOn<'a> {
    pub(crate) step: usize,
    pub(crate) num_positions: usize,
    pub(crate) seconds: f64,
    pub(crate) num_parameters: usize,
    pub(crate) training: &'a Dataset,
    pub(crate) held_out: &'a Dataset,
    pub(crate) settings: &'a TrainSettings,
}

#[derive(Serialize)]
struct Provenance<'a> {
    #[serde(flatten)]
    origin: &'a Origin,
    base_model: &'a forestream_model::streams::BaseModel,
    data: Data<'a>,
    eval_data: Data<'a>,
    settings: &'a TrainSettings,
    steps: usize,
    positions: usize,
    seconds: u64,
    parameters: usize,
    evaluation: &'a Evaluation,
}

#[derive(Serialize)]
struct Data<'a> {
    file: &'a str,
    sha256: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    selection: Option<&'a str>,
    examples: usize,
    positions: usize,
}

impl<'a> Data<'a> {
    fn of(dataset: &'a Dataset) -> Self {
        Self {
            file: &dataset.name,
            sha256: &dataset.sha256,
            selection: dataset.selection.as_deref(),
            examples: dataset.examples.len(),
            positions: dataset.num_positions(),
        }
    }
}

/// `README.md` and `provenance.json` for the adapter's directory.
pub(crate) fn describe(
    directory: &Path,
    config: &AdapterConfig,
    trained_on: &TrainedOn<'_>,
    evaluation: &Evaluation,
    origin: &Origin,
) -> [(PathBuf, Vec<u8>); 2] {
    let provenance = Provenance {
        origin,
        base_model: &config.base_model,
        data: Data::of(trained_on.training),
        eval_data: Data::of(trained_on.held_out),
        settings: trained_on.settings,
        steps: trained_on.step,
        positions: trained_on.num_positions,
        seconds: trained_on.seconds.round() as u64,
        parameters: trained_on.num_parameters,
        evaluation,
    };
    let json = serde_json::to_string_pretty(&provenance).expect("provenance is plain data") + "\n";
    let card = card(config, trained_on, evaluation, origin);
    [(PROVENANCE, json), (CARD, card)].map(|(name, text)| (directory.join(name), text.into_bytes()))
}

fn card(config: &AdapterConfig, trained_on: &TrainedOn<'_>, evaluation: &Evaluation, origin: &Origin) -> String {
    let mut text = String::new();
    write_card(&mut text, config, trained_on, evaluation, origin).expect("writing to a string never fails");
    text
}

fn write_card(
    text: &mut String,
    config: &AdapterConfig,
    trained_on: &TrainedOn<'_>,
    evaluation: &Evaluation,
    origin: &Origin,
) -> std::fmt::Result {
    let (base, streams) = (&config.base_model, &config.streams);
    let (training, held_out) = (trained_on.training, trained_on.held_out);
    writeln!(text, "# Speculative streams for {}\n", base.name)?;
    match &config.main_lora {
        None => writeln!(
            text,
            "An adapter of forestream {}. The base model is unchanged: its answers stay what they\n\
             are, and come in fewer passes.\n",
            origin.version
        )?,
        Some(main) => writeln!(
            text,
            "An adapter of forestream {}. It fits the top {} layers to a task, and its streams\n\
             draft for the model that results.\n",
            origin.version, main.num_layers
        )?,
    }
    writeln!(text, "| | |\n|---|---|")?;
    writeln!(text, "| base model | {}, fingerprint `{:.12}` |", base.name, base.fingerprint)?;
    let apart = match streams.identity {
        StreamIdentity::Embedding => String::new(),
        StreamIdentity::ValueRotation { angle } => format!(", values turned by {angle} for each"),
    };
    let width = streams.intermediate_size.map_or(String::new(), |size| format!(", {size} inner features of each MLP"));
    let (num_streams, num_layers) = (streams.num_streams, streams.num_msa_layers);
    writeln!(text, "| streams | {num_streams} in the top {num_layers} layers{width}{apart} |")?;
    writeln!(text, "| trained parameters | {} |", trained_on.num_parameters)?;
    writeln!(
        text,
        "| data | `{}`, {} examples, {} positions |",
        training.name,
        training.examples.len(),
        training.num_positions()
    )?;
    writeln!(text, "| trained on | {} positions in {} steps |", trained_on.num_positions, trained_on.step)?;
    writeln!(
        text,
        "| held out | `{}`, {} examples, {} positions |",
        held_out.name,
        held_out.examples.len(),
        evaluation.num_positions
    )?;
    writeln!(text, "| date | {} |\n", origin.date)?;
    writeln!(text, "```\n{}\n```\n", origin.command)?;
    writeln!(text, "## On held-out examples\n")?;
    if let Some(main) = &evaluation.main {
        let (perplexity, accuracy) = (main.loss.exp(), main.accuracy);
        writeln!(text, "The model itself: perplexity {perplexity:.2}, next token right {accuracy:.3}.\n")?;
    }
    if let Some(exit) = &evaluation.early_exit {
        writeln!(text, "The early exit: next token right {:.3}.\n", exit.accuracy)?;
    }
    writeln!(text, "How often the most probable token is right, given that the tokens before it are:\n")?;
    let cells =
        |cell: &dyn Fn(usize) -> String| (0..streams.num_streams).map(|depth| cell(depth) + " |").collect::<String>();
    writeln!(text, "| depth |{}", cells(&|depth| format!(" {}", depth + 1)))?;
    writeln!(text, "|---|{}", cells(&|_| "---:".to_owned()))?;
    writeln!(text, "| accuracy |{}\n", cells(&|depth| format!(" {:.3}", evaluation.accuracy[depth])))?;
    writeln!(
        text,
        "Tau, the length that these multiply to: {:.2} tokens per pass. A chain of {} tokens, walked greedily through",
        evaluation.tau, streams.num_streams
    )?;
    writeln!(text, "the examples: {:.2} tokens per pass. Trees reach more.", evaluation.chain)
}
