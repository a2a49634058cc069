//! A trace of one answer: every pass with its draft tree, what was kept of it, and where the time went; as a web page.
//!
//! The loop knows nothing of this. A model and a drafter that record are put around the real ones, and everything that
//! can be known of a pass goes through these two. Without a trace nothing of this runs.

mod clock;
mod page;
mod recording;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use forestream_decode::Drafter;
use forestream_model::{Model, TokenId};
use serde::Serialize;

use crate::{Engine, Error, Report};
use recording::{Record, RecordingDrafter, RecordingModel};

pub use clock::Stage;

/// A pass that emitted tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedPass {
    /// Whether it read the prompt; a long prompt takes several passes, which count as one here.
    pub is_prompt: bool,
    /// How many draft tokens there were before the budget cut them.
    pub num_proposed: usize,
    /// The tree that the target verified, root first; empty for the prompt.
    pub nodes: Vec<TracedNode>,
    /// The accepted nodes, root first.
    pub path: Vec<usize>,
    /// The tokens that the pass gave: those of accepted nodes, and one of the target's own.
    pub emitted: Vec<TokenId>,
    /// Time by [`Stage`].
    pub times: [Duration; Stage::COUNT],
}

/// A node of a draft tree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TracedNode {
    /// What it follows; nothing for the root.
    pub parent: Option<usize>,
    /// Its token.
    pub token: TokenId,
    /// How probable the drafter held its acceptance.
    pub score: f32,
    /// Whether it could not be accepted.
    pub is_probe: bool,
    /// Whether the early exit ended it.
    pub is_pruned: bool,
}

/// Records one answer, see [`crate::Session::generate_traced`].
pub struct Trace<'e> {
    engine: &'e Engine,
    model: RecordingModel<'e>,
    record: Arc<Mutex<Record>>,
}

impl<'e> Trace<'e> {
    /// A trace with nothing in it.
    pub fn new(engine: &'e Engine) -> Self {
        let record = Arc::new(Mutex::new(Record::new()));
        Self { engine, model: RecordingModel::new(engine.model(), Arc::clone(&record)), record }
    }

    /// The passes so far.
    pub fn passes(&self) -> Vec<TracedPass> {
        recording::lock(&self.record).passes.clone()
    }

    /// A self-contained web page about the answer to `prompt`.
    ///
    /// # Errors
    /// A token that the model's tokenizer does not have.
    pub fn page(&self, prompt: &[TokenId], report: &Report) -> Result<String, Error> {
        page::render(self.engine, prompt, report, &self.passes())
    }

    /// The engine's model, recording.
    pub(crate) fn model(&self) -> &dyn Model {
        &self.model
    }

    /// `drafter`, recording.
    pub(crate) fn drafter(&self, drafter: Box<dyn Drafter>) -> Box<dyn Drafter> {
        Box::new(RecordingDrafter::new(drafter, Arc::clone(&self.record)))
    }
}
