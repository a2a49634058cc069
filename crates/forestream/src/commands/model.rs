//! What commands that run a model share: finding and opening it, and its chat template.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use forestream::pull::ModelName;
use forestream::{AUTO, ChatTemplate, Engine, EngineOptions, Requires, STRATEGIES};

use super::{console, interrupt, pull};
use crate::args::{self, AdapterArgs, BackendArgs, BudgetArgs, ModelArgs, SpecType, TemplateArgs};

/// The path of a model, fetched if need be, and the name that it was asked for; one that was asked for by its path has none.
pub(super) fn locate(args: &ModelArgs) -> anyhow::Result<(PathBuf, Option<String>)> {
    let path = pull::fetch(&pull::store(&args.store), &args.model)?;
    let is_path = matches!(ModelName::parse(&args.model)?, ModelName::Path(_));
    Ok((path, (!is_path).then(|| args.model.clone())))
}

/// Finds a model and loads it with `adapter` by `backend`, for drafting with `spec_types`.
pub(super) fn open(
    args: &ModelArgs,
    adapter: &AdapterArgs,
    backend: &BackendArgs,
    spec_types: &[SpecType],
) -> anyhow::Result<Engine> {
    let (path, name) = locate(args)?;
    let options = args::engine_options(args, adapter, backend, spec_types);
    let (note, is_stopped) = (Some(console::note as fn(&str)), Some(interrupt::is_asked as fn() -> bool));
    Ok(Engine::open(&path, &EngineOptions { name, note, is_stopped, ..options })?)
}

/// Says so where a flag for streams changes nothing, since none of `spec_types` drafts with streams. It may come from the
/// configuration file, so it is no error.
pub(super) fn warn_of_idle_flags(engine: &Engine, budget: &BudgetArgs, spec_types: &[SpecType]) {
    let Some(flag) = args::streaming_flag(budget) else { return };
    if spec_types.iter().any(|name| engine.drafts_with_streams(&name.0)) {
        return;
    }
    let names: Vec<&str> = spec_types.iter().map(|name| &*name.0).collect();
    let with_streams = STRATEGIES.iter().filter(|strategy| strategy.requires == Requires::Streams);
    let with_streams: Vec<&str> = [AUTO].into_iter().chain(with_streams.map(|strategy| strategy.name)).collect();
    console::note(&format!(
        "warning: {flag} changes nothing: it is for drafting with streams, and `{}` drafts without them here; that takes a \
         trained adapter for this model (--adapter) and a strategy that uses it ({})",
        names.join(","),
        with_streams.join(", ")
    ));
}

/// The chat template of the flags, else the model's; `None` for a model without one.
pub(super) fn chat_template(engine: &Engine, args: &TemplateArgs) -> anyhow::Result<Option<ChatTemplate>> {
    let (source, origin) = match (&args.chat_template, &args.chat_template_file) {
        (Some(source), _) => (source.clone(), "--chat-template".to_owned()),
        (None, Some(path)) => {
            let read = fs::read_to_string(path);
            let source = read.with_context(|| format!("cannot read the chat template {}", path.display()))?;
            (source, path.display().to_string())
        }
        (None, None) => return Ok(engine.chat_template()?),
    };
    Ok(Some(engine.tokenizer().chat_template_from(&source, &origin).map_err(forestream::Error::from)?))
}
