//! Which weights a decoder has, in which shapes, and where a checkpoint keeps them.

use std::collections::{HashMap, HashSet};

use super::gguf::ROPE_FACTORS;
use crate::weights::{Contents, Description};
use crate::{DecoderConfig, ModelError};

/// A weight's Hugging Face name, rows and columns; vectors have one row.
type WeightShape = (String, usize, usize);

/// Every weight of a decoder, one by one: a hostile layer count costs nothing until the first one is missing.
fn weight_shapes(config: &DecoderConfig) -> impl Iterator<Item = WeightShape> {
    let DecoderConfig { hidden_size, vocab_size, .. } = *config;
    let lm_head = (!config.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), vocab_size, hidden_size));
    std::iter::once(("model.embed_tokens.weight".to_owned(), vocab_size, hidden_size))
        .chain((0..config.num_hidden_layers).flat_map(|layer| layer_shapes(config, layer)))
        .chain([("model.norm.weight".to_owned(), 1, hidden_size)])
        .chain(lm_head)
}

fn layer_shapes(config: &DecoderConfig, layer: usize) -> Vec<WeightShape> {
    let DecoderConfig { hidden_size, intermediate_size, head_dim, .. } = *config;
    let q_size = config.num_attention_heads * head_dim;
    let kv_size = config.num_key_value_heads * head_dim;
    let mut shapes = vec![
        ("input_layernorm.weight", 1, hidden_size),
        ("self_attn.q_proj.weight", q_size, hidden_size),
        ("self_attn.k_proj.weight", kv_size, hidden_size),
        ("self_attn.v_proj.weight", kv_size, hidden_size),
        ("self_attn.o_proj.weight", hidden_size, q_size),
        ("post_attention_layernorm.weight", 1, hidden_size),
        ("mlp.gate_proj.weight", intermediate_size, hidden_size),
        ("mlp.up_proj.weight", intermediate_size, hidden_size),
        ("mlp.down_proj.weight", hidden_size, intermediate_size),
    ];
    if config.has_qkv_bias {
        shapes.extend([
            ("self_attn.q_proj.bias", 1, q_size),
            ("self_attn.k_proj.bias", 1, kv_size),
            ("self_attn.v_proj.bias", 1, kv_size),
        ]);
    }
    if config.has_qk_norm {
        shapes.extend([("self_attn.q_norm.weight", 1, head_dim), ("self_attn.k_norm.weight", 1, head_dim)]);
    }
    let named = |(name, rows, cols)| (format!("model.layers.{layer}.{name}"), rows, cols);
    shapes.into_iter().map(named).collect()
}

/// Finds every weight in the tensor table and checks its shape; a tensor without a place means another model.
pub(crate) fn place_tensors(contents: &Contents, config: &DecoderConfig) -> Result<HashMap<String, usize>, ModelError> {
    let is_gguf = matches!(contents.description(), Description::Gguf(_));
    let canonical = |name: &str| if is_gguf { from_gguf_name(name) } else { Some(name.to_owned()) };
    let tensors = contents.tensors();
    let found: HashMap<String, usize> =
        tensors.iter().enumerate().filter_map(|(index, tensor)| Some((canonical(&tensor.name)?, index))).collect();

    let mut indices = HashMap::new();
    for (name, rows, cols) in weight_shapes(config) {
        let Some(&index) = found.get(&name) else {
            return Err(ModelError::malformed(contents.path(), format!("the weight `{name}` is missing")));
        };
        let tensor = &tensors[index];
        // A matrix of one row is stored as such or as a vector.
        let expected = if rows == 1 { vec![cols] } else { vec![rows, cols] };
        if tensor.shape != expected && tensor.shape != [rows, cols] {
            let (stored, shape) = (&tensor.name, &tensor.shape);
            let problem =
                format!("the tensor `{stored}` has shape {shape:?}, but the configuration asks for {expected:?}");
            return Err(ModelError::malformed(contents.file_of(tensor), problem));
        }
        indices.insert(name, index);
    }
    refuse_unplaced(contents, config, &indices)?;
    Ok(indices)
}

fn refuse_unplaced(
    contents: &Contents,
    config: &DecoderConfig,
    indices: &HashMap<String, usize>,
) -> Result<(), ModelError> {
    let placed: HashSet<usize> = indices.values().copied().collect();
    let mut unplaced = contents.tensors().iter().enumerate().filter(|(index, _)| !placed.contains(index));
    match unplaced.find(|(_, tensor)| !is_ignorable(&tensor.name, config)) {
        Some((_, tensor)) => {
            let (name, architecture) = (&tensor.name, &config.architecture);
            let problem = format!("the tensor `{name}` has no place in the architecture {architecture}");
            Err(ModelError::unsupported(contents.file_of(tensor), problem))
        }
        None => Ok(()),
    }
}

/// Tensors that other programs leave behind, or that are read elsewhere.
fn is_ignorable(name: &str, config: &DecoderConfig) -> bool {
    name == ROPE_FACTORS
        || name.ends_with(".rotary_emb.inv_freq")
        || (name == "lm_head.weight" && config.tie_word_embeddings)
}

/// The Hugging Face name of a GGUF tensor. Source: the tensor names of the GGUF specification.
fn from_gguf_name(name: &str) -> Option<String> {
    let plain = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => "",
    };
    if !plain.is_empty() {
        return Some(plain.to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, kind) = part.rsplit_once('.')?;
    let module = match module {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}.{kind}"))
}
