//! What a run is asked for.

use std::path::PathBuf;

use forestream_burn::NamedDevice;
use forestream_model::streams::{Adapter, AdapterConfig, TrainingMode};
use forestream_model::{Checkpoint, LoadOptions};

use crate::TrainError;
use crate::data::Dataset;
use crate::export::Origin;
use crate::settings::{Objective, TrainSettings};

/// What to train, on what, and where it goes.
#[derive(Debug)]
pub struct TrainJob<'a> {
    /// The base model.
    pub base: &'a Checkpoint,
    /// How the engine runs it.
    pub load_options: LoadOptions,
    /// What computes the trained rows and their gradients.
    pub device: &'static NamedDevice,
    /// The streams; its draft vocabulary is chosen from the data.
    pub adapter: AdapterConfig,
    /// What is trained on.
    pub training: Dataset,
    /// What is measured on.
    pub held_out: Dataset,
    /// How.
    pub settings: TrainSettings,
    /// Bytes for what the frozen model computed of examples, so that later epochs need not compute it again. No result
    /// depends on it.
    pub trace_memory: usize,
    /// Directory of adapter, log and checkpoint.
    pub output: PathBuf,
    /// The adapter that makes the model of the base: its changes of main rows stay as they are.
    pub fitted: Option<Adapter>,
    /// Weights to start from.
    pub initial: Option<Adapter>,
    /// What the card says about the run.
    pub origin: Origin,
}

impl TrainJob<'_> {
    /// Checks what can be told before anything is loaded.
    ///
    /// # Errors
    /// Settings and adapters that do not fit together or to the model.
    pub(crate) fn validate(&self) -> Result<(), TrainError> {
        let decoder = self.base.config();
        self.adapter.validate(decoder).map_err(|problem| TrainError::setting("adapter sizes", problem))?;
        self.settings.validate()?;
        let (is_joint, objective) = (self.settings.joint.is_some(), self.settings.objective);
        let checks = [
            (
                "--value-rotation",
                !self.adapter.tensors(decoder).is_empty(),
                "leaves nothing to train; keep low-rank changes, the sampler or token conditioning",
            ),
            (
                "--mode",
                (self.adapter.mode == TrainingMode::Joint) == is_joint,
                "`joint` needs settings for main rows, and only `joint` has them",
            ),
            (
                "--objective",
                !is_joint || objective == Objective::Ce,
                "the model itself changes in joint mode; use `ce`",
            ),
            ("--adapter", !is_joint || self.fitted.is_none(), "its model stays as it is; `joint` would change it"),
        ];
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            Some((flag, _, problem)) => Err(TrainError::setting(flag, problem)),
            None => Ok(()),
        }
    }

    /// Whether the adapter to start from changes main rows and neither the run nor the model that it fits does.
    pub(crate) fn leaves_out_main_changes(&self) -> bool {
        let has_changes = |adapter: Option<&Adapter>| adapter.is_some_and(|adapter| adapter.config.main_lora.is_some());
        let [initial, fitted] = [&self.initial, &self.fitted].map(|adapter| has_changes(adapter.as_ref()));
        initial && !fitted && self.adapter.mode != TrainingMode::Joint
    }
}
