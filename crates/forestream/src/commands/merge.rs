//! `merge`: the model that a jointly trained adapter makes, as a checkpoint of its own.

use std::process::ExitCode;

use forestream::train;

use super::{console, pull};
use crate::args::MergeArgs;

pub(super) fn run(args: &MergeArgs) -> anyhow::Result<ExitCode> {
    let path = pull::fetch(&pull::store(&args.store), &args.model)?;
    let names = train::merge(&path, &args.adapter, &args.output)?;
    console::print(&format!("{}: {}\n", args.output.display(), names.join(", ")))?;
    if !names.iter().any(|name| name.starts_with("tokenizer")) {
        console::note(
            "the tokenizer is inside the base's file; copy tokenizer.json from the model's Hugging Face repository",
        );
    }
    Ok(ExitCode::SUCCESS)
}
