//! The rows of a pass: which sequence, position and slots each node has.

use std::ops::{Range, RangeInclusive};

use forestream_kernels::Visible;

use crate::{NodeId, Row};

/// Nodes that share one sweep over the cache: with fewer its loads are not shared, more only lengthen one thread's work.
const NODES_PER_TILE: RangeInclusive<usize> = 2..=8;

/// All nodes of a pass, sequence after sequence. Buffers are reused between passes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Rows of each sequence.
    pub(super) sequences: Vec<Range<usize>>,
    /// Slot of each row in its sequence's cache.
    pub(super) slots: Vec<usize>,
    /// Position of each row.
    pub(super) positions: Vec<usize>,
    /// What each row may attend to.
    pub(super) visible: Vec<Visible>,
    /// Slots that the visible sets refer to.
    pub(super) scattered: Vec<u32>,
    /// Of each row of a stream pass: its stream, counted from 0. Empty in other passes.
    pub(super) streams: Vec<usize>,
    /// Rows that will be asked for logits.
    pub(super) outputs: Vec<usize>,
    /// Attention work: sequence index and rows, about [`NODES_PER_TILE`] of them.
    pub(super) tiles: Vec<(usize, Range<usize>)>,
    path: Vec<NodeId>,
}

impl Batch {
    /// Describes `rows`.
    pub(super) fn reset(&mut self, rows: &[Row<'_>]) {
        self.clear();
        for row in rows {
            let first = self.slots.len();
            let committed = row.cache.len();
            let chain_len = row.tree.chain_len();
            for node in row.tree.node_ids() {
                self.slots.push(committed + node.index());
                self.positions.push(committed + row.tree.depth(node));
                let visible = self.visible_to(row, node, chain_len);
                self.visible.push(visible);
            }
            self.outputs.extend(row.outputs.nodes(row.tree.len()).map(|node| first + node));
            self.sequences.push(first..self.slots.len());
        }
        self.cut_tiles();
    }

    /// Describes the streams of several sequences: each row's tree is the chain of its streams.
    pub(super) fn reset_chains(&mut self, rows: &[Row<'_>]) {
        self.reset(rows);
        self.streams.extend(rows.iter().flat_map(|row| 0..row.tree.len()));
    }

    /// Describes `num_streams` stream rows for each of `nodes`, whose slots follow those of the tree.
    pub(super) fn reset_streams(&mut self, row: &Row<'_>, nodes: &[NodeId], num_streams: usize) {
        self.clear();
        let (committed, chain_len) = (row.cache.len(), row.tree.chain_len());
        for (index, &node) in nodes.iter().enumerate() {
            let first_slot = committed + row.tree.len() + index * num_streams;
            for stream in 0..num_streams {
                let mut visible = self.visible_to(row, node, chain_len);
                if visible.num_scattered == 0 {
                    visible.first_scattered = self.scattered.len();
                }
                self.scattered.extend((first_slot..=first_slot + stream).map(|slot| slot as u32));
                visible.num_scattered += stream + 1;
                self.visible.push(visible);
                self.slots.push(first_slot + stream);
                self.streams.push(stream);
                self.positions.push(row.tree.depth(node) + committed + 1 + stream);
            }
        }
        self.outputs.extend(0..self.slots.len());
        self.sequences.push(0..self.slots.len());
        self.cut_tiles();
    }

    fn clear(&mut self) {
        self.sequences.clear();
        self.slots.clear();
        self.positions.clear();
        self.visible.clear();
        self.scattered.clear();
        self.streams.clear();
        self.outputs.clear();
    }

    /// The committed rows and the path of `node`; a path inside the leading chain is contiguous.
    fn visible_to(&mut self, row: &Row<'_>, node: NodeId, chain_len: usize) -> Visible {
        let committed = row.cache.len();
        let first_scattered = self.scattered.len();
        if node.index() < chain_len {
            return Visible { contiguous: committed + node.index() + 1, first_scattered, num_scattered: 0 };
        }
        row.tree.path_into(node, &mut self.path);
        let in_place = self.path.iter().enumerate().take_while(|(depth, node)| node.index() == *depth).count();
        self.scattered.extend(self.path[in_place..].iter().map(|node| (committed + node.index()) as u32));
        let num_scattered = self.path.len() - in_place;
        Visible { contiguous: committed + in_place, first_scattered, num_scattered }
    }

    /// Cuts sequences of up to twice a tile's nodes in two, so that threads find tasks of equal size.
    fn cut_tiles(&mut self) {
        self.tiles.clear();
        for (index, rows) in self.sequences.iter().enumerate() {
            let nodes = rows.len().div_ceil(2).clamp(*NODES_PER_TILE.start(), *NODES_PER_TILE.end());
            for start in rows.clone().step_by(nodes) {
                self.tiles.push((index, start..rows.end.min(start + nodes)));
            }
        }
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.visible.len()
    }

    /// Drops all rows but these, given in their order; row `i` is then the former row `rows[i]`.
    pub(super) fn keep(&mut self, rows: &[usize]) {
        for (to, &from) in rows.iter().enumerate() {
            self.visible[to] = self.visible[from];
            self.slots[to] = self.slots[from];
            self.positions[to] = self.positions[from];
        }
        self.visible.truncate(rows.len());
        self.slots.truncate(rows.len());
        self.positions.truncate(rows.len());
        for sequence in &mut self.sequences {
            let kept = |end: usize| rows.partition_point(|&row| row < end);
            *sequence = kept(sequence.start)..kept(sequence.end);
        }
        self.outputs.retain_mut(|output| {
            let kept = rows.binary_search(output);
            *output = kept.unwrap_or(*output);
            kept.is_ok()
        });
        self.cut_tiles();
    }
}
