//! A model on disk that this build can run: configuration, and weights by their Hugging Face names.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use forestream_kernels::formats::Format;
use forestream_kernels::{PackedMatrix, RowOrder};

use super::contents::{Contents, TensorInfo};
use super::fingerprint;
use super::gguf::GgufMetadata;
use crate::architectures::{self, GenerationDefaults};
use crate::{DecoderConfig, ModelError, RopeStyle};

/// A model on disk; every weight that the configuration asks for is present in the right shape.
#[derive(Debug)]
pub struct Checkpoint {
    contents: Contents,
    config: DecoderConfig,
    generation_defaults: GenerationDefaults,
    /// Hugging Face names to places in the tensor table.
    indices: HashMap<String, usize>,
    /// What matrices are converted to when they are read.
    matrix_format: Option<Format>,
}

impl Checkpoint {
    /// Opens a `.gguf` file, a Hugging Face directory (or the `.safetensors` file in it), or a llama2.c `.bin` file.
    ///
    /// # Errors
    /// What is missing, malformed or not supported, with the file and the place.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::from_contents(Contents::open(path)?)
    }

    /// Makes a model of files that are open already.
    ///
    /// # Errors
    /// An unknown architecture, weights that do not fit the configuration, or a format that this build cannot read.
    pub fn from_contents(contents: Contents) -> Result<Self, ModelError> {
        let (config, generation_defaults) = architectures::interpret(&contents)?;
        let indices = architectures::place_tensors(&contents, &config)?;
        let in_file_order: BTreeSet<usize> = indices.values().copied().collect();
        for index in in_file_order {
            contents.format_of(&contents.tensors()[index])?;
        }
        Ok(Self { contents, config, generation_defaults, indices, matrix_format: None })
    }

    /// Converts matrices to `format` when they are read; vectors (norms, biases) stay as they are.
    ///
    /// Weights that the file holds in another quantized format lose accuracy a second time.
    ///
    /// # Errors
    /// No encoder for `format`, or a matrix whose rows are not a whole number of its blocks.
    pub fn quantized(mut self, format: Format) -> Result<Self, ModelError> {
        if !format.is_encodable() {
            let encodable: Vec<&str> =
                Format::ALL.into_iter().filter(|format| format.is_encodable()).map(Format::name).collect();
            let problem = format!("cannot quantize to {format}; choose one of {}", encodable.join(", "));
            return Err(ModelError::unsupported(self.path(), problem));
        }
        for tensor in self.indices.values().map(|&index| &self.contents.tensors()[index]) {
            let (_, cols) = tensor.rows_and_cols();
            if is_matrix(tensor) && !cols.is_multiple_of(format.block_len()) {
                let (name, block_len) = (&tensor.name, format.block_len());
                let problem = format!(
                    "cannot quantize `{name}` to {format}: its rows have {cols} elements, which is not a multiple of \
                     {block_len}; choose a format with smaller blocks"
                );
                return Err(ModelError::unsupported(self.path(), problem));
            }
        }
        self.matrix_format = Some(format);
        Ok(self)
    }

    /// The format of [`Checkpoint::quantized`], if it was asked for.
    pub fn matrix_format(&self) -> Option<Format> {
        self.matrix_format
    }

    /// Sizes and switches.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// What the model's authors suggest for generation.
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        &self.generation_defaults
    }

    /// The files behind the model: tensor table, metadata, sizes.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The path that was opened: a file, or a Hugging Face directory.
    pub fn path(&self) -> &Path {
        self.contents.path()
    }

    /// Size of all weight files.
    pub fn file_bytes(&self) -> u64 {
        self.contents.file_bytes()
    }

    /// The metadata of a GGUF file, tokenizer included; `None` for other kinds.
    pub fn gguf(&self) -> Option<&GgufMetadata> {
        self.contents.gguf()
    }

    /// Whether there is a weight of this Hugging Face name.
    pub fn has(&self, name: &str) -> bool {
        self.indices.contains_key(name)
    }

    /// The Hugging Face names of all weights, sorted.
    pub fn weight_names(&self) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self.indices.keys().map(String::as_str).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// The weight with the Hugging Face name `name`, for example `model.layers.3.self_attn.q_proj.weight`.
    ///
    /// # Errors
    /// No weight of that name, or a value that the format of [`Checkpoint::quantized`] cannot hold.
    pub fn weight(&self, name: &str) -> Result<Weight<'_>, ModelError> {
        let Some(&index) = self.indices.get(name) else {
            return Err(ModelError::malformed(self.path(), format!("the weight `{name}` is missing")));
        };
        let tensor = &self.contents.tensors()[index];
        let weight = Weight::of(&self.contents, tensor, name.to_owned())?;
        match self.matrix_format {
            Some(format) if is_matrix(tensor) && format != weight.format => weight.converted(format),
            _ => Ok(weight),
        }
    }

    /// The row of a query or key projection that belongs at `row` where rotation pairs halves of a head; the same for
    /// their biases, and for head norms.
    pub fn rotary_row(&self, row: usize) -> usize {
        self.rotary_order().source(row)
    }

    /// The engine rotates halves; rows of interleaved files are put into that order.
    pub(crate) fn rotary_order(&self) -> RowOrder {
        match self.config.rope.style {
            RopeStyle::Halves => RowOrder::Same,
            RopeStyle::Interleaved => RowOrder::HalvesFromInterleaved { head_dim: self.config.head_dim },
        }
    }

    /// Gives the memory of all pages read so far back to the system; may be called again and again while packing.
    pub fn release(&self) {
        self.contents.release();
    }

    /// A SHA-256 in hexadecimal that tells base models apart: over the sizes, the tensor table and samples of weights.
    ///
    /// Reads at most a few MiB. The path and [`Checkpoint::quantized`] play no part.
    pub fn fingerprint(&self) -> String {
        fingerprint::of(&self.contents, &self.config)
    }
}

fn is_matrix(tensor: &TensorInfo) -> bool {
    tensor.shape.len() == 2
}

/// A weight as it is stored; vectors have one row.
#[derive(Clone, Debug)]
pub struct Weight<'a> {
    /// The Hugging Face name.
    pub name: String,
    /// How the elements are stored.
    pub format: Format,
    /// Output features, or 1 for a vector.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// All rows, one after another; owned where they were converted.
    pub bytes: Cow<'a, [u8]>,
    file: &'a Path,
}

impl<'a> Weight<'a> {
    /// Bytes in memory once it is packed as a matrix.
    pub fn num_packed_bytes(&self) -> usize {
        PackedMatrix::packed_bytes(self.format, [self.rows, self.cols])
    }

    fn of(contents: &'a Contents, tensor: &TensorInfo, name: String) -> Result<Self, ModelError> {
        let (rows, cols) = tensor.rows_and_cols();
        let bytes = Cow::Borrowed(contents.bytes_of(tensor));
        Ok(Self { name, format: contents.format_of(tensor)?, rows, cols, bytes, file: contents.file_of(tensor) })
    }

    /// The weight itself, if it has this shape.
    ///
    /// # Errors
    /// Expected and actual shape, with weight and file.
    pub fn expect_shape(self, rows: usize, cols: usize) -> Result<Self, ModelError> {
        if (self.rows, self.cols) == (rows, cols) {
            return Ok(self);
        }
        let problem =
            format!("the weight `{}` should be {rows} x {cols}, but it is {} x {}", self.name, self.rows, self.cols);
        Err(ModelError::malformed(self.file, problem))
    }

    /// All elements, `[rows, cols]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        self.format.dequantize_row(&self.bytes, &mut values);
        values
    }

    fn row_bytes(&self) -> usize {
        self.bytes.len() / self.rows
    }

    fn converted(self, format: Format) -> Result<Self, ModelError> {
        let mut row = vec![0.0; self.cols];
        let mut bytes = Vec::new();
        for stored in self.bytes.chunks_exact(self.row_bytes()) {
            self.format.dequantize_row(stored, &mut row);
            format.quantize_row(&row, &mut bytes).map_err(|error| {
                let problem = format!("cannot quantize `{}` to {format}: {error}", self.name);
                ModelError::unsupported(self.file, problem)
            })?;
        }
        Ok(Self { format, bytes: Cow::Owned(bytes), ..self })
    }
}
