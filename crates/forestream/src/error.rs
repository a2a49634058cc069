//! Errors of the facade: what can go wrong between a model's name and its answer.

use std::path::PathBuf;

use forestream_burn::BurnError;
use forestream_decode::DecodeError;
use forestream_model::{DecoderConfig, ModelError};
use forestream_text::TextError;
use forestream_train::TrainError;

use crate::pull::PullError;

/// Errors of the facade.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be found or fetched.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The model's file is damaged, or cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The prompt or a setting cannot be used, or a pass failed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The differentiable model cannot be loaded.
    #[error(transparent)]
    Burn(#[from] BurnError),
    /// An adapter cannot be trained.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The model's file brings no tokenizer.
    #[error("{path} has no tokenizer: {remedy}")]
    NoTokenizer {
        /// The file.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// A setting that the back end does not honour.
    #[error("the back end `{name}` has no {flag}: leave it out, or take --backend {others}")]
    Backend {
        /// The back end.
        name: &'static str,
        /// The flag of the setting.
        flag: &'static str,
        /// Back ends that honour it.
        others: String,
    },
    /// A context that the model cannot have.
    #[error(
        "the context of {asked} tokens is longer than the {trained} that the model was trained for; lower --ctx-size"
    )]
    ContextTooLong {
        /// What was asked for.
        asked: usize,
        /// What the model was trained for.
        trained: usize,
    },
    /// A prompt that leaves no room for an answer.
    #[error(
        "the prompt has {prompt_tokens} tokens and the context holds {ctx_size}, the answer included; {}",
        room("shorten the prompt", prompt_tokens.saturating_add(1), *trained)
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// The context.
        ctx_size: usize,
        /// What the model was trained for.
        trained: usize,
    },
    /// A measurement longer than the context.
    #[error(
        "the test {test} needs {needed} tokens of context, and there are {ctx_size}; {}",
        room("measure less", *needed, *trained)
    )]
    TestTooLong {
        /// Its name.
        test: String,
        /// The tokens that it needs, those before it included.
        needed: usize,
        /// The context.
        ctx_size: usize,
        /// What the model was trained for.
        trained: usize,
    },
    /// An adapter that carries no task.
    #[error(
        "there is nothing to merge: --merge-adapter needs an --adapter of joint mode, which changes the model itself"
    )]
    NothingToMerge,
    /// A model that cannot write prompts.
    #[error("the model writes no prompts of its own: {problem}; give --data")]
    NoOwnPrompts {
        /// Why.
        problem: &'static str,
    },
    /// One prompt of several cannot be used.
    #[error("prompt {number}")]
    Prompt {
        /// Its number, from 1.
        number: usize,
        /// Why.
        source: Box<Error>,
    },
}

impl Error {
    /// A prompt that was refused by the decoder of a model with this configuration.
    pub(crate) fn of_prompt(error: DecodeError, config: &DecoderConfig) -> Self {
        let trained = config.max_position_embeddings;
        match error {
            DecodeError::PromptTooLong { prompt_tokens, capacity } => {
                Self::PromptTooLong { prompt_tokens, ctx_size: capacity, trained }
            }
            error => error.into(),
        }
    }
}

/// What to do where a context has no room for `needed` tokens; a larger one is no help beyond what the model was trained for.
fn room(remedy: &str, needed: usize, trained: usize) -> String {
    if needed <= trained {
        format!("{remedy}, or raise --ctx-size")
    } else {
        format!("the model was trained for no more than {trained}: {remedy}")
    }
}
