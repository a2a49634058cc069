//! The tokenizer of a checkpoint: from GGUF metadata, or from the files beside the weights.
//!
//! Joins two crates that do not know each other: one reads metadata, the other builds tokenizers.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use forestream_model::ModelError;
use forestream_model::weights::{Contents, GgufMetadata};
use forestream_text::{GgufVocabulary, Tokenizer};

use crate::Error;

/// Builds the tokenizer of an opened model.
///
/// # Errors
/// If there is none, or it cannot be built.
pub(crate) fn tokenizer_of(contents: &Contents) -> Result<Tokenizer, Error> {
    if let Some(metadata) = contents.gguf() {
        return Ok(Tokenizer::from_gguf(gguf_vocabulary(metadata)?)?);
    }
    let path = contents.path();
    if path.join("tokenizer.json").is_file() {
        return Ok(Tokenizer::from_directory(path)?);
    }
    if let Some(file) = llama2c_vocabulary(path) {
        let bytes = std::fs::read(&file).map_err(|source| ModelError::Read { path: file, source })?;
        return Ok(Tokenizer::from_gguf(GgufVocabulary::from_llama2c(&bytes)?)?);
    }
    let remedy = if path.is_dir() { "put its tokenizer.json beside the weights" } else { "put its tok*.bin beside it" };
    Err(Error::NoTokenizer { path: path.to_owned(), remedy })
}

/// The vocabulary beside a llama2.c checkpoint: `tokenizer.bin`, `tok512.bin` or the like.
fn llama2c_vocabulary(path: &Path) -> Option<PathBuf> {
    let directory = path.parent().filter(|_| path.is_file())?;
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let entries = directory.read_dir().ok()?;
    let is_vocabulary = |file: &PathBuf| {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("tok") && file.extension() == Some(OsStr::new("bin"))
    };
    entries.flatten().map(|entry| entry.path()).filter(is_vocabulary).min()
}

fn gguf_vocabulary(metadata: &GgufMetadata) -> Result<GgufVocabulary, Error> {
    let text = |key: &str| metadata.text(key).map(|text| text.map(str::to_owned));
    let texts =
        |key: &str| metadata.strings(key).map(|texts| texts.map(|texts| texts.iter().map(str::to_owned).collect()));
    let token = |key: &str| metadata.integer(key).map(|id| id.and_then(|id| u32::try_from(id).ok()));
    let no_tokenizer = || {
        let remedy = "its metadata lacks tokenizer.ggml.*; convert the model again, with its tokenizer";
        Error::NoTokenizer { path: metadata.path().to_owned(), remedy }
    };
    let scores = metadata.floats("tokenizer.ggml.scores")?;
    let token_types = metadata.integers("tokenizer.ggml.token_type")?;
    Ok(GgufVocabulary {
        model: text("tokenizer.ggml.model")?.ok_or_else(no_tokenizer)?,
        pre: text("tokenizer.ggml.pre")?,
        tokens: texts("tokenizer.ggml.tokens")?.ok_or_else(no_tokenizer)?,
        scores: scores.map(|scores| scores.iter().map(|&score| score as f32).collect()),
        token_types: token_types.map(|types| types.into_iter().map(|kind| kind as i32).collect()),
        merges: texts("tokenizer.ggml.merges")?,
        bos: token("tokenizer.ggml.bos_token_id")?,
        eos: token("tokenizer.ggml.eos_token_id")?,
        eot: token("tokenizer.ggml.eot_token_id")?,
        eom: token("tokenizer.ggml.eom_token_id")?,
        unknown: token("tokenizer.ggml.unknown_token_id")?,
        padding: token("tokenizer.ggml.padding_token_id")?,
        add_bos: metadata.flag("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.flag("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.flag("tokenizer.ggml.add_space_prefix")?,
        chat_template: text("tokenizer.chat_template")?,
    })
}
