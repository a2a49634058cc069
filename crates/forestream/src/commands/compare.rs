//! `compare`: strategies side by side on a file of prompts.

use std::fmt::Write;
use std::process::ExitCode;

use forestream::compare::{Arm, ComparePrompt, Comparison, KeepGoing, compare};
use forestream::dataset::DatasetPrompt;
use forestream::{Engine, GenerateOptions};

use super::{console, interrupt, model, prompts};
use crate::args::{self, CompareArgs, OutputFormat};

/// The strategy that others are compared with.
const PLAIN: &str = "none";

pub(super) fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let rows = prompts::read(&args.model.store, &args.data)?;
    let engine = model::open(&args.model, &args.backend, &args.spec_types)?;
    interrupt::install()?;
    let tokens = prompts::tokens(&engine, &args.data, &rows)?;
    let with_category = |(row, tokens): (DatasetPrompt, _)| ComparePrompt { tokens, category: row.category };
    let prompts: Vec<ComparePrompt> = rows.into_iter().zip(tokens).map(with_category).collect();
    let mut status = console::Status::new();
    let comparison = compare(&engine, &prompts, &arms(&engine, args), args.repetitions.into(), |done| {
        status.show(&format!("prompt {done} of {}", prompts.len()));
        if interrupt::is_asked() { KeepGoing::No } else { KeepGoing::Yes }
    })?;
    status.clear();
    match args.output {
        OutputFormat::Json => console::print(&format!("{}\n", serde_json::to_string_pretty(&comparison)?))?,
        OutputFormat::Text => console::print(&describe(&comparison))?,
    }
    let is_identical = comparison.arms.iter().all(|arm| arm.identical);
    Ok(if is_identical { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The options of each arm, plain decoding first; one seed, so that all draw the same numbers. A second `none` stays: what it
/// differs from the first by is the machine's noise.
fn arms(engine: &Engine, args: &CompareArgs) -> Vec<GenerateOptions> {
    let mut defaults = engine.default_sampling();
    defaults.temperature = 0.0;
    let sampling = args::sampling(&args.sampling, &defaults);
    let mut names = vec![PLAIN.to_owned()];
    names.extend(args.spec_types.iter().map(|name| name.0.clone()));
    if let Some(first) = names.iter().skip(1).position(|name| name == PLAIN) {
        names.remove(first + 1);
    }
    let options = |name| GenerateOptions {
        max_tokens: Some(args.max_tokens as usize),
        ..args::drafting(&args.budget, name, sampling.clone())
    };
    names.into_iter().map(options).collect()
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
        comparison.model, comparison.threads, comparison.num_prompts, comparison.temperature, comparison.seed
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
