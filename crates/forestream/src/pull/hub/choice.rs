//! What is taken of a repository: one GGUF file, or the files of a Hugging Face checkpoint.
//!
//! Must not know where the files are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::pull::SourceError;

/// What to take of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::pull) enum Choice {
    /// One GGUF file.
    File(String),
    /// The files of a Hugging Face checkpoint, but for the shards that its index names.
    Directory(Vec<String>),
}

/// Quantizations that are taken when none is asked for, best first.
const PREFERRED: &[&str] = &["Q4_K_M", "Q4_1", "Q4_0", "Q8_0", "F16"];

const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// Names the shards of the weights.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The weights of a checkpoint, best first; other `.safetensors` files are not read.
const WEIGHTS: &[&str] = &["model.safetensors", INDEX];

/// The files of a checkpoint directory that are needed to run it, besides the weights.
const SIDE_FILES: &[&str] =
    &[CONFIG, "generation_config.json", TOKENIZER, "tokenizer_config.json", "chat_template.jinja"];

pub(super) fn choose(files: &[String], wanted: Option<&str>) -> Result<Choice, SourceError> {
    let mut ggufs = files.iter().filter(|file| Path::new(file).extension().is_some_and(|e| e == "gguf"));
    if let Some(wanted) = wanted {
        let quantization = wanted.to_ascii_lowercase();
        let exact = files.iter().find(|file| *file == wanted);
        let found = exact.or_else(|| ggufs.find(|file| file.to_ascii_lowercase().contains(&quantization)));
        let missing = || SourceError::NotFound(format!("no file is called, or quantized as, {wanted}"));
        return found.cloned().map(Choice::File).ok_or_else(missing);
    }
    if let Some(directory) = checkpoint(files) {
        return Ok(Choice::Directory(directory));
    }
    let ggufs: Vec<&String> = ggufs.collect();
    let preferred =
        PREFERRED.iter().find_map(|name| ggufs.iter().find(|file| file.to_ascii_uppercase().contains(name)));
    let found = preferred.or(ggufs.first()).map(|file| Choice::File((*file).clone()));
    let missing = || format!("it has neither GGUF files nor {CONFIG} with {}", WEIGHTS.join(" or "));
    found.ok_or_else(|| SourceError::NotFound(missing()))
}

/// Side files first and weights last, so that where the weights are nothing is missing.
fn checkpoint(files: &[String]) -> Option<Vec<String>> {
    let has = |name: &&&str| files.iter().any(|file| file == **name);
    let weights = WEIGHTS.iter().find(has)?;
    let side_files: Vec<&str> = SIDE_FILES.iter().filter(has).copied().collect();
    let names = side_files.iter().copied().chain([*weights]);
    side_files.contains(&CONFIG).then(|| names.map(str::to_owned).collect())
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that the index at `path` names.
///
/// # Errors
/// If it cannot be read, or names files elsewhere.
pub(super) fn shards(path: &Path) -> Result<BTreeSet<String>, SourceError> {
    let file_error = |cause| SourceError::File { action: "read", path: path.to_owned(), cause };
    let text = fs::read_to_string(path).map_err(file_error)?;
    let malformed = |problem: String| SourceError::Malformed { path: path.to_owned(), problem };
    let index: Index = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| !is_plain_file_name(shard)) {
        Some(shard) => Err(malformed(format!("the shard {shard:?} is not a file beside it"))),
        None => Ok(shards),
    }
}

/// Whether `name` stays inside the directory.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_right_files_of_a_repository_are_chosen() {
        let file = |name: &str| Choice::File(name.to_owned());
        let directory = |files: &[&str]| Choice::Directory(names(files));
        let ggufs = &["README.md", "m-Q8_0.gguf", "m-q4_k_m.gguf", "m-Q2_K.gguf"][..];
        let checkpoint = &["README.md", "model.safetensors", "config.json", "tokenizer.json", "onnx/model.safetensors"];
        let shards = &["consolidated.safetensors", "model-00001-of-00001.safetensors", INDEX, "config.json"];
        let both = &["config.json", INDEX, "model-00001-of-00001.safetensors", "model.safetensors"];
        let cases: &[(&[&str], Option<&str>, Choice)] = &[
            (ggufs, None, file("m-q4_k_m.gguf")),
            (ggufs, Some("q8_0"), file("m-Q8_0.gguf")),
            (ggufs, Some("m-Q2_K.gguf"), file("m-Q2_K.gguf")),
            (checkpoint, None, directory(&["config.json", "tokenizer.json", "model.safetensors"])),
            (shards, None, directory(&["config.json", INDEX])),
            (both, None, directory(&["config.json", "model.safetensors"])),
        ];
        for (files, wanted, expected) in cases {
            assert_eq!(choose(&names(files), *wanted).unwrap(), *expected, "{files:?} {wanted:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = choose(&names(&["m-Q8_0.gguf"]), Some("Q3_K")).unwrap_err();
        assert!(error.to_string().contains("Q3_K"), "{error}");
        let error = choose(&names(&["config.json", "consolidated.safetensors"]), None).unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }

    #[test]
    fn an_index_names_each_shard_once_and_none_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(INDEX);
        fs::write(&path, r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#)
            .unwrap();
        assert_eq!(shards(&path).unwrap().into_iter().collect::<Vec<_>>(), ["a.safetensors", "b.safetensors"]);
        for content in [r#"{"weight_map": {"x": "../a"}}"#, "{"] {
            fs::write(&path, content).unwrap();
            let error = shards(&path).unwrap_err().to_string();
            assert!(error.contains(INDEX) && error.contains("delete it"), "{error}");
        }
    }
}
