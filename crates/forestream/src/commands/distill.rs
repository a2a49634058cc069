//! `distill`: a model's own answers, to the prompts of a file or to its own, written line by line to a file.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use forestream::dataset::DatasetPrompt;
use forestream::distill::{AnswerFile, DistillOptions, DistillPrompt, Distillation, Header, OwnPrompts, Prompts};
use forestream::{Engine, SamplingSettings};

use super::console::{self, AnswerProgress};
use super::{interrupt, model, prompts};
use crate::args::{self, AdapterArgs, BackendArgs, DistillArgs};

pub(super) fn run(args: &DistillArgs) -> anyhow::Result<ExitCode> {
    let rows = args.own_prompts.is_none().then(|| prompts::read(&args.model.store, &args.data)).transpose()?;
    let engine = model::open(&args.model, &args.adapter, &BackendArgs::default(), &[])?;
    interrupt::install()?;
    let options = options(&engine, args);
    let has_template = !args.data.raw && engine.chat_template()?.is_some();
    let header = header(&engine, &options, has_template, &args.adapter)?;
    let is_complete = match (rows, args.own_prompts) {
        (Some(rows), _) => {
            let prompts = distill_prompts(&engine, args, rows)?;
            let file = AnswerFile::open(&args.output_file, &header, Prompts::Given(&prompts))?;
            let mut writer = Writer::new(&engine, options, file, prompts.len());
            writer.answer(&prompts[writer.file.num_answers()..])?;
            writer.finish()
        }
        (None, num_prompts) => write_own(&engine, options, header, num_prompts.unwrap_or(0), &args.output_file)?,
    };
    if is_complete {
        return Ok(ExitCode::SUCCESS);
    }
    console::note("interrupted; the same command goes on from here");
    Ok(ExitCode::FAILURE)
}

/// Writes the most probable answers of the model to `num_prompts` prompts of its own, as `distill` without other flags does;
/// `false` where it was interrupted.
pub(super) fn write_own_answers(
    engine: &Engine,
    adapter: &AdapterArgs,
    num_prompts: usize,
    seed: u64,
    output: &Path,
) -> anyhow::Result<bool> {
    let sampling = SamplingSettings { temperature: 0.0, seed, ..engine.default_sampling() };
    let (max_tokens, batch_size) = (args::ANSWER_TOKENS as usize, usize::from(args::ANSWERS_TOGETHER));
    let options = DistillOptions { sampling, max_tokens, batch_size };
    let header = header(engine, &options, true, adapter)?;
    write_own(engine, options, header, num_prompts, output)
}

fn write_own(
    engine: &Engine,
    options: DistillOptions,
    header: Header,
    num_prompts: usize,
    output: &Path,
) -> anyhow::Result<bool> {
    let own = OwnPrompts::new(engine, options.sampling.seed, options.batch_size)?;
    let file = AnswerFile::open(output, &header.with_own_prompts(), Prompts::Own)?;
    let mut writer = Writer::new(engine, options, file, num_prompts);
    writer.answer_own(own)?;
    Ok(writer.finish())
}

fn header(
    engine: &Engine,
    options: &DistillOptions,
    has_template: bool,
    adapter: &AdapterArgs,
) -> anyhow::Result<Header> {
    let header = Header::new(engine, options, if has_template { "chat" } else { "raw" });
    Ok(match &adapter.adapter {
        Some(adapter) => header.with_adapter(engine, adapter)?,
        None => header,
    })
}

/// Writes answers to a file until there are enough.
struct Writer<'e> {
    engine: &'e Engine,
    options: DistillOptions,
    file: AnswerFile,
    num_prompts: usize,
    num_tokens: usize,
    progress: AnswerProgress,
}

impl<'e> Writer<'e> {
    fn new(engine: &'e Engine, options: DistillOptions, file: AnswerFile, num_prompts: usize) -> Self {
        let first = file.num_answers();
        if first > 0 {
            console::note(&format!("{} has {first} answers already", file.path().display()));
        }
        let progress = AnswerProgress::new(first, num_prompts.max(first));
        Self { engine, options, file, num_prompts, num_tokens: 0, progress }
    }

    /// Answers all of `prompts`, the next ones, unless it is interrupted.
    fn answer(&mut self, prompts: &[DistillPrompt]) -> anyhow::Result<()> {
        let first = self.file.num_answers();
        let mut distillation = Distillation::new(self.engine, prompts, first, self.options.clone());
        while !interrupt::is_asked() && distillation.step()? {
            while let Some(answer) = distillation.next_answer() {
                self.file.append(&answer)?;
            }
            self.progress.show(self.file.num_answers(), self.num_tokens + distillation.num_tokens());
        }
        self.num_tokens += distillation.num_tokens();
        Ok(())
    }

    /// Answers as many prompts of the model's own as are missing, unless it is interrupted.
    fn answer_own(&mut self, mut own: OwnPrompts<'_>) -> anyhow::Result<()> {
        for (prompt, draw) in self.file.take_own_prompts() {
            own.pass_over(prompt, draw);
        }
        while self.file.num_answers() < self.num_prompts && !interrupt::is_asked() {
            let wanted = self.num_prompts - self.file.num_answers();
            let mut prompts = own.draw(wanted, interrupt::is_asked)?;
            prompts.truncate(wanted);
            self.answer(&prompts)?;
        }
        Ok(())
    }

    /// Sums up; `false` where answers are missing.
    fn finish(self) -> bool {
        console::note(&format!("{} in {}", self.progress.finish(), self.file.path().display()));
        self.file.num_answers() >= self.num_prompts
    }
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
            args.data.path().display(),
            row.place,
            tokens.len(),
            engine.ctx_size()
        );
    }
    let prompt = |(row, tokens): (DatasetPrompt, _)| DistillPrompt { text: row.text, tokens, draw: None };
    Ok(rows.into_iter().zip(tokens).map(prompt).collect())
}
