//! `inspect`: describes a model file for people, or as JSON.

use std::fmt::{self, Write};
use std::process::ExitCode;

use forestream::inspect::{Inspection, ModelCosts, inspect};

use super::{console, pull};
use crate::args::{InspectArgs, OutputFormat};

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let path = pull::fetch(&pull::store(&args.store), &args.path)?;
    let inspection = inspect(&path, Some(args.ctx_size).filter(|&size| size > 0))?;
    console::print(&output(&inspection, args.output, args.tensors)?)?;
    Ok(ExitCode::SUCCESS)
}

fn output(inspection: &Inspection, format: OutputFormat, with_tensors: bool) -> serde_json::Result<String> {
    let text = match format {
        OutputFormat::Json => serde_json::to_string_pretty(inspection)? + "\n",
        OutputFormat::Text => describe(inspection, with_tensors),
    };
    Ok(console::printable(&text))
}

fn describe(inspection: &Inspection, with_tensors: bool) -> String {
    let mut text = String::new();
    write_all(&mut text, inspection, with_tensors).expect("writing to a string never fails");
    text
}

fn write_all(text: &mut String, inspection: &Inspection, with_tensors: bool) -> fmt::Result {
    writeln!(text, "{}: {}", inspection.path.display(), bytes(inspection.file_bytes))?;
    writeln!(text, "\nMetadata")?;
    for (key, value) in &inspection.metadata {
        writeln!(text, "  {key} = {}", value.as_str().unwrap_or_default())?;
    }
    write_formats(text, inspection)?;
    if with_tensors {
        writeln!(text)?;
        for tensor in &inspection.tensors {
            let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
            writeln!(text, "  {:<8} {:>16}  {}", tensor.format, shape.join(" x "), tensor.name)?;
        }
    }
    write_model(text, inspection)?;
    match &inspection.problems[..] {
        [] => writeln!(text, "\nThis build can run it."),
        problems => writeln!(text, "\nThis build cannot run it:\n  {}", problems.join("\n  ")),
    }
}

fn write_formats(text: &mut String, inspection: &Inspection) -> fmt::Result {
    writeln!(text, "\nTensors\n  {:<8} {:>8} {:>16} {:>12}", "format", "tensors", "parameters", "size")?;
    for group in &inspection.formats {
        let size = bytes(group.bytes);
        writeln!(text, "  {:<8} {:>8} {:>16} {size:>12}", group.format, group.num_tensors, group.num_parameters)?;
    }
    let size = bytes(inspection.formats.iter().map(|group| group.bytes).sum());
    writeln!(text, "  {:<8} {:>8} {:>16} {size:>12}", "all", inspection.tensors.len(), inspection.num_parameters)
}

fn write_model(text: &mut String, inspection: &Inspection) -> fmt::Result {
    let Some(model) = &inspection.model else { return Ok(()) };
    writeln!(text, "\nModel")?;
    let ModelCosts { architecture, num_hidden_layers, hidden_size, vocab_size, ctx_size, .. } = model;
    let ModelCosts { num_attention_heads, num_key_value_heads, max_position_embeddings, .. } = model;
    writeln!(
        text,
        "  {architecture}: {num_hidden_layers} layers, hidden size {hidden_size}, {num_attention_heads} query and \
         {num_key_value_heads} key/value heads, {vocab_size} tokens, context {max_position_embeddings}"
    )?;
    writeln!(text, "  {} of weights are read for each decoded token", bytes(model.bytes_per_token))?;
    let (memory, position) = (bytes(model.memory_bytes), bytes(model.cache_bytes_per_position));
    writeln!(text, "  {memory} for a context of {ctx_size} tokens ({position} of cache for each)")?;
    let Some(tokenizer) = &inspection.tokenizer else { return Ok(()) };
    let template = if tokenizer.has_chat_template { "with" } else { "without" };
    let (num_tokens, stops) = (tokenizer.vocab_size, tokenizer.stop_tokens.join(", "));
    writeln!(text, "  tokenizer of {num_tokens} tokens, {template} chat template, answers end at {stops}")
}

/// A size for people, in binary units.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let unit = (0..UNITS.len()).rev().find(|&unit| count >> (10 * unit) > 0).unwrap_or(0);
    match unit {
        0 => format!("{count} B"),
        _ => format!("{:.1} {}", count as f64 / f64::from(1_u32 << (10 * unit)), UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use forestream::inspect::{FormatGroup, TensorLine, TokenizerFacts};
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_are_readable() {
        for (count, expected) in [(0, "0 B"), (1023, "1023 B"), (98_362_432, "93.8 MiB"), (3 << 30, "3.0 GiB")] {
            assert_eq!(bytes(count), expected);
        }
    }
    #[test]
    fn what_a_file_says_cannot_steer_the_terminal() {
        let evil = "\u{1b}]0;title\u{7}\u{9b}2J\u{7f}\r";
        let tensor = TensorLine { name: evil.to_owned(), shape: vec![1], format: evil.to_owned(), bytes: 4 };
        let tokenizer = TokenizerFacts { vocab_size: 1, stop_tokens: vec![evil.to_owned()], has_chat_template: false };
        let inspection = Inspection {
            path: evil.into(),
            file_bytes: 4,
            num_parameters: 1,
            formats: vec![FormatGroup { format: evil.to_owned(), num_tensors: 1, num_parameters: 1, bytes: 4 }],
            model: None,
            tokenizer: Some(tokenizer),
            problems: vec![evil.to_owned()],
            metadata: [(evil.to_owned(), json!(evil))].into_iter().collect(),
            tensors: vec![tensor],
        };
        for format in [OutputFormat::Text, OutputFormat::Json] {
            let text = output(&inspection, format, true).unwrap();
            assert!(!text.contains(|letter: char| letter.is_control() && letter != '\n'), "{text:?}");
        }
        let json: serde_json::Value =
            serde_json::from_str(&output(&inspection, OutputFormat::Json, true).unwrap()).unwrap();
        assert_eq!(json["tensors"][0]["name"], evil, "escaped, not lost");
    }
}
