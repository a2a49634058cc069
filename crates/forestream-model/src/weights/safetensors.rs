//! Hugging Face directories: `config.json`, and weights in one `.safetensors` file or in shards with an index.
//!
//! The `safetensors` crate checks headers (ranges in the file, no overlap, sizes that fit the shapes); this file finds
//! the shards and holds them against the index.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use ::safetensors::{Dtype, SafeTensors};
use forestream_kernels::formats::Format;

use super::contents::{Contents, Description, TensorInfo};
use super::json::JsonFile;
use super::mmap::MappedFile;
use super::storage::Storage;
use crate::ModelError;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const SINGLE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The bytes in front of a header that hold its length.
const LENGTH_BYTES: usize = 8;

/// Opens the checkpoint in `directory`.
pub(super) fn open(directory: &Path) -> Result<Contents, ModelError> {
    let mut contents = without_weights(directory)?;
    if directory.join(SINGLE_FILE).exists() {
        add_file(&mut contents, &directory.join(SINGLE_FILE))?;
    } else if directory.join(INDEX).exists() {
        add_shards(&mut contents, directory)?;
    } else {
        let problem =
            format!("neither {SINGLE_FILE} nor {INDEX} in this directory; convert the weights to safetensors");
        return Err(ModelError::malformed(directory, problem));
    }
    Ok(contents)
}

/// Opens the checkpoint whose weights are in the file at `path`, or all shards if it is one of them.
pub(super) fn open_file(path: &Path) -> Result<Contents, ModelError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut contents = without_weights(directory)?;
    if is_shard(directory, path)? {
        add_shards(&mut contents, directory)?;
    } else {
        add_file(&mut contents, path)?;
    }
    Ok(contents)
}

fn without_weights(directory: &Path) -> Result<Contents, ModelError> {
    let config_path = directory.join(CONFIG);
    if !config_path.exists() {
        let problem =
            format!("no {CONFIG} in this directory; expected a Hugging Face checkpoint, or name a .gguf file");
        return Err(ModelError::malformed(directory, problem));
    }
    let config = JsonFile::read(&config_path)?;
    let generation = JsonFile::read_optional(&directory.join(GENERATION_CONFIG))?;
    Ok(Contents {
        path: directory.to_owned(),
        files: Vec::new(),
        tensors: Vec::new(),
        description: Description::HuggingFace { config, generation },
    })
}

/// Whether the directory's index names the file at `path`.
fn is_shard(directory: &Path, path: &Path) -> Result<bool, ModelError> {
    let Some(index) = JsonFile::read_optional(&directory.join(INDEX))? else { return Ok(false) };
    let weight_map = index.required("weight_map", index.object("weight_map")?)?;
    let file_name = path.file_name().and_then(|name| name.to_str());
    Ok(weight_map.entries().any(|(_, shard)| shard.as_str() == file_name))
}

/// Maps every file that the index names, and checks that each tensor is where the index says.
fn add_shards(contents: &mut Contents, directory: &Path) -> Result<(), ModelError> {
    let index = JsonFile::read(&directory.join(INDEX))?;
    let weight_map = index.required("weight_map", index.object("weight_map")?)?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file_name) in weight_map.entries() {
        let Some(file_name) = file_name.as_str().filter(|name| is_plain_file_name(name)) else {
            let problem = format!("tensor `{tensor}`: expected the name of a file in this directory, got {file_name}");
            return Err(ModelError::malformed(index.path(), problem));
        };
        shards.entry(file_name).or_default().push(tensor);
    }
    for (file_name, names) in shards {
        let shard = directory.join(file_name);
        if !shard.exists() {
            let first = names[0];
            let problem = format!("names {file_name} (for example for `{first}`), which is missing; download it again");
            return Err(ModelError::malformed(index.path(), problem));
        }
        let first_new = contents.tensors.len();
        add_file(contents, &shard)?;
        let found = &contents.tensors[first_new..];
        if let Some(missing) = names.iter().find(|name| !found.iter().any(|tensor| tensor.name == **name)) {
            let problem = format!("says that `{missing}` is in {file_name}, but it is not there");
            return Err(ModelError::malformed(index.path(), problem));
        }
    }
    check_distinct(contents)
}

/// Whether `name` stays inside the directory.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

fn check_distinct(contents: &Contents) -> Result<(), ModelError> {
    let mut seen: HashMap<&str, &TensorInfo> = HashMap::new();
    for tensor in contents.tensors() {
        if let Some(other) = seen.insert(&tensor.name, tensor) {
            let (first, second) = (contents.file_of(other).display(), contents.file_of(tensor).display());
            let problem = format!("`{}` is in {first} and again in {second}", tensor.name);
            return Err(ModelError::malformed(contents.path(), problem));
        }
    }
    Ok(())
}

fn add_file(contents: &mut Contents, path: &Path) -> Result<(), ModelError> {
    let file = MappedFile::open(path)?;
    let (header_len, header) = SafeTensors::read_metadata(file.bytes())
        .map_err(|error| ModelError::malformed(path, format!("not a valid safetensors file: {error}")))?;
    let data_start = LENGTH_BYTES + header_len;
    let file_index = contents.files.len();
    for name in header.offset_keys() {
        let info = header.info(&name).expect("the header lists its own tensors");
        let format = format_of(info.dtype).ok_or_else(|| {
            let problem = format!("tensor `{name}` has type {:?}; F32, F16 and BF16 are supported", info.dtype);
            ModelError::unsupported(path, problem)
        })?;
        let (start, end) = info.data_offsets;
        let range = data_start + start..data_start + end;
        let storage = Storage::Readable(format);
        contents.tensors.push(TensorInfo { shape: info.shape.clone(), name, storage, file_index, range });
    }
    contents.files.push(file);
    Ok(())
}

fn format_of(dtype: Dtype) -> Option<Format> {
    match dtype {
        Dtype::F32 => Some(Format::F32),
        Dtype::F16 => Some(Format::F16),
        Dtype::BF16 => Some(Format::BF16),
        _ => None,
    }
}
