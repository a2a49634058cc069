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
    let ggufs: Vec<&String> = files.iter().filter(|file| is_model(file)).collect();
    if let Some(wanted) = wanted {
        let exact = files.iter().find(|file| *file == wanted);
        let missing = || SourceError::NotFound(format!("no file is called, or quantized as, {wanted}"));
        return one_file(exact.or_else(|| quantized(&ggufs, wanted)).ok_or_else(missing)?);
    }
    if let Some(directory) = checkpoint(files) {
        return Ok(Choice::Directory(directory));
    }
    let whole: Vec<&String> = ggufs.iter().copied().filter(|file| num_parts(file) == 1).collect();
    let preferred = PREFERRED.iter().find_map(|name| quantized(&whole, name));
    let missing = || format!("it has neither GGUF files nor {CONFIG} with {}", WEIGHTS.join(" or "));
    let found = preferred.or_else(|| whole.first().copied()).or_else(|| ggufs.first().copied());
    one_file(found.ok_or_else(|| SourceError::NotFound(missing()))?)
}

/// Whether a file is a language model of its own: not the projector of one that sees.
fn is_model(file: &str) -> bool {
    let path = Path::new(file);
    let is_projector = path.file_name().is_some_and(|name| name.to_string_lossy().to_lowercase().contains("mmproj"));
    path.extension().is_some_and(|extension| extension == "gguf") && !is_projector
}

/// The file that is quantized as `wanted`: rather one that is called just so than one whose name goes on, as `Q4_K_M` does
/// after `Q4_K`; and rather a whole one.
fn quantized<'a>(ggufs: &[&'a String], wanted: &str) -> Option<&'a String> {
    let is_of_name: [fn(char) -> bool; 2] = [|c| c.is_alphanumeric() || c == '_', char::is_alphanumeric];
    is_of_name.into_iter().find_map(|is_of_name| {
        let called = ggufs.iter().copied().filter(|file| has_part(file, wanted, is_of_name));
        called.min_by_key(|file| num_parts(file) > 1)
    })
}

/// Whether `part` stands in `name`, in upper or lower case, without characters of a name around it: BF16 is not F16.
fn has_part(name: &str, part: &str, is_of_name: fn(char) -> bool) -> bool {
    let (name, part) = (name.to_ascii_lowercase(), part.to_ascii_lowercase());
    name.match_indices(&part).any(|(start, found)| {
        let (before, after) = (&name[..start], &name[start + found.len()..]);
        !before.ends_with(is_of_name) && !after.starts_with(is_of_name)
    })
}

/// The parts of the model that a file is one of, as its name says: two for `…-00001-of-00002.gguf`.
fn num_parts(file: &str) -> usize {
    let numbers = file.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-of-"));
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = numbers.filter(|(left, count)| is_number(count) && left.rsplit('-').next().is_some_and(is_number));
    numbers.and_then(|(_, count)| count.parse().ok()).unwrap_or(1)
}

/// Refuses what could not be run once it is here.
fn one_file(file: &str) -> Result<Choice, SourceError> {
    match num_parts(file) {
        0 | 1 => Ok(Choice::File(file.to_owned())),
        count => Err(SourceError::Refused(format!(
            "{file} belongs to a model in {count} parts, which cannot be run; take another file or quantization, or \
             merge the parts with llama-gguf-split --merge"
        ))),
    }
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

/// Whether `name` is that of a file in a directory, and leads to no other.
pub(super) fn is_plain_file_name(name: &str) -> bool {
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
        let floats = &["m-BF16.gguf", "m-F16.gguf", "mmproj-F16.gguf"];
        let checkpoint = &["README.md", "model.safetensors", "config.json", "tokenizer.json", "onnx/model.safetensors"];
        let shards = &["consolidated.safetensors", "model-00001-of-00001.safetensors", INDEX, "config.json"];
        let both = &["config.json", INDEX, "model-00001-of-00001.safetensors", "model.safetensors"];
        let cases: &[(&[&str], Option<&str>, Choice)] = &[
            (ggufs, None, file("m-q4_k_m.gguf")),
            (ggufs, Some("q8_0"), file("m-Q8_0.gguf")),
            (ggufs, Some("m-Q2_K.gguf"), file("m-Q2_K.gguf")),
            (floats, Some("F16"), file("m-F16.gguf")),
            (floats, Some("bf16"), file("m-BF16.gguf")),
            (floats, None, file("m-F16.gguf")),
            (&["m-Q4_K_M.gguf", "m-Q4_K.gguf"], Some("Q4_K"), file("m-Q4_K.gguf")),
            (&["m-IQ4_XS.gguf", "m_q4_0.gguf"], Some("Q4_0"), file("m_q4_0.gguf")),
            (&["m-Q4_0_4_4.gguf", "m-Q4_0.gguf"], None, file("m-Q4_0.gguf")),
            (&["m-f32.gguf", "mmproj-m-f16.gguf"], None, file("m-f32.gguf")),
            (&["q8_0/m-00001-of-00001.gguf"], Some("Q8_0"), file("q8_0/m-00001-of-00001.gguf")),
            (&["m-Q8_0-00001-of-00002.gguf", "m-Q8_0.gguf"], Some("Q8_0"), file("m-Q8_0.gguf")),
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
        for (file, wanted) in [("m-BF16.gguf", "F16"), ("m-IQ4_XS.gguf", "Q4_XS"), ("mmproj-F16.gguf", "F16")] {
            let error = choose(&names(&[file]), Some(wanted)).unwrap_err();
            assert!(error.to_string().contains("no file is called, or quantized as"), "{file}: {error}");
        }
        let error = choose(&names(&["config.json", "consolidated.safetensors"]), None).unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }

    #[test]
    fn a_split_file_is_refused_before_it_is_fetched() {
        let parts = ["d/m-Q8_0-00001-of-00002.gguf", "d/m-Q8_0-00002-of-00002.gguf"];
        for (files, wanted) in
            [(&[parts[0], parts[1], "m-Q2_K.gguf"][..], Some("Q8_0")), (&parts, Some(parts[1])), (&parts, None)]
        {
            let error = choose(&names(files), wanted).unwrap_err().to_string();
            assert!(error.contains("in 2 parts") && error.contains("llama-gguf-split --merge"), "{wanted:?}: {error}");
        }
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
