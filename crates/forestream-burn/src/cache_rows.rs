//! Keys and values of chosen rows of the engine's cache, as attention over tensors takes them.

use forestream_model::{BLOCK_LEN, KvCache};

/// Keys and values of the rows in `slots` in one layer, padded with zeros to `context` rows.
///
/// # Shapes
/// `[kv_heads, context, head_dim]` each.
pub(crate) fn keys_and_values(cache: &KvCache, layer: usize, slots: &[usize], context: usize) -> [Vec<f32>; 2] {
    let shape = cache.shape();
    let (kv_heads, head_dim) = (shape.num_kv_heads, shape.head_dim);
    let size = kv_heads * context * head_dim;
    let (mut keys, mut values) = (Vec::with_capacity(size), Vec::with_capacity(size));
    for head in 0..kv_heads {
        for &slot in slots {
            let (block_keys, block_values) = cache.block(slot / BLOCK_LEN, layer, head);
            let lane = slot % BLOCK_LEN;
            keys.extend((0..head_dim).map(|channel| block_keys[channel * BLOCK_LEN + lane].to_f32()));
            values.extend(block_values[lane * head_dim..][..head_dim].iter().map(|x| x.to_f32()));
        }
        keys.resize((head + 1) * context * head_dim, 0.0);
        values.resize((head + 1) * context * head_dim, 0.0);
    }
    [keys, values]
}
