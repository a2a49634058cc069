//! What `generate`, `chat`, `bench` and `compare` share: opening a model, and its chat template.

use std::fs;

use anyhow::Context;
use forestream::pull::ModelName;
use forestream::{ChatTemplate, Engine, EngineOptions};

use super::pull;
use crate::args::{self, BackendArgs, ModelArgs, SpecType, TemplateArgs};

/// Finds a model and loads it by `backend`, for drafting with `spec_types`.
pub(super) fn open(args: &ModelArgs, backend: &BackendArgs, spec_types: &[SpecType]) -> anyhow::Result<Engine> {
    let path = pull::fetch(&pull::store(&args.store), &args.model)?;
    let is_path = matches!(ModelName::parse(&args.model)?, ModelName::Path(_));
    let name = (!is_path).then(|| args.model.clone());
    Ok(Engine::open(&path, &EngineOptions { name, ..args::engine_options(args, backend, spec_types) })?)
}

/// The chat template of the flags, else the model's; `None` for a model without one.
pub(super) fn chat_template(engine: &Engine, args: &TemplateArgs) -> anyhow::Result<Option<ChatTemplate>> {
    let source = match (&args.chat_template, &args.chat_template_file) {
        (Some(source), _) => Some(source.clone()),
        (None, Some(path)) => Some(
            fs::read_to_string(path).with_context(|| format!("cannot read the chat template {}", path.display()))?,
        ),
        (None, None) => None,
    };
    match source {
        Some(source) => Ok(Some(engine.tokenizer().chat_template_from(&source).map_err(forestream::Error::from)?)),
        None => Ok(engine.chat_template()?),
    }
}
