//! A jointly trained model as a checkpoint of its own: the task's changes added to the weights of the base.
//!
//! The result is a Hugging Face directory with half-precision weights that other programs can load. It has no streams.
//! Tensors are computed while they are written, so that one of them at a time is in memory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use forestream_model::architectures::ARCHITECTURES;
use forestream_model::streams::{Adapter, LoraConfig, MAIN_LAYERS};
use forestream_model::{Checkpoint, Format, RopeScaling};
use serde_json::{Map, Value, json};

use crate::TrainError;

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
/// Files beside the weights of a Hugging Face directory that stay as they are.
const COPIED: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// Writes the base with the adapter's changes of main rows into `output`; returns the names of the files.
///
/// # Errors
/// An adapter that changes nothing, a model that `config.json` cannot describe, an output directory that has a model
/// already, or a file that cannot be written. Then nothing of this run stays in the directory.
pub fn merge(base: &Checkpoint, adapter: &Adapter, output: &Path) -> Result<Vec<String>, TrainError> {
    let Some(main) = &adapter.config.main_lora else {
        let problem = "this adapter leaves the model as it is, so there is nothing to merge; train with --mode joint";
        return Err(TrainError::setting("--adapter", problem));
    };
    if let Some(path) = in_the_way(output) {
        let problem = format!("{} exists; choose another directory", path.display());
        return Err(TrainError::setting("--output", problem));
    }
    let config = format!("{:#}\n", Value::Object(config_json(base)?));
    let names: Vec<String> = base.weight_names().map(str::to_owned).collect();
    let merged = |name: &String| Merged::new(base, adapter, &main.lora, name);
    let tensors: Vec<Merged<'_>> = names.iter().map(merged).collect::<Result<_, TrainError>>()?;
    let mut files = NewFiles::create_in(output)?;
    files.write(CONFIG, |partial| std::fs::write(partial, config))?;
    if let Some(directory) = directory_of(base) {
        for &name in COPIED.iter().filter(|name| directory.join(name).exists()) {
            files.write(name, |partial| std::fs::copy(directory.join(name), partial).map(drop))?;
        }
    }
    files.write(WEIGHTS, |partial| write_safetensors(partial, &tensors))?; // last: with them the model is complete
    let mut names = files.keep();
    names.rotate_right(1); // the weights are what was asked for
    Ok(names)
}

/// Weights in a directory, of a model or an adapter, or a file of another model that would be written over.
fn in_the_way(directory: &Path) -> Option<PathBuf> {
    let paths = std::fs::read_dir(directory).ok()?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let is_written = |path: &Path| {
        let name = path.file_name().and_then(OsStr::to_str);
        name.is_some_and(|name| name == CONFIG || COPIED.contains(&name) || name.ends_with(".safetensors"))
    };
    paths.filter(|path| is_written(path)).min()
}

/// Files of one run, which are removed again unless all of them could be written: half a model would be in the way of
/// the next run, and fill a disk that is full.
struct NewFiles<'a> {
    directory: &'a Path,
    is_new_directory: bool,
    written: Vec<String>,
}

impl<'a> NewFiles<'a> {
    fn create_in(directory: &'a Path) -> Result<Self, TrainError> {
        let is_new_directory = !directory.exists();
        std::fs::create_dir_all(directory).map_err(TrainError::write(directory))?;
        Ok(Self { directory, is_new_directory, written: Vec::new() })
    }

    /// Lets `write` make a file under a temporary name, and gives it its own when it is whole.
    fn write(&mut self, name: &str, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), TrainError> {
        let path = self.directory.join(name);
        let partial = path.with_extension("partial");
        if let Err(source) = write(&partial).and_then(|()| std::fs::rename(&partial, &path)) {
            let _ = std::fs::remove_file(&partial);
            return Err(TrainError::Merge { path, source });
        }
        self.written.push(name.to_owned());
        Ok(())
    }

    /// Leaves the files where they are; returns their names.
    fn keep(mut self) -> Vec<String> {
        self.is_new_directory = false;
        std::mem::take(&mut self.written)
    }
}

impl Drop for NewFiles<'_> {
    fn drop(&mut self) {
        for name in &self.written {
            let _ = std::fs::remove_file(self.directory.join(name)); // the error that led here says more than this one would
        }
        if self.is_new_directory {
            let _ = std::fs::remove_dir(self.directory);
        }
    }
}

/// A tensor of the result.
struct Merged<'a> {
    base: &'a Checkpoint,
    name: String,
    shape: Vec<usize>,
    /// A, B and the factor of their product.
    change: Option<(&'a [f32], &'a [f32], &'a LoraConfig)>,
}

impl<'a> Merged<'a> {
    fn new(base: &'a Checkpoint, adapter: &'a Adapter, lora: &'a LoraConfig, name: &str) -> Result<Self, TrainError> {
        let weight = base.weight(name)?;
        let shape = if weight.rows == 1 { vec![weight.cols] } else { vec![weight.rows, weight.cols] };
        let path = name.strip_prefix("model.layers.").and_then(|name| name.strip_suffix(".weight")).unwrap_or_default();
        let tensor = |which: &str| adapter.tensors.get(&format!("{MAIN_LAYERS}.{path}.lora_{which}.weight"));
        let factor = |which: &str| tensor(which).map(Vec::as_slice);
        let change = factor("A").zip(factor("B")).map(|(a, b)| (a, b, lora));
        Ok(Self { base, name: name.to_owned(), shape, change })
    }

    /// The row of the base that belongs at `row`: Hugging Face rotates halves of a head.
    fn source(&self, row: usize) -> usize {
        let is_rotated = ["q_proj", "k_proj", "q_norm", "k_norm"].iter().any(|part| self.name.contains(part));
        if is_rotated { self.base.rotary_row(row) } else { row }
    }

    fn values(&self) -> Vec<f32> {
        let stored = self.base.weight(&self.name).expect("the weight was there a moment ago").to_f32();
        let width = if self.shape.len() == 1 { 1 } else { self.shape[1] };
        let rows = (0..self.shape[0]).flat_map(|row| &stored[self.source(row) * width..][..width]);
        let mut values: Vec<f32> = rows.copied().collect();
        if let Some((a, b, lora)) = self.change {
            let scale = lora.scaling();
            for (values, b) in values.chunks_exact_mut(width).zip(b.chunks_exact(lora.rank)) {
                for (b, a) in b.iter().zip(a.chunks_exact(width)) {
                    values.iter_mut().zip(a).for_each(|(value, a)| *value += scale * b * a);
                }
            }
        }
        values
    }
}

/// Writes tensors one by one: a length, a header with their places, and their bytes. The format's own crate wants all
/// bytes in memory.
fn write_safetensors(path: &Path, tensors: &[Merged<'_>]) -> io::Result<()> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += size_of::<u16>() * tensor.shape.iter().product::<usize>();
        let place = json!({ "dtype": "F16", "shape": tensor.shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), place);
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len())); // data is aligned
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for tensor in tensors {
        let mut bytes = Vec::new();
        Format::F16.quantize_row(&tensor.values(), &mut bytes).map_err(io::Error::other)?;
        file.write_all(&bytes)?;
        tensor.base.release();
    }
    file.sync_all()
}

/// The base's own `config.json`, or one that says the same as its GGUF metadata.
fn config_json(base: &Checkpoint) -> Result<Map<String, Value>, TrainError> {
    let own = directory_of(base).map(|directory| directory.join(CONFIG));
    let mut config = match own {
        Some(path) => {
            let bytes = std::fs::read(&path).map_err(TrainError::read(&path))?;
            serde_json::from_slice(&bytes).expect("the base was loaded with this file")
        }
        None => described(base)?,
    };
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.to_owned(), "float16".into());
    Ok(config)
}

fn described(base: &Checkpoint) -> Result<Map<String, Value>, TrainError> {
    let config = base.config();
    let architecture = ARCHITECTURES.iter().find(|architecture| architecture.name == config.architecture);
    let architecture = architecture.expect("the base has a registered architecture");
    let scaling = match &config.rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Factors(_) => {
            let problem = "config.json has no words for this GGUF file's rope_freqs.weight; merge with the model's \
                           Hugging Face directory";
            return Err(TrainError::setting("--model", problem));
        }
    };
    let generation = base.generation_defaults();
    let described = json!({
        "architectures": [architecture.class_names[0]],
        "model_type": architecture.model_types[0],
        "attention_bias": config.has_qkv_bias && !architecture.has_qkv_bias,
        "bos_token_id": generation.bos_token_id,
        "eos_token_id": generation.eos_token_ids,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": scaling,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "vocab_size": config.vocab_size,
    });
    match described {
        Value::Object(config) => Ok(config),
        _ => unreachable!("it was written as an object"),
    }
}

/// The Hugging Face directory of the base, if it is one.
fn directory_of(base: &Checkpoint) -> Option<&Path> {
    let path = base.path();
    let directory = if path.is_dir() { path } else { path.parent()? };
    (base.gguf().is_none() && directory.join(CONFIG).exists()).then_some(directory)
}
