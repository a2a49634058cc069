//! `bench`: a table of measurements.

use std::fmt::Write;
use std::process::ExitCode;

use forestream::bench::{BenchOptions, Measurement, bench};

use super::{console, model};
use crate::args::{BackendArgs, BenchArgs, TableFormat};

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let engine = model::open(&args.model, &args.adapter, &BackendArgs::default(), &[])?;
    let options = BenchOptions {
        prompt_lens: args.prompt_len.clone(),
        gen_lens: args.gen_len.clone(),
        verify_lens: args.verify_len.clone(),
        depth: args.depth,
        repetitions: usize::from(args.repetitions),
        warmups: usize::from(!args.no_warmup),
    };
    let mut status = console::Status::new();
    let measurements = bench(&engine, &options, |test| status.show(test))?;
    status.clear();
    console::print(&table(&measurements, args.output)?)?;
    Ok(ExitCode::SUCCESS)
}

fn table(measurements: &[Measurement], format: TableFormat) -> anyhow::Result<String> {
    let mut text = String::new();
    match format {
        TableFormat::Json => writeln!(text, "{}", serde_json::to_string_pretty(measurements)?)?,
        TableFormat::Jsonl => {
            for measurement in measurements {
                writeln!(text, "{}", serde_json::to_string(measurement)?)?;
            }
        }
        TableFormat::Csv => {
            writeln!(text, "test,tokens_per_second,ms_per_pass,stddev,depth,repetitions,threads,model")?;
            for row in measurements {
                writeln!(
                    text,
                    "{},{:.3},{:.4},{:.3},{},{},{},\"{}\"",
                    row.test,
                    row.tokens_per_second,
                    row.ms_per_pass,
                    row.stddev,
                    row.depth,
                    row.repetitions,
                    row.threads,
                    row.model.replace('"', "\"\"")
                )?;
            }
        }
        TableFormat::Md => {
            writeln!(text, "| model | threads | test | depth | tokens/s | ± | ms per pass |")?;
            writeln!(text, "|---|---:|---|---:|---:|---:|---:|")?;
            for row in measurements {
                writeln!(
                    text,
                    "| {} | {} | {} | {} | {:.1} | {:.1} | {:.2} |",
                    row.model.replace('|', "\\|"),
                    row.threads,
                    row.test,
                    row.depth,
                    row.tokens_per_second,
                    row.stddev,
                    row.ms_per_pass
                )?;
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_bar_stays_in_its_cell() {
        let row = Measurement {
            test: "pp8".to_owned(),
            tokens_per_second: 1.0,
            ms_per_pass: 1.0,
            stddev: 0.0,
            mean_tokens_per_second: 1.0,
            min_ms_per_pass: 1.0,
            depth: 0,
            repetitions: 1,
            threads: 1,
            isa: "generic",
            model: "a|b".to_owned(),
        };
        let table = table(&[row], TableFormat::Md).unwrap();
        assert!(table.contains("| a\\|b | 1 |"), "{table}");
    }
}
