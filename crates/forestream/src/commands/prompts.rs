//! What `compare` and `distill` share: prompts of a file, as text and as the tokens that the model reads.

use anyhow::Context;
use forestream::dataset::{self, DatasetPrompt, Template};
use forestream::{Engine, Message, TokenId};

use super::pull;
use crate::args::{DataArgs, StoreArgs};

/// The prompts of the file or dataset.
pub(super) fn read(store: &StoreArgs, args: &DataArgs) -> anyhow::Result<Vec<DatasetPrompt>> {
    let template = match (&args.template, args.task) {
        (Some(template), _) => Template::Text(template.clone()),
        (None, Some(task)) => Template::Task(task),
        (None, None) => Template::Inferred,
    };
    let limit = Some(args.limit).filter(|&limit| limit > 0);
    Ok(dataset::read_prompts(&pull::fetch_data(store, args.path())?, &template, limit)?)
}

/// The tokens of each prompt, in the model's chat template where it has one.
pub(super) fn tokens(engine: &Engine, args: &DataArgs, prompts: &[DatasetPrompt]) -> anyhow::Result<Vec<Vec<TokenId>>> {
    let session = engine.session();
    let template = if args.raw { None } else { engine.chat_template()? };
    let tokens = |prompt: &DatasetPrompt| {
        let tokens = match &template {
            Some(template) => session.chat_prompt(template, &[Message::new("user", &prompt.text)], None),
            None => session.plain_prompt(&prompt.text),
        };
        tokens.with_context(|| format!("{}, {}", args.path().display(), prompt.place))
    };
    prompts.iter().map(tokens).collect()
}
