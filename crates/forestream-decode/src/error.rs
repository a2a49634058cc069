//! What can go wrong between a request and its tokens.

use forestream_model::{ModelError, TokenId};

/// Errors of this crate. Each names the place, both sides of a disagreement, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The model refused a pass.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A sampling setting is outside its range.
    #[error("{field} is {value}, it must be {expected}")]
    Setting {
        /// The setting, as it is called in `SamplingSettings`.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What is allowed.
        expected: &'static str,
    },
    /// There is nothing to continue.
    #[error("the prompt has no tokens; give at least one (a beginning-of-text token will do)")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt_tokens} tokens and the context holds {capacity}, the answer included; shorten the prompt, \
         or make the context larger"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Positions of the context.
        capacity: usize,
    },
    /// A token id beyond the vocabulary.
    #[error("{place} names token id {token}, the vocabulary has {vocab_size} tokens")]
    TokenOutOfRange {
        /// Where the token was given: the prompt or a setting.
        place: &'static str,
        /// The offending id.
        token: TokenId,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// No token can be drawn.
    #[error(
        "no token can be drawn at position {position}, since no logit is a finite number: the model file is damaged, \
         logit_bias bans all tokens, or a penalty is too great"
    )]
    NothingToDraw {
        /// The position whose token was wanted.
        position: usize,
    },
    /// A strategy that is not registered.
    #[error("unknown strategy `{name}`; known are {known}")]
    UnknownStrategy {
        /// What was asked for.
        name: String,
        /// The registered names.
        known: String,
    },
    /// A strategy without what it works with.
    #[error("the strategy `{strategy}` needs {missing}")]
    MissingResource {
        /// The strategy.
        strategy: &'static str,
        /// What is missing, and where to get it.
        missing: &'static str,
    },
    /// A drawn draft that is larger than was allowed; cutting it would bias the acceptance.
    #[error("a drawn draft has {nodes} nodes and depth {depth}, allowed are {max_nodes} and {max_depth}")]
    DraftTooLarge {
        /// Nodes of the draft, root included.
        nodes: usize,
        /// Its depth.
        depth: usize,
        /// The most nodes that were allowed.
        max_nodes: usize,
        /// The greatest depth that was allowed.
        max_depth: usize,
    },
    /// A measured cost that cannot be.
    #[error("a cost curve needs points of growing size and positive seconds, got {seconds} s for {nodes} nodes")]
    CostCurve {
        /// Nodes of the offending point; zero when there is no point at all.
        nodes: usize,
        /// Seconds of the offending point.
        seconds: f64,
    },
}
