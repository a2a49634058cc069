//! The weights that a run begins with: fresh ones, or those of an adapter.

use forestream_burn::StreamWeights;
use forestream_burn::tensor::Device;
use forestream_model::DecoderConfig;
use forestream_model::streams::{Adapter, AdapterConfig, MAIN_LAYERS, STREAM_LAYERS};

use crate::adamw::Named;
use crate::{TrainError, inner_features};

/// Weights of the sizes of `adapter`: those of `initial`, or fresh ones without it.
///
/// The numbers of streams and of their layers may differ from those of `initial`, and an early exit may be new; parts that
/// `adapter` has no place for are left out. Low-rank changes of further layers begin at nothing, as fresh ones do. Narrow
/// streams among wide ones have zeros for the inner features that they do not keep.
///
/// # Errors
/// If `initial` lacks another tensor that `adapter` has.
pub(crate) fn initial_weights(
    initial: Option<Adapter>,
    adapter: &AdapterConfig,
    decoder: &DecoderConfig,
    seed: u64,
    device: &Device,
) -> Result<Named, TrainError> {
    let fresh = StreamWeights::init(adapter, decoder, seed, device).values();
    let Some(mut initial) = initial else { return Ok(fresh) };
    let has_no_exit = initial.config.streams.early_exit_rank.is_none();
    let first_layer = initial.config.first_msa_layer(decoder);
    let may_be_fresh = |name: &str| match layer_of(name) {
        Some(layer) => layer < first_layer,
        None => has_no_exit && name.starts_with("early_exit."),
    };
    set_num_streams(&mut initial, adapter.streams.num_streams);
    if adapter.streams.intermediate_size.is_none() && initial.config.streams.intermediate_size.take().is_some() {
        let width = decoder.intermediate_size;
        inner_features::widen(&mut initial.tensors, first_layer, &initial.inner_features, width);
    }
    let (wanted, given) = (adapter.tensors(decoder), initial.config.tensors(decoder));
    initial.tensors.retain(|name, _| wanted.iter().any(|spec| spec.name == *name));
    initial.tensors.extend(fresh.into_iter().filter(|(name, _)| may_be_fresh(name)));
    match wanted.into_iter().find(|spec| !given.contains(spec) && !may_be_fresh(&spec.name)) {
        None => Ok(initial.tensors),
        Some(spec) => {
            let (name, shape) = (spec.name, spec.shape);
            let remedy = match &initial.config.main_lora {
                _ if !name.starts_with(MAIN_LAYERS) => "leave out the flags for sizes, and it keeps its own".to_owned(),
                Some(main) => format!(
                    "it changes the model in its top {} layers, with rank {}; leave out --main-lora-layers and \
                     --main-lora-rank, and it keeps them",
                    main.num_layers, main.lora.rank
                ),
                None => {
                    "it leaves the model as it is; begin a joint run without it, and train its streams on afterwards, \
                         with --adapter for the model and --init-from for the streams"
                        .to_owned()
                }
            };
            Err(TrainError::setting("the adapter to start from", format!("it has no `{name}` of {shape:?}; {remedy}")))
        }
    }
}

/// The layer that a tensor of stream rows belongs to.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix(STREAM_LAYERS)?.strip_prefix('.')?.split('.').next()?.parse().ok()
}

/// Keeps the first `num_streams` streams; further ones begin as the last, which foresees what is nearest to theirs.
fn set_num_streams(adapter: &mut Adapter, num_streams: usize) {
    let given = std::mem::replace(&mut adapter.config.streams.num_streams, num_streams);
    if let Some(embeddings) = adapter.tensors.get_mut("stream_embeddings") {
        let width = embeddings.len() / given;
        let row = |stream: usize| &embeddings[width * stream.min(given - 1)..][..width];
        *embeddings = (0..num_streams).flat_map(row).copied().collect();
    }
}
