//! How good answers are: ROUGE-L and exact match against the references of a task's rows, with standard errors.
//!
//! ROUGE-L is the F1 of the longest common subsequence of words (lower case, letters and digits; Lin 2004), the best over
//! the references of a prompt. Exact match folds case and white space.
//! `forestream distill --adapter DIR --data dev.jsonl --task e2e --temp 0 -o answers.jsonl`, then
//! `cargo run --release --package forestream --example quality -- answers.jsonl dev.jsonl e2e`

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write, stdout};

use forestream::dataset::task;
use forestream::distill::DistilledAnswer;
use forestream::train::TaskRows;
use forestream_train::RowTexts;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [answers, data, name] = arguments.as_slice() else { return Err("arguments: ANSWERS DATA TASK".into()) };
    let task = task(name).ok_or("no such task")?;
    let rows = TaskRows::of_task(task, None).ok_or("a task without references")?;
    let references = references(data, &rows)?;
    let (mut rouge, mut exact) = (Vec::new(), Vec::new());
    for line in BufReader::new(File::open(answers)?).lines() {
        // The first line says how the answers were made.
        let Ok(answer) = serde_json::from_str::<DistilledAnswer>(&line?) else { continue };
        let references = references.get(&answer.prompt).ok_or("an answer to a prompt that the data have not")?;
        let best = |score: &dyn Fn(&str) -> f64| references.iter().map(|text| score(text)).fold(0.0, f64::max);
        rouge.push(best(&|reference| rouge_l(&words(&answer.completion), &words(reference))));
        exact.push(best(&|reference| f64::from(folded(&answer.completion) == folded(reference))));
    }
    for (name, scores) in [("ROUGE-L", rouge), ("exact match", exact)] {
        let (mean, error) = mean_and_error(&scores);
        writeln!(stdout(), "{name} {mean:.4}, standard error {error:.4}, {} answers", scores.len())?;
    }
    Ok(())
}

/// The references of each prompt.
fn references(data: &str, rows: &TaskRows) -> Result<HashMap<String, Vec<String>>, Failure> {
    let mut references: HashMap<String, Vec<String>> = HashMap::new();
    for line in BufReader::new(File::open(data)?).lines() {
        let [prompt, completion] = rows.prompt_and_completion(&serde_json::from_str(&line?)?)?;
        references.entry(prompt).or_default().push(completion);
    }
    Ok(references)
}

fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn folded(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The F1 of the longest common subsequence.
fn rouge_l(answer: &[String], reference: &[String]) -> f64 {
    let mut lengths = vec![0_u32; reference.len() + 1];
    for word in answer {
        let mut diagonal = 0;
        for (index, other) in reference.iter().enumerate() {
            let above = lengths[index + 1];
            lengths[index + 1] = if word == other { diagonal + 1 } else { above.max(lengths[index]) };
            diagonal = above;
        }
    }
    let common = f64::from(lengths[reference.len()]);
    if common == 0.0 { 0.0 } else { 2.0 * common / (answer.len() + reference.len()) as f64 }
}

/// The mean and its standard error.
fn mean_and_error(scores: &[f64]) -> (f64, f64) {
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, (variance / count).sqrt())
}
