//! From files to checkpoints: valid ones of every kind, and all the ways in which a file can be wrong.
#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "test code; values must come back exactly")]

mod gguf;
mod gguf_hostile;
mod gguf_writer;
mod hugging_face;
mod llama2c;

use std::error::Error;
use std::path::Path;

use forestream_model::Checkpoint;

/// The error of opening `path`, with its causes.
fn open_error(path: &Path) -> String {
    let error = Checkpoint::open(path).expect_err("the file is wrong");
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Asserts that `error` names the file and says everything in `expected`.
fn assert_says(case: &str, error: &str, path: &Path, expected: &[&str]) {
    assert!(error.contains(&path.display().to_string()), "{case}: no path in: {error}");
    for part in expected {
        assert!(error.contains(part), "{case}: expected `{part}` in: {error}");
    }
}

/// Distinct small values, so that a tensor that is mistaken for another is noticed.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|index| ((seed * 131 + index * 7) % 251) as f32 / 64.0 - 2.0).collect()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
