//! What the files of a checkpoint contain, before a model is made of it: tensors by name, and a description.
//!
//! `inspect` needs no more than this, so that it can also show files that this build cannot run. Knows the three kinds
//! of files, but no architecture.

use std::ops::Range;
use std::path::{Path, PathBuf};

use forestream_kernels::PackedMatrix;
use forestream_kernels::formats::Format;

use super::gguf::{self, GgufMetadata};
use super::json::JsonFile;
use super::llama2c::{self, Llama2cHeader};
use super::mmap::MappedFile;
use super::safetensors;
use super::storage::Storage;
use crate::ModelError;

/// A tensor as its file has it.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// The file's own name of the tensor.
    pub name: String,
    /// Sizes, rows first.
    pub shape: Vec<usize>,
    /// How the elements are stored.
    pub storage: Storage,
    pub(super) file_index: usize,
    pub(super) range: Range<usize>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in the file.
    pub fn num_bytes(&self) -> usize {
        self.range.len()
    }

    /// Bytes in memory once it is packed: some formats take more bits there than in the file.
    pub fn num_packed_bytes(&self) -> usize {
        match (self.storage, self.rows_and_cols()) {
            (Storage::Readable(format), (rows, cols)) if rows > 1 => PackedMatrix::packed_bytes(format, [rows, cols]),
            _ => self.num_bytes(),
        }
    }

    /// Rows and columns; a vector is one row, and leading sizes of a larger tensor count as rows.
    pub(super) fn rows_and_cols(&self) -> (usize, usize) {
        match self.shape.split_last() {
            Some((&cols, outer)) => (outer.iter().product(), cols),
            None => (1, 1),
        }
    }
}

/// What a checkpoint says about itself, by kind of file.
#[derive(Debug)]
pub(crate) enum Description {
    Gguf(GgufMetadata),
    HuggingFace { config: JsonFile, generation: Option<JsonFile> },
    Llama2c(Llama2cHeader),
}

/// The mapped files of a checkpoint.
#[derive(Debug)]
pub struct Contents {
    pub(super) path: PathBuf,
    pub(super) files: Vec<MappedFile>,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) description: Description,
}

impl Contents {
    /// Opens a `.gguf` file, a Hugging Face directory (or the `.safetensors` file in it), or a llama2.c `.bin` file.
    ///
    /// # Errors
    /// What is missing, malformed or not readable by this build, with the file and the place.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let extension = path.extension().unwrap_or_default();
        if path.is_dir() {
            return safetensors::open(path);
        }
        if extension == "safetensors" {
            return safetensors::open_file(path);
        }
        let file = MappedFile::open(path)?;
        if extension == "bin" && !file.bytes().starts_with(&gguf::MAGIC) {
            let (header, tensors) = llama2c::parse(path, file.bytes())?;
            return Ok(Self::of_one_file(file, tensors, Description::Llama2c(header)));
        }
        let (metadata, tensors) = gguf::parse(path, file.bytes())?;
        Ok(Self::of_one_file(file, tensors, Description::Gguf(metadata)))
    }

    fn of_one_file(file: MappedFile, tensors: Vec<TensorInfo>, description: Description) -> Self {
        Self { path: file.path().to_owned(), files: vec![file], tensors, description }
    }

    /// The path that was opened: a file, or a Hugging Face directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Size of all weight files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes().len() as u64).sum()
    }

    /// The metadata of a GGUF file, tokenizer included; `None` for other kinds.
    pub fn gguf(&self) -> Option<&GgufMetadata> {
        match &self.description {
            Description::Gguf(metadata) => Some(metadata),
            _ => None,
        }
    }

    /// Keys and values for people: the metadata of a GGUF file, or `config.json`; long values are shortened.
    pub fn printable_metadata(&self) -> Vec<(String, String)> {
        match &self.description {
            Description::Gguf(metadata) => {
                metadata.iter().map(|(key, value)| (key.to_owned(), value.to_string())).collect()
            }
            Description::HuggingFace { config, .. } => config.printable(),
            Description::Llama2c(header) => header.printable(),
        }
    }

    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    /// The tensor with the file's own name `name`.
    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    pub(crate) fn bytes_of(&self, tensor: &TensorInfo) -> &[u8] {
        &self.files[tensor.file_index].bytes()[tensor.range.clone()]
    }

    pub(crate) fn file_of(&self, tensor: &TensorInfo) -> &Path {
        self.files[tensor.file_index].path()
    }

    pub(super) fn release(&self) {
        self.files.iter().for_each(MappedFile::release);
    }

    /// All elements of `tensor`.
    ///
    /// # Errors
    /// A format that this build cannot read.
    pub(crate) fn to_f32(&self, tensor: &TensorInfo) -> Result<Vec<f32>, ModelError> {
        let mut values = vec![0.0; tensor.num_elements()];
        self.format_of(tensor)?.dequantize_row(self.bytes_of(tensor), &mut values);
        Ok(values)
    }

    /// The format of `tensor`.
    ///
    /// # Errors
    /// One that this build cannot read.
    pub(super) fn format_of(&self, tensor: &TensorInfo) -> Result<Format, ModelError> {
        tensor.storage.format().ok_or_else(|| {
            let (name, storage) = (&tensor.name, tensor.storage);
            let known = Format::ALL.map(Format::name).join(", ");
            let problem =
                format!("tensor `{name}` is stored as {storage}, which this build cannot read; take one of {known}");
            ModelError::unsupported(self.file_of(tensor), problem)
        })
    }
}
