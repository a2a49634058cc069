//! `compare`: strategies side by side on a file of prompts.

use std::fmt::Write;
use std::process::ExitCode;

use forestream::compare::{Arm, ComparePrompt, Comparison, KeepGoing, compare};
use forestream::dataset::DatasetPrompt;
use forestream::{AUTO, Engine, GenerateOptions};

use super::{console, interrupt, model, prompts};
use crate::args::{self, CompareArgs, OutputFormat};

pub(super) fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let rows = prompts::read(&args.model.store, &args.data)?;
    let engine = model::open(&args.model, &args.adapter, &args.backend, &args.spec_types)?;
    model::warn_of_idle_flags(&engine, &args.budget, &args.spec_types);
    let tokens = prompts::tokens(&engine, &args.data, &rows)?;
    let with_category = |(row, tokens): (DatasetPrompt, _)| ComparePrompt { tokens, category: row.category };
    let prompts: Vec<ComparePrompt> = rows.into_iter().zip(tokens).map(with_category).collect();
    let strategies: Vec<String> = args.spec_types.iter().map(|name| name.0.clone()).collect();
    let options = options(&engine, args);
    interrupt::install()?;
    let (mut status, mut shown) = (console::Status::new(), None);
    let comparison = compare(&engine, &prompts, &strategies, &options, args.repetitions.into(), |done| {
        if shown.replace(done) != Some(done) {
            status.show(&format!("prompt {} of {}", done + 1, prompts.len()));
        }
        if interrupt::is_asked() { KeepGoing::No } else { KeepGoing::Yes }
    })?;
    status.clear();
    match comparison.num_prompts {
        0 => {
            console::note("interrupted; no prompt is complete, there is nothing to report");
            return Ok(ExitCode::from(interrupt::INTERRUPTED));
        }
        complete if complete < prompts.len() => {
            console::note(&format!("interrupted; {complete} of {} prompts are complete", prompts.len()));
        }
        _ => {}
    }
    let report = match args.output {
        OutputFormat::Json => serde_json::to_string_pretty(&comparison)? + "\n",
        OutputFormat::Text => describe(&comparison),
    };
    console::print_if_read(&console::printable(&report))?;
    let is_identical = comparison.arms.iter().all(|arm| arm.identical);
    Ok(if is_identical { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The options of every arm, but for its strategy: greedy unless the flags say otherwise.
fn options(engine: &Engine, args: &CompareArgs) -> GenerateOptions {
    let sampling = args::sampling(&args.sampling, &engine.default_sampling());
    GenerateOptions {
        max_tokens: Some(args.max_tokens as usize),
        ..args::drafting(&args.budget, AUTO.to_owned(), sampling)
    }
}

fn describe(comparison: &Comparison) -> String {
    let mut text = String::new();
    write_table(&mut text, comparison).expect("writing to a string never fails");
    text
}

fn write_table(text: &mut String, comparison: &Comparison) -> std::fmt::Result {
    writeln!(
        text,
        "{}, {} threads, {} prompts, temperature {}, seed {}\n",
        cell(&comparison.model),
        comparison.threads,
        comparison.num_prompts,
        comparison.temperature,
        comparison.seed
    )?;
    writeln!(
        text,
        "{:<24} {:>9} {:>8} {:>8} {:>11} {:>10} {:>11} {:>7}  same tokens",
        "strategy", "tokens/s", "speedup", "5th pct", "end to end", "call ratio", "tokens/pass", "extra"
    )?;
    for arm in &comparison.arms {
        write_arm(text, arm)?;
    }
    Ok(())
}

/// Text of the data as a part of a line: the width of a column counts what is shown.
fn cell(text: &str) -> String {
    console::printable(text).replace('\n', "\\n").replace('\t', "\\t")
}

fn write_arm(text: &mut String, arm: &Arm) -> std::fmt::Result {
    let same = match arm.different_prompts.len() {
        0 => "yes".to_owned(),
        count => format!("NO: {count} prompts differ, first {}", arm.different_prompts[0]),
    };
    let figures = &arm.figures;
    writeln!(
        text,
        "{:<24} {:>9.1} {:>7.2}x {:>7.2}x {:>10.2}x {:>10.2} {:>11.2} {:>7}  {same}",
        arm.spec_type,
        figures.tokens_per_second,
        figures.speedup,
        arm.speedup_p5,
        figures.end_to_end_speedup,
        figures.call_reduction_ratio,
        figures.mean_acceptance_length,
        arm.extra_parameters,
    )?;
    for (category, figures) in &arm.categories {
        let category = cell(category);
        writeln!(
            text,
            "  {category:<22} {:>9.1} {:>7.2}x {:>8} {:>10.2}x {:>10.2} {:>11.2}",
            figures.tokens_per_second,
            figures.speedup,
            "",
            figures.end_to_end_speedup,
            figures.call_reduction_ratio,
            figures.mean_acceptance_length,
        )?;
    }
    Ok(())
}
