//! Keys and values of one sequence: committed rows, and the provisional rows of the tree under verification.
//!
//! Rows live in *slots*. Slot `p < len()` is the committed row of position `p`; slot `len() + i` is the provisional row
//! of tree node `i`. `commit` moves the accepted path's rows down; a chain's rows are already where they belong. Slots
//! are stored in reference-counted blocks of [`BLOCK_LEN`], so that sequences can share a prefix.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::{DecoderConfig, ModelError, NodeId, TokenId, TokenTree};

/// Slots per block.
pub const BLOCK_LEN: usize = 32;

/// Channels of keys that are converted at once.
const CONVERTED_LEN: usize = 64;

/// Sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Decoder layers.
    pub num_layers: usize,
    /// Key and value heads of a layer.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl CacheShape {
    /// Those of a model.
    pub const fn of(config: &DecoderConfig) -> Self {
        Self {
            num_layers: config.num_hidden_layers,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        }
    }

    /// Bytes per position: keys and values of all layers in half precision.
    pub const fn bytes_per_position(self) -> usize {
        self.num_layers * self.num_kv_heads * self.head_dim * 2 * size_of::<f16>()
    }
}

/// 32 slots of all layers.
#[derive(Clone, Debug)]
struct Block {
    /// `[num_layers, num_kv_heads, head_dim, BLOCK_LEN]`: keys transposed, so that lanes run over positions.
    keys: Vec<f16>,
    /// `[num_layers, num_kv_heads, BLOCK_LEN, head_dim]`.
    values: Vec<f16>,
}

/// The key/value rows of one sequence.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    capacity: usize,
    blocks: Vec<Arc<Block>>,
    /// The tokens of committed rows.
    tokens: Vec<TokenId>,
    /// The tokens of provisional rows, by node.
    provisional: Vec<TokenId>,
}

impl KvCache {
    /// An empty cache for at most `capacity` positions; blocks are allocated as they are needed.
    pub fn new(shape: CacheShape, capacity: usize) -> Self {
        Self { shape, capacity, blocks: Vec::new(), tokens: Vec::new(), provisional: Vec::new() }
    }

    /// Number of committed rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing is committed.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The most positions that this cache may hold, provisional ones included.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The sizes of this cache.
    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// The tokens whose rows are committed.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Number of provisional rows.
    pub fn num_provisional(&self) -> usize {
        self.provisional.len()
    }

    /// Makes room for the nodes of `tree` as provisional rows; earlier provisional rows are dropped.
    ///
    /// # Errors
    /// [`ModelError::ContextFull`] when committed and provisional rows together exceed the capacity.
    pub fn reserve(&mut self, tree: &TokenTree) -> Result<(), ModelError> {
        let needed = self.len() + tree.len();
        if needed > self.capacity {
            return Err(ModelError::ContextFull { capacity: self.capacity, needed });
        }
        self.provisional.clear();
        self.provisional.extend(tree.node_ids().map(|node| tree.token(node)));
        while self.blocks.len() * BLOCK_LEN < needed {
            self.blocks.push(Arc::new(self.empty_block()));
        }
        for block in &mut self.blocks[self.tokens.len() / BLOCK_LEN..needed.div_ceil(BLOCK_LEN)] {
            Arc::make_mut(block); // a shared block that will be written becomes this sequence's own
        }
        Ok(())
    }

    /// Makes room for `num_rows` more provisional rows behind those of the tree; they belong to no node.
    ///
    /// # Errors
    /// [`ModelError::ContextFull`] when the capacity does not allow them; the cache is then unchanged.
    pub fn reserve_more(&mut self, num_rows: usize) -> Result<(), ModelError> {
        let needed = self.len() + self.provisional.len() + num_rows;
        if needed > self.capacity {
            return Err(ModelError::ContextFull { capacity: self.capacity, needed });
        }
        self.provisional.resize(self.provisional.len() + num_rows, 0);
        while self.blocks.len() * BLOCK_LEN < needed {
            self.blocks.push(Arc::new(self.empty_block()));
        }
        Ok(()) // blocks from the first provisional row on are unshared already
    }

    fn empty_block(&self) -> Block {
        let len = self.shape.num_layers * self.shape.num_kv_heads * self.shape.head_dim * BLOCK_LEN;
        Block { keys: vec![f16::ZERO; len], values: vec![f16::ZERO; len] }
    }

    /// Writes one slot of one layer. `key` and `value` are `[num_kv_heads, head_dim]`.
    ///
    /// # Panics
    /// If the slot was not reserved or a length is wrong.
    pub fn write(&mut self, layer_index: usize, slot: usize, key: &[f32], value: &[f32]) {
        let CacheShape { num_kv_heads, head_dim, .. } = self.shape;
        assert!(slot < self.len() + self.provisional.len(), "slot {slot} is not reserved");
        assert_eq!(key.len(), num_kv_heads * head_dim);
        assert_eq!(value.len(), num_kv_heads * head_dim);
        let block = Arc::get_mut(&mut self.blocks[slot / BLOCK_LEN]).expect("reserved blocks are unshared");
        let lane = slot % BLOCK_LEN;
        let layer = layer_index * num_kv_heads * head_dim;
        // Slices are converted eight at a time, single numbers by a call each.
        let mut converted = [f16::ZERO; CONVERTED_LEN];
        for (start, channels) in (layer..).step_by(CONVERTED_LEN).zip(key.chunks(CONVERTED_LEN)) {
            let converted = &mut converted[..channels.len()];
            converted.convert_from_f32_slice(channels);
            for (lanes, &channel) in block.keys[start * BLOCK_LEN..].chunks_exact_mut(BLOCK_LEN).zip(&*converted) {
                lanes[lane] = channel;
            }
        }
        for (head, channels) in value.chunks_exact(head_dim).enumerate() {
            let start = (layer + head * head_dim) * BLOCK_LEN + lane * head_dim;
            block.values[start..start + head_dim].convert_from_f32_slice(channels);
        }
    }

    /// Keys of block `block_index`, `[head_dim, BLOCK_LEN]`, and values, `[BLOCK_LEN, head_dim]`, of one head.
    pub fn block(&self, block_index: usize, layer_index: usize, head_index: usize) -> (&[f16], &[f16]) {
        let CacheShape { num_kv_heads, head_dim, .. } = self.shape;
        let len = head_dim * BLOCK_LEN;
        let start = (layer_index * num_kv_heads + head_index) * len;
        let block = &self.blocks[block_index];
        (&block.keys[start..start + len], &block.values[start..start + len])
    }

    /// Keeps the provisional rows of `path` as the next committed rows and drops the others.
    ///
    /// # Panics
    /// If `path` does not start at the root, is not increasing, or names a node without a row.
    pub fn commit(&mut self, path: &[NodeId]) {
        let len = self.len();
        for (offset, node) in path.iter().enumerate() {
            assert!(
                node.index() >= offset && node.index() < self.provisional.len(),
                "{node:?} cannot be at depth {offset}"
            );
            assert!(offset == 0 || path[offset - 1] < *node, "a path runs from the root downwards");
            if node.index() != offset {
                self.move_slot(len + node.index(), len + offset);
            }
            self.tokens.push(self.provisional[node.index()]);
        }
        assert!(path.first().is_none_or(|&node| node == NodeId::ROOT), "a path starts at the root");
        self.provisional.clear();
    }

    fn move_slot(&mut self, from: usize, to: usize) {
        let head_dim = self.shape.head_dim;
        let (from_lane, to_lane) = (from % BLOCK_LEN, to % BLOCK_LEN);
        let source = Arc::clone(&self.blocks[from / BLOCK_LEN]);
        if from / BLOCK_LEN == to / BLOCK_LEN {
            drop(source);
            let block = Arc::get_mut(&mut self.blocks[to / BLOCK_LEN]).expect("reserved blocks are unshared");
            for lanes in block.keys.chunks_exact_mut(BLOCK_LEN) {
                lanes[to_lane] = lanes[from_lane];
            }
            for rows in block.values.chunks_exact_mut(BLOCK_LEN * head_dim) {
                rows.copy_within(from_lane * head_dim..(from_lane + 1) * head_dim, to_lane * head_dim);
            }
            return;
        }
        let target = Arc::get_mut(&mut self.blocks[to / BLOCK_LEN]).expect("reserved blocks are unshared");
        for (to_lanes, from_lanes) in target.keys.chunks_exact_mut(BLOCK_LEN).zip(source.keys.chunks_exact(BLOCK_LEN)) {
            to_lanes[to_lane] = from_lanes[from_lane];
        }
        let rows = BLOCK_LEN * head_dim;
        for (to_rows, from_rows) in target.values.chunks_exact_mut(rows).zip(source.values.chunks_exact(rows)) {
            to_rows[to_lane * head_dim..][..head_dim].copy_from_slice(&from_rows[from_lane * head_dim..][..head_dim]);
        }
    }

    /// Drops provisional rows, and committed rows from `len` on. Does nothing to a shorter cache.
    pub fn truncate(&mut self, len: usize) {
        self.provisional.clear();
        self.tokens.truncate(len);
        self.blocks.truncate(self.tokens.len().div_ceil(BLOCK_LEN));
    }

    /// A cache of its own that shares this one's first `len` committed rows.
    ///
    /// # Panics
    /// If fewer rows are committed.
    pub fn fork(&self, len: usize) -> Self {
        assert!(len <= self.len(), "{len} rows are asked for, {} are committed", self.len());
        Self {
            shape: self.shape,
            capacity: self.capacity,
            blocks: self.blocks[..len.div_ceil(BLOCK_LEN)].to_vec(),
            tokens: self.tokens[..len].to_vec(),
            provisional: Vec::new(),
        }
    }

    /// Bytes of the blocks that this cache refers to, shared ones included.
    pub fn allocated_bytes(&self) -> usize {
        self.blocks.len() * BLOCK_LEN * self.shape.bytes_per_position()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More channels than are converted at once.
    const SHAPE: CacheShape = CacheShape { num_layers: 2, num_kv_heads: 2, head_dim: 40 };
    const NUM_CHANNELS: usize = SHAPE.num_kv_heads * SHAPE.head_dim;

    /// Writes a row whose numbers tell its layer, head, channel and `mark`.
    fn write_marked(cache: &mut KvCache, slot: usize, mark: f32) {
        for layer in 0..SHAPE.num_layers {
            let row: Vec<f32> = (0..NUM_CHANNELS).map(|i| mark + (layer * NUM_CHANNELS + i) as f32).collect();
            let value: Vec<f32> = row.iter().map(|x| -x).collect();
            cache.write(layer, slot, &row, &value);
        }
    }

    fn mark_at(cache: &KvCache, slot: usize) -> f32 {
        let mut marks = Vec::new();
        for layer in 0..SHAPE.num_layers {
            for head in 0..SHAPE.num_kv_heads {
                let (keys, values) = cache.block(slot / BLOCK_LEN, layer, head);
                for channel in 0..SHAPE.head_dim {
                    let expected = (layer * NUM_CHANNELS + head * SHAPE.head_dim + channel) as f32;
                    let key = keys[channel * BLOCK_LEN + slot % BLOCK_LEN].to_f32();
                    let value = values[slot % BLOCK_LEN * SHAPE.head_dim + channel].to_f32();
                    marks.extend([key - expected, -value - expected]);
                }
            }
        }
        assert!(marks.iter().all(|&mark| mark == marks[0]), "{marks:?}");
        marks[0]
    }

    fn cache_with(tokens: &[TokenId]) -> KvCache {
        let mut cache = KvCache::new(SHAPE, 200);
        let tree = TokenTree::chain(tokens);
        cache.reserve(&tree).unwrap();
        for (slot, &token) in tokens.iter().enumerate() {
            write_marked(&mut cache, slot, token as f32);
        }
        cache.commit(&tree.path(tree.last()));
        cache
    }

    #[test]
    fn commit_keeps_the_rows_of_a_path_across_a_block_border() {
        let mut cache = cache_with(&(0..30).collect::<Vec<_>>());
        let mut tree = TokenTree::root(40);
        let path: Vec<NodeId> = (41..45)
            .scan(NodeId::ROOT, |parent, token| {
                tree.push(*parent, 90 + token);
                *parent = tree.push(*parent, token);
                Some(*parent)
            })
            .collect();
        cache.reserve(&tree).unwrap();
        for node in tree.node_ids() {
            write_marked(&mut cache, 30 + node.index(), tree.token(node) as f32);
        }
        cache.commit(&[&[NodeId::ROOT], &path[..]].concat());
        assert_eq!(cache.tokens()[30..], [40, 41, 42, 43, 44]);
        for slot in 0..cache.len() {
            assert_eq!(mark_at(&cache, slot), cache.tokens()[slot] as f32);
        }
    }

    #[test]
    fn a_fork_shares_rows_until_one_side_writes() {
        let original = cache_with(&(0..40).collect::<Vec<_>>());
        let mut fork = original.fork(35);
        let tree = TokenTree::chain(&[99, 98]);
        fork.reserve(&tree).unwrap();
        write_marked(&mut fork, 35, 99.0);
        write_marked(&mut fork, 36, 98.0);
        fork.commit(&tree.path(tree.last()));
        assert_eq!((mark_at(&original, 35), mark_at(&fork, 35)), (35.0, 99.0));
        assert_eq!(mark_at(&fork, 34), 34.0);
        assert_eq!(fork.len(), 37);
    }

    #[test]
    fn a_full_cache_says_what_it_needs() {
        let mut cache = KvCache::new(SHAPE, 3);
        let error = cache.reserve(&TokenTree::chain(&[1, 2, 3, 4])).unwrap_err();
        assert!(matches!(error, ModelError::ContextFull { capacity: 3, needed: 4 }));
        assert_eq!(cache.num_provisional(), 0);
    }

    #[test]
    fn truncate_drops_rows_from_the_end() {
        let mut cache = cache_with(&(0..70).collect::<Vec<_>>());
        cache.truncate(33);
        assert_eq!(cache.len(), 33);
        assert_eq!(mark_at(&cache, 32), 32.0);
    }
}
