//! A stopwatch with several hands: all time of a pass belongs to exactly one stage of it.

use std::time::{Duration, Instant};

/// A stage of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The drafter proposes a tree.
    Draft,
    /// The streams of the model run.
    Streams,
    /// The budget cuts the tree.
    Cut,
    /// The target's layers run over the tree.
    Forward,
    /// The target's last matrix gives the logits of every node.
    Logits,
    /// The tree is walked, tokens are drawn, and the cache keeps the rows of the accepted path.
    Commit,
    /// The drafter learns from the result.
    Learn,
}

impl Stage {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
    /// All of them, in the order in which a pass goes through them.
    pub const ALL: [Self; 7] =
        [Self::Draft, Self::Streams, Self::Cut, Self::Forward, Self::Logits, Self::Commit, Self::Learn];

    /// One word for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Streams => "streams",
            Self::Cut => "cut",
            Self::Forward => "forward",
            Self::Logits => "logits",
            Self::Commit => "commit",
            Self::Learn => "learn",
        }
    }
}

/// Which stage runs, and how long each has taken.
#[derive(Debug)]
pub(super) struct StageClock {
    /// `None` between passes: that time is nobody's.
    stage: Option<Stage>,
    since: Instant,
    times: [Duration; Stage::COUNT],
}

impl StageClock {
    pub(super) fn new() -> Self {
        Self { stage: None, since: Instant::now(), times: [Duration::ZERO; Stage::COUNT] }
    }

    /// The stage that runs.
    pub(super) fn stage(&self) -> Option<Stage> {
        self.stage
    }

    /// Gives the time until now to the stage that runs, and lets another one run; returns the former.
    pub(super) fn switch(&mut self, next: Option<Stage>) -> Option<Stage> {
        let now = Instant::now();
        if let Some(stage) = self.stage {
            self.times[stage as usize] += now - self.since;
        }
        self.since = now;
        std::mem::replace(&mut self.stage, next)
    }

    /// Ends the pass: returns its times and starts again from zero.
    pub(super) fn take(&mut self) -> [Duration; Stage::COUNT] {
        self.switch(None);
        std::mem::replace(&mut self.times, [Duration::ZERO; Stage::COUNT])
    }
}
