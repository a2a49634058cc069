//! `distill`: a model's own answers to the prompts of a file, written line by line to another one.

use std::process::ExitCode;

use anyhow::bail;
use forestream::Engine;
use forestream::dataset::DatasetPrompt;
use forestream::distill::{AnswerFile, DistillOptions, DistillPrompt, Distillation, Header};

use super::console::{self, AnswerProgress};
use super::{interrupt, model, prompts};
use crate::args::{self, BackendArgs, DistillArgs};

pub(super) fn run(args: &DistillArgs) -> anyhow::Result<ExitCode> {
    let rows = prompts::read(&args.model.store, &args.data)?;
    let engine = model::open(&args.model, &args.adapter, &BackendArgs::default(), &[])?;
    interrupt::install()?;
    let prompts = distill_prompts(&engine, args, rows)?;
    let options = options(&engine, args);
    let has_template = !args.data.raw && engine.chat_template()?.is_some();
    let mut header = Header::new(&engine, &options, if has_template { "chat" } else { "raw" });
    if let Some(adapter) = &args.adapter.adapter {
        header = header.with_adapter(&engine, adapter)?;
    }
    let mut file = AnswerFile::open(&args.output_file, &header, &prompts)?;
    let first = file.num_answers();
    if first > 0 {
        console::note(&format!("{} has {first} answers already", args.output_file.display()));
    }
    let mut progress = AnswerProgress::new(first, prompts.len());
    let mut distillation = Distillation::new(&engine, &prompts, first, options);
    while !interrupt::is_asked() && distillation.step()? {
        while let Some(answer) = distillation.next_answer() {
            file.append(&answer)?;
        }
        progress.show(file.num_answers(), distillation.num_tokens());
    }
    let summary = progress.finish();
    console::note(&format!("{} in {}", summary, args.output_file.display()));
    if file.num_answers() < prompts.len() {
        console::note("interrupted; the same command goes on from here");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn options(engine: &Engine, args: &DistillArgs) -> DistillOptions {
    DistillOptions {
        sampling: args::sampling(&args.sampling, &engine.default_sampling()),
        max_tokens: args.max_tokens as usize,
        batch_size: usize::from(args.batch_size),
    }
}

fn distill_prompts(
    engine: &Engine,
    args: &DistillArgs,
    rows: Vec<DatasetPrompt>,
) -> anyhow::Result<Vec<DistillPrompt>> {
    let tokens = prompts::tokens(engine, &args.data, &rows)?;
    let too_long = rows.iter().zip(&tokens).find(|(_, tokens)| tokens.len() >= engine.ctx_size());
    if let Some((row, tokens)) = too_long {
        bail!(
            "{}, {}: the prompt has {} tokens, which leaves no room for an answer in the context of {}; take \
             the row out, or raise --ctx-size if the model was trained for more",
            args.data.data.display(),
            row.place,
            tokens.len(),
            engine.ctx_size()
        );
    }
    Ok(rows.into_iter().zip(tokens).map(|(row, tokens)| DistillPrompt { text: row.text, tokens }).collect())
}
