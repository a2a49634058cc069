//! The registered ways to draft. Help, documentation, benchmarks and conformance tests iterate over [`STRATEGIES`].
//!
//! A new strategy is one file and two adjacent lines here: see `docs/adding-a-strategy.md`.

mod ngram;
mod none;
mod streaming;
mod suffix_automaton;

pub use ngram::Ngram;
pub use none::{PLAIN, Plain};
pub use streaming::{StreamPass, Streaming, StreamingOptions, TreeShape};

use forestream_model::Model;
use forestream_model::streams::StreamConfig;

use crate::{Combined, DecodeError, Drafter};

/// Every strategy, in the order in which help shows them.
pub static STRATEGIES: &[&Strategy] = &[
    &none::STRATEGY,      //
    &ngram::STRATEGY,     //
    &streaming::STRATEGY, //
];

/// A registered way to draft.
#[derive(Debug)]
pub struct Strategy {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    /// What has to be given for it.
    pub requires: Requires,
    /// Makes a drafter for one sequence.
    pub build: fn(&Resources<'_>) -> Result<Box<dyn Drafter>, DecodeError>,
}

/// What a strategy needs besides the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Requires {
    /// Nothing.
    Nothing,
    /// A target with streams: an adapter.
    Streams,
}

/// What there is to draft with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resources<'a> {
    /// The target's streams, if it has any.
    pub streams: Option<&'a StreamConfig>,
    /// How they draft.
    pub streaming: StreamingOptions,
}

impl<'a> Resources<'a> {
    /// What there is with this target.
    pub fn of(target: &'a dyn Model, streaming: StreamingOptions) -> Self {
        Self { streams: target.streams().map(|streams| &streams.adapter().streams), streaming }
    }
}

impl Strategy {
    /// A drafter for one sequence.
    ///
    /// # Errors
    /// [`DecodeError::MissingResource`] when something is not there that the strategy needs.
    pub fn drafter(&self, resources: &Resources<'_>) -> Result<Box<dyn Drafter>, DecodeError> {
        let missing = match self.requires {
            Requires::Streams if resources.streams.is_none() => {
                "a trained adapter for this model; name one with --adapter"
            }
            _ => return (self.build)(resources),
        };
        Err(DecodeError::MissingResource { strategy: self.name, missing })
    }
}

/// The strategy of that name.
///
/// # Errors
/// [`DecodeError::UnknownStrategy`] lists the known ones.
pub fn find(name: &str) -> Result<&'static Strategy, DecodeError> {
    let found = STRATEGIES.iter().find(|strategy| strategy.name == name);
    found.copied().ok_or_else(|| {
        let known: Vec<&str> = STRATEGIES.iter().map(|strategy| strategy.name).collect();
        DecodeError::UnknownStrategy { name: name.to_owned(), known: known.join(", ") }
    })
}

/// A drafter for one sequence from names joined by commas or plus signs; several are combined, and a repeated name counts once.
///
/// # Errors
/// [`DecodeError::UnknownStrategy`], or what a strategy says when something that it needs is missing.
pub fn build(names: &str, resources: &Resources<'_>) -> Result<Box<dyn Drafter>, DecodeError> {
    let mut strategies: Vec<&Strategy> = Vec::new();
    for name in names.split([',', '+']) {
        let strategy = find(name.trim())?;
        if !strategies.iter().any(|other| other.name == strategy.name) {
            strategies.push(strategy);
        }
    }
    let mut drafters = strategies.iter().map(|it| it.drafter(resources)).collect::<Result<Vec<_>, _>>()?;
    Ok(match drafters.len() {
        1 => drafters.remove(0),
        _ => Box::new(Combined::new(drafters)),
    })
}

#[cfg(test)]
mod tests {
    use forestream_model::Pruning;
    use forestream_model::streams::{StreamIdentity, StreamPosition};

    use super::*;

    /// Four streams in one layer, told what was emitted, without an early exit.
    const STREAMS: StreamConfig = StreamConfig {
        num_streams: 4,
        num_msa_layers: 1,
        position: StreamPosition::Following,
        identity: StreamIdentity::Embedding,
        token_conditioning: true,
        sampler_size: None,
        intermediate_size: None,
        draft_vocab_size: None,
        early_exit_rank: None,
    };

    #[test]
    fn names_are_unique_and_lists_combine() {
        for (index, strategy) in STRATEGIES.iter().enumerate() {
            assert!(STRATEGIES[index + 1..].iter().all(|other| other.name != strategy.name));
            assert!(build(strategy.name, &Resources { streams: Some(&STREAMS), ..Resources::default() }).is_ok());
        }
        assert!(build("none, ngram", &Resources::default()).is_ok());
        let error = build("ngram,nonsense", &Resources::default()).err().unwrap();
        assert_eq!(error.to_string(), "unknown strategy `nonsense`; known are none, ngram, streaming");
        let error = build("streaming", &Resources::default()).err().unwrap();
        assert!(error.to_string().contains("--adapter"), "{error}");
    }

    #[test]
    fn only_plain_decoding_drafts_nothing() {
        let resources = Resources { streams: Some(&STREAMS), ..Resources::default() };
        for strategy in STRATEGIES {
            assert_eq!(build(strategy.name, &resources).unwrap().drafts(), strategy.name != PLAIN, "{}", strategy.name);
        }
        let repeated = [PLAIN, PLAIN].join(",");
        assert!(!build(&repeated, &resources).unwrap().drafts());
        let beside_another = [PLAIN, "ngram"].join("+");
        assert!(build(&beside_another, &resources).unwrap().drafts());
    }

    #[test]
    fn streams_say_what_they_lack() {
        let pruning = StreamingOptions { pruning: Some(Pruning::Threshold(0.1)), ..StreamingOptions::default() };
        let fused = StreamingOptions { pass: StreamPass::Fused, ..StreamingOptions::default() };
        let with_exit = StreamConfig { early_exit_rank: Some(8), ..STREAMS };
        let untold = StreamConfig { token_conditioning: false, ..STREAMS };
        for (streaming, fitting, expected) in
            [(pruning, with_exit, "--early-exit-rank"), (fused, untold, "--no-token-conditioning")]
        {
            let resources = Resources { streams: Some(&STREAMS), streaming };
            let error = build("ngram,streaming", &resources).err().unwrap();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(build("streaming", &Resources { streams: Some(&fitting), streaming }).is_ok());
            assert!(build("ngram", &resources).is_ok(), "it has nothing to do with streams");
        }
    }
}
