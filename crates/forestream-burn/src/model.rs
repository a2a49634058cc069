//! The whole decoder over tensors: a target model on any device that Burn knows, by the engine's interface.
//!
//! A row's numbers must not depend on what else is in the pass, but a product's order of additions depends on its shape.
//! So all products have fixed shapes: rows are computed in tiles of [`TILE_LEN`], the last one padded, and each row
//! attends alone, to a context padded by its own position. Keys and values live in the engine's cache, in half precision.
//! It is a reference and a source of boundary states, not a fast engine. Its streams are in `model_streams.rs`.

use std::ops::Range;

use burn_tensor::{Device, Tensor, TensorData};
use forestream_model::streams::Streams;
use forestream_model::{
    BLOCK_LEN, CacheShape, Checkpoint, DecoderConfig, Hidden, KvCache, Model, ModelError, NodeId, Row, TokenId,
};

use crate::BurnError;
use crate::attention::{Block, Plane, Sharing, attend_main};
use crate::cache_rows::keys_and_values;
use crate::changes::Changes;
use crate::layer::{Layer, rms_norm};
use crate::load::{Loader, Table};
use crate::model_streams::ModelStreams;
use crate::rotation::Rotation;

/// Rows of one product.
const TILE_LEN: usize = 16;

/// A Llama-family decoder over Burn tensors.
#[derive(Clone)]
pub struct BurnModel {
    pub(crate) config: DecoderConfig,
    pub(crate) device: Device,
    pub(crate) embeddings: Table,
    pub(crate) layers: Vec<Layer>,
    /// `[1, hidden]`.
    pub(crate) norm: Tensor<2>,
    /// `[vocab_size, hidden]`.
    pub(crate) lm_head: Tensor<2>,
    pub(crate) frequencies: Vec<f64>,
    /// The layer before which output rows' states are kept.
    pub(crate) boundary: Option<usize>,
    pub(crate) streams: Option<ModelStreams>,
}

impl BurnModel {
    /// Decodes all weights of `checkpoint` to single precision and puts them on `device`.
    ///
    /// # Errors
    /// A weight that is missing or has the wrong shape.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self, BurnError> {
        let config = checkpoint.config().clone();
        let device = device.clone().without_autodiff();
        let loader = Loader { checkpoint, device: &device };
        let embeddings = loader.embeddings()?;
        let lm_head = loader.upload_rows(&loader.lm_head(&embeddings)?, 0..config.vocab_size as TokenId);
        let layers = (0..config.num_hidden_layers).map(|index| loader.layer(index)).collect::<Result<_, _>>()?;
        let norm = loader.vector("model.norm.weight", config.hidden_size)?;
        let frequencies = config.rope.frequencies(config.head_dim);
        checkpoint.release();
        Ok(Self { config, device, embeddings, layers, norm, lm_head, frequencies, boundary: None, streams: None })
    }

    /// Keeps the states of output rows before layer `layer_index`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn keep_boundary(&mut self, layer_index: usize) {
        assert!(layer_index < self.layers.len(), "layer {layer_index} of {}", self.layers.len());
        self.boundary = Some(layer_index);
    }

    fn check(&self, rows: &[Row<'_>]) -> Result<(), ModelError> {
        let vocab_size = self.config.vocab_size;
        for row in rows {
            let mut tokens = row.tree.node_ids().map(|node| row.tree.token(node));
            if let Some(token) = tokens.find(|&token| token as usize >= vocab_size) {
                return Err(ModelError::TokenOutOfRange { token, vocab_size });
            }
            let (capacity, needed) = (row.cache.capacity(), row.cache.len() + row.tree.len());
            if needed > capacity {
                return Err(ModelError::ContextFull { capacity, needed });
            }
        }
        Ok(())
    }

    /// Rows in tiles, the last one padded with zeros.
    fn tiles(&self, values: &[f32], width: usize) -> Vec<Tensor<2>> {
        let tile = |rows: &[f32]| {
            let mut rows = rows.to_vec();
            rows.resize(TILE_LEN * width, 0.0);
            Tensor::from_data(TensorData::new(rows, [TILE_LEN, width]), &self.device)
        };
        values.chunks(TILE_LEN * width).map(tile).collect()
    }
}

impl std::fmt::Debug for BurnModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BurnModel").field("config", &self.config).field("device", &self.device).finish_non_exhaustive()
    }
}

impl Model for BurnModel {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn new_cache(&self, capacity: usize) -> KvCache {
        KvCache::new(CacheShape::of(&self.config), capacity)
    }

    fn forward(&self, rows: &mut [Row<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        self.check(rows)?;
        for row in rows.iter_mut() {
            row.cache.reserve(row.tree)?;
        }
        let width = self.config.hidden_size;
        hidden.reset(rows, width);
        let nodes = nodes_of(rows);
        let outputs: Vec<usize> = (0..nodes.len()).filter(|&index| nodes[index].is_output).collect();
        let tokens = nodes.iter().map(|node| node.token);
        let mut tiles = self.tiles(&self.embeddings.rows(tokens), width);
        let rotations = self.rotations(&nodes);
        for (index, layer) in self.layers.iter().enumerate() {
            if self.boundary == Some(index) {
                copy_rows(&tiles, &outputs, hidden.reset_boundary());
            }
            let queries = self.store(index, &tiles, &rotations, &nodes, rows);
            let attended = self.attend(index, &queries, &nodes, rows);
            let finish = |(tile, attended)| layer.finish(tile, &attended, &Changes::none());
            tiles = tiles.into_iter().zip(attended).map(finish).collect();
        }
        let norm = |tile: Tensor<2>| rms_norm(tile, Some(&self.norm), self.config.rms_norm_eps);
        let tiles: Vec<_> = tiles.into_iter().map(norm).collect();
        copy_rows(&tiles, &outputs, hidden.states_mut());
        if let Some(streams) = &self.streams {
            streams.end_improbable(rows, hidden);
        }
        Ok(())
    }

    fn logits(&self, hidden: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>) {
        let num_logits = rows.len() * self.config.vocab_size;
        logits.clear();
        for tile in self.tiles(hidden.states(rows), self.config.hidden_size) {
            logits.extend(values_of(tile.matmul(self.lm_head.clone().transpose())));
        }
        logits.truncate(num_logits);
    }

    fn streams(&self) -> Option<&dyn Streams> {
        self.streams.as_ref().map(|streams| streams as &dyn Streams)
    }
}

/// A node of a pass.
struct Node {
    sequence: usize,
    token: TokenId,
    /// Its slot in the cache.
    slot: usize,
    position: usize,
    /// The slots of its path after the committed rows; `None` where those follow them one by one.
    scattered: Option<Vec<usize>>,
    is_output: bool,
}

fn nodes_of(rows: &[Row<'_>]) -> Vec<Node> {
    let mut nodes = Vec::new();
    for (sequence, row) in rows.iter().enumerate() {
        let (tree, committed) = (row.tree, row.cache.len());
        let (chain_len, outputs) = (tree.chain_len(), row.outputs.nodes(tree.len()));
        let path = |node: NodeId| tree.path(node).iter().map(|node| committed + node.index()).collect();
        nodes.extend(tree.node_ids().map(|node| Node {
            sequence,
            token: tree.token(node),
            slot: committed + node.index(),
            position: committed + tree.depth(node),
            scattered: (node.index() >= chain_len).then(|| path(node)),
            is_output: outputs.contains(&node.index()),
        }));
    }
    nodes
}

impl BurnModel {
    /// The rotation of each tile.
    fn rotations(&self, nodes: &[Node]) -> Vec<Rotation> {
        let rotation = |nodes: &[Node]| {
            let mut positions: Vec<usize> = nodes.iter().map(|node| node.position).collect();
            positions.resize(TILE_LEN, 0);
            Rotation::new(&positions, &self.frequencies, &self.device)
        };
        nodes.chunks(TILE_LEN).map(rotation).collect()
    }

    /// Writes keys and values to the caches; the queries of each tile, `[kv_heads, TILE_LEN, group, head_dim]`.
    fn store(
        &self,
        layer_index: usize,
        tiles: &[Tensor<2>],
        rotations: &[Rotation],
        nodes: &[Node],
        rows: &mut [Row<'_>],
    ) -> Vec<Tensor<4>> {
        let mut queries = Vec::new();
        for ((tile, rotation), nodes) in tiles.iter().zip(rotations).zip(nodes.chunks(TILE_LEN)) {
            let heads = self.layers[layer_index].heads(tile, rotation, &Changes::none());
            let (keys, values) = (values_of(heads.keys), values_of(heads.values));
            let width = keys.len() / TILE_LEN;
            for ((node, key), value) in nodes.iter().zip(keys.chunks_exact(width)).zip(values.chunks_exact(width)) {
                rows[node.sequence].cache.write(layer_index, node.slot, key, value);
            }
            queries.push(Sharing::new(&self.config).queries(heads.queries, 1));
        }
        queries
    }

    /// What each tile's rows attended to, `[TILE_LEN, query heads * head_dim]`.
    fn attend(&self, layer: usize, queries: &[Tensor<4>], nodes: &[Node], rows: &[Row<'_>]) -> Vec<Tensor<2>> {
        let sharing = Sharing::new(&self.config);
        let mut chain: Option<((usize, usize), Plane)> = None; // neighbors in a chain see one plane
        let mut tiles = Vec::new();
        for (queries, nodes) in queries.iter().zip(nodes.chunks(TILE_LEN)) {
            let mut attended = Vec::new();
            for (row, node) in nodes.iter().enumerate() {
                let context = (node.position + 1).next_multiple_of(BLOCK_LEN);
                let cache = &*rows[node.sequence].cache;
                let key = (node.sequence, context);
                let plane = match (&node.scattered, &chain) {
                    (None, Some((of, plane))) if *of == key => plane.clone(),
                    (scattered, _) => self.plane(cache, layer, scattered.as_deref(), context),
                };
                let block = Block::single(row, node.position, context, &self.device);
                attended.push(attend_main(queries, &plane, &[block]));
                chain = node.scattered.is_none().then_some((key, plane));
            }
            let padding = TILE_LEN - nodes.len();
            if padding > 0 {
                attended.push(queries.clone().narrow(1, 0, padding).zeros_like());
            }
            tiles.push(sharing.rows(Tensor::cat(attended, 1)));
        }
        tiles
    }

    /// Keys and values of committed rows and of a path after them, padded with zeros to `context` rows.
    fn plane(&self, cache: &KvCache, layer: usize, path: Option<&[usize]>, context: usize) -> Plane {
        let (kv_heads, head_dim) = (self.config.num_key_value_heads, self.config.head_dim);
        let committed = cache.len();
        let slots: Vec<usize> = match path {
            None => (0..context.min(committed + cache.num_provisional())).collect(),
            Some(path) => (0..committed).chain(path.iter().copied()).collect(),
        };
        let [keys, values] = keys_and_values(cache, layer, &slots, context);
        let upload = |values| Tensor::from_data(TensorData::new(values, [kv_heads, context, head_dim]), &self.device);
        Plane::new(upload(keys), upload(values))
    }
}

/// Copies rows of the tiles to `to`, one after another.
fn copy_rows(tiles: &[Tensor<2>], rows: &[usize], to: &mut [f32]) {
    if rows.is_empty() {
        return;
    }
    let values: Vec<f32> = tiles.iter().cloned().flat_map(values_of).collect();
    let width = to.len() / rows.len();
    for (to, &row) in to.chunks_exact_mut(width).zip(rows) {
        to.copy_from_slice(&values[row * width..][..width]);
    }
}

pub(crate) fn values_of<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_as::<f32>().try_into_vec().expect("as many elements of that type as were asked for")
}
