//! GGUF files, versions 2 and 3: header, metadata and tensor table.
//!
//! Every count, length, offset and dimension is checked against the file before it is used, so that a hostile file can
//! neither panic nor allocate more than a small multiple of its own size. Knows no architecture. Source: the GGUF
//! specification of the ggml project.

mod cursor;
mod metadata;
mod value;

use std::collections::HashSet;
use std::path::Path;

use self::cursor::Cursor;
pub use self::metadata::GgufMetadata;
use self::metadata::MIN_PAIR_BYTES;
pub use self::value::{GgufArray, GgufStrings, GgufValue};
use super::contents::TensorInfo;
use super::storage::Storage;
use crate::ModelError;

/// The first four bytes of every file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// The fewest bytes of a tensor's entry: name length, number of dimensions, one dimension, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;
/// Most entries that memory is reserved for before they have been read.
const RESERVED: usize = 4096;
/// Where no `general.alignment` is given.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Reads everything in front of the tensor data; the tensors' ranges lie inside `bytes` and do not overlap.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<(GgufMetadata, Vec<TensorInfo>), ModelError> {
    let mut cursor = Cursor::new(path, bytes);
    check_version(&mut cursor)?;
    let num_tensors = cursor.count("the tensor count", MIN_TENSOR_BYTES)?;
    let num_pairs = cursor.count("the metadata count", MIN_PAIR_BYTES)?;
    let metadata = GgufMetadata::read(&mut cursor, num_pairs)?;
    check_not_split(&metadata)?;
    let alignment = alignment(&metadata)?;

    let mut entries = Vec::with_capacity(num_tensors.min(RESERVED));
    for index in 0..num_tensors {
        entries.push(TensorEntry::read(&mut cursor, index)?);
    }
    let data_start = (cursor.position() as u64).checked_next_multiple_of(alignment);
    let data_start = data_start.ok_or_else(|| cursor.malformed("the tensor data starts beyond any file"))?;
    let tensors = entries.into_iter().map(|entry| entry.locate(&cursor, data_start, alignment, bytes.len()));
    let tensors: Vec<TensorInfo> = tensors.collect::<Result<_, _>>()?;
    check_distinct(&cursor, &tensors)?;
    Ok((metadata, tensors))
}

fn check_version(cursor: &mut Cursor<'_>) -> Result<(), ModelError> {
    let magic: [u8; 4] = cursor.array("the magic number")?;
    let swapped = magic.iter().rev().eq(&MAGIC);
    if magic != MAGIC && !swapped {
        let shown = magic.escape_ascii();
        return Err(cursor.malformed(format!("not a GGUF file: it starts with \"{shown}\" instead of \"GGUF\"")));
    }
    let version = cursor.u32("the version")?;
    let problem = match version {
        // A small number read in the wrong byte order has its low half empty.
        _ if swapped || (version != 0 && version.trailing_zeros() >= 16) => {
            "big-endian GGUF; convert it to little-endian".into()
        }
        2 | 3 => return Ok(()),
        _ => format!("GGUF version {version}; versions 2 and 3 are supported, so convert the model again"),
    };
    Err(ModelError::unsupported(cursor.path(), problem))
}

fn check_not_split(metadata: &GgufMetadata) -> Result<(), ModelError> {
    match metadata.integer("split.count")? {
        Some(parts @ 2..) => {
            let problem = format!("one of {parts} parts of a split model; merge them with llama-gguf-split --merge");
            Err(ModelError::unsupported(metadata.path(), problem))
        }
        _ => Ok(()),
    }
}

fn alignment(metadata: &GgufMetadata) -> Result<u64, ModelError> {
    let key = "general.alignment";
    let alignment = metadata.integer(key)?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() {
        return Ok(alignment);
    }
    let problem = format!("metadata `{key}`: expected a power of two, got {alignment}");
    Err(ModelError::malformed(metadata.path(), problem))
}

/// A row of the tensor table as it stands in the file.
struct TensorEntry<'a> {
    name: &'a str,
    /// Rows first, the reverse of the file's order.
    shape: Vec<u64>,
    type_id: u32,
    offset: u64,
}

impl<'a> TensorEntry<'a> {
    fn read(cursor: &mut Cursor<'a>, index: usize) -> Result<Self, ModelError> {
        let name = cursor.string(format_args!("the name of tensor {index}"))?;
        let num_dimensions = cursor.u32(format_args!("the number of dimensions of tensor `{name}`"))?;
        if !(1..=MAX_DIMENSIONS).contains(&num_dimensions) {
            return Err(cursor.malformed(format!(
                "tensor `{name}` has {num_dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}"
            )));
        }
        let mut shape = Vec::with_capacity(num_dimensions as usize);
        for _ in 0..num_dimensions {
            shape.push(cursor.u64(format_args!("a dimension of tensor `{name}`"))?);
        }
        shape.reverse();
        let type_id = cursor.u32(format_args!("the type of tensor `{name}`"))?;
        let offset = cursor.u64(format_args!("the offset of tensor `{name}`"))?;
        Ok(Self { name, shape, type_id, offset })
    }

    /// Checks type, size and place, and turns the entry into a range of the file.
    fn locate(
        self,
        cursor: &Cursor<'_>,
        data_start: u64,
        alignment: u64,
        file_len: usize,
    ) -> Result<TensorInfo, ModelError> {
        let Self { name, shape, type_id, offset } = self;
        let storage = Storage::from_ggml_type(type_id).ok_or_else(|| {
            let problem = format!("tensor `{name}` has the unknown type {type_id}, so that its size is not known");
            ModelError::unsupported(cursor.path(), problem)
        })?;
        let sizes: Option<Vec<usize>> = shape.iter().map(|&size| usize::try_from(size).ok()).collect();
        let sized = sizes.and_then(|shape| Some((byte_len(&shape, storage)?, shape)));
        let Some((len, shape)) = sized else {
            let block_len = storage.block_len();
            return Err(cursor.malformed(format!(
                "tensor `{name}` has the impossible shape {shape:?} for {storage}: sizes must not be zero or overflow, \
                 and the last one must be a multiple of {block_len}"
            )));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(cursor.malformed(format!(
                "tensor `{name}` has offset {offset}, which is not a multiple of the alignment {alignment}"
            )));
        }
        let start = data_start.checked_add(offset).and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        match range {
            Some(range) if range.end <= file_len => {
                Ok(TensorInfo { name: name.to_owned(), shape, storage, file_index: 0, range })
            }
            _ => Err(cursor.malformed(format!(
                "truncated or corrupt: tensor `{name}` needs {len} bytes at {data_start} + {offset}, \
                 but the file has {file_len} bytes"
            ))),
        }
    }
}

/// Bytes of a tensor; `None` where a size is zero, the product overflows, or a row is not a whole number of blocks.
fn byte_len(shape: &[usize], storage: Storage) -> Option<usize> {
    let (&cols, outer) = shape.split_last()?;
    let rows = outer.iter().try_fold(1_usize, |rows, &size| rows.checked_mul(size))?;
    let len = storage.row_bytes(cols)?.checked_mul(rows)?;
    (len > 0).then_some(len)
}

fn check_distinct(cursor: &Cursor<'_>, tensors: &[TensorInfo]) -> Result<(), ModelError> {
    let mut names = HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        return Err(cursor.malformed(format!("the tensor `{}` occurs twice", twice.name)));
    }
    let mut by_start: Vec<&TensorInfo> = tensors.iter().collect();
    by_start.sort_by_key(|tensor| tensor.range.start);
    match by_start.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        Some(pair) => Err(cursor.malformed(format!(
            "tensors `{}` (bytes {:?}) and `{}` (bytes {:?}) overlap",
            pair[0].name, pair[0].range, pair[1].name, pair[1].range
        ))),
        None => Ok(()),
    }
}
