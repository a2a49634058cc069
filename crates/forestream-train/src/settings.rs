//! What a run is asked for.

use serde::{Deserialize, Serialize};

use crate::{Schedule, TrainError};

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// What streams learn from.
    pub objective: Objective,
    /// The greatest learning rate.
    pub lr: f64,
    /// How it falls.
    pub schedule: Schedule,
    /// The share of the run in which it rises first.
    pub warm_up: f64,
    /// Positions of a step.
    pub batch_tokens: usize,
    /// How much each further depth counts less: it is reached less often.
    pub depth_decay: f32,
    /// How often every example is seen; `None` takes once, or more often where that would be too few steps to learn.
    pub epochs: Option<usize>,
    /// Steps of the run; `None` takes as many as the epochs have.
    pub steps: Option<usize>,
    /// Minutes after which the run ends, whatever it has reached. The learning rate falls accordingly.
    pub max_minutes: Option<f64>,
    /// What order and initial weights depend on.
    pub seed: u64,
    /// Steps between checkpoints.
    pub save_steps: usize,
    /// Steps between evaluations on held-out examples.
    pub eval_steps: usize,
    /// How main rows learn a task beside the streams; `None` leaves them as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint: Option<JointSettings>,
}

/// How main rows learn a task in the same run as the streams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JointSettings {
    /// The greatest learning rate of main rows' changes.
    pub main_lr: f64,
    /// Weight of the main rows' mean loss.
    pub main_loss_weight: f64,
    /// Weight of the streams' mean loss.
    pub stream_loss_weight: f64,
}

impl Default for JointSettings {
    /// The update of a stream's own weights hardly depends on the size of its loss; main rows, which both losses change,
    /// are to follow their own.
    fn default() -> Self {
        Self { main_lr: 1e-3, main_loss_weight: 1.0, stream_loss_weight: 0.3 }
    }
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            objective: Objective::Ce,
            lr: 2e-3,
            schedule: Schedule::Cosine,
            warm_up: 0.03,
            batch_tokens: 100,
            depth_decay: 0.9,
            epochs: None,
            steps: None,
            max_minutes: None,
            seed: 0,
            save_steps: 500,
            eval_steps: 500,
            joint: None,
        }
    }
}

impl TrainSettings {
    /// Checks what no type can.
    ///
    /// # Errors
    /// The flag, and what it may be.
    pub fn validate(&self) -> Result<(), TrainError> {
        let minutes = self.max_minutes.unwrap_or(1.0);
        let checks = [
            ("--lr", self.lr.is_finite() && self.lr > 0.0, "must be above 0"),
            ("--warmup-ratio", self.warm_up >= 0.0 && self.warm_up < 1.0, "must be at least 0 and below 1"),
            ("--batch-tokens", self.batch_tokens > 0, "must be at least 1"),
            ("--depth-decay", self.depth_decay > 0.0 && self.depth_decay <= 1.0, "must be above 0 and at most 1"),
            ("--epochs", self.epochs != Some(0), "must be at least 1"),
            ("--steps", self.steps != Some(0), "must be at least 1"),
            ("--max-minutes", minutes.is_finite() && minutes > 0.0, "must be above 0"),
            ("--save-steps", self.save_steps > 0, "must be at least 1"),
            ("--eval-steps", self.eval_steps > 0, "must be at least 1"),
        ];
        let joint = self.joint.as_ref().map(JointSettings::checks).unwrap_or_default();
        match checks.into_iter().chain(joint).find(|(_, holds, _)| !holds) {
            Some((flag, _, problem)) => Err(TrainError::setting(flag, problem)),
            None => Ok(()),
        }
    }
}

impl JointSettings {
    fn checks(&self) -> Vec<(&'static str, bool, &'static str)> {
        let is_weight = |weight: f64| weight.is_finite() && weight >= 0.0;
        vec![
            ("--main-lr", self.main_lr.is_finite() && self.main_lr > 0.0, "must be above 0"),
            ("--main-loss-weight", is_weight(self.main_loss_weight), "must be at least 0"),
            ("--stream-loss-weight", is_weight(self.stream_loss_weight), "must be at least 0"),
        ]
    }
}

/// What streams learn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Cross entropy with the tokens of the data.
    Ce,
    /// Kullback-Leibler divergence from the frozen model's own distributions.
    Kl,
    /// Total variation from these: the probability of a rejection. Best after a start with another.
    Tv,
    /// From the one to the other, row by row: the divergence while little is accepted, the variation when much is.
    Lk,
}
