//! Passes that emit nothing: what a benchmark and the cost model time.

use forestream_model::{Hidden, KvCache, Model, NodeId, Outputs, Row, TokenTree};

use crate::DecodeError;

/// A model with some text in its cache, ready for passes over draft trees of any size.
pub struct TrialPass<'m> {
    target: &'m dyn Model,
    cache: KvCache,
    tree: TokenTree,
    hidden: Hidden,
    logits: Vec<f32>,
}

impl<'m> TrialPass<'m> {
    /// Fills a cache with `context_len` tokens and leaves room for trees of `max_nodes`.
    ///
    /// # Errors
    /// When the model fails.
    pub fn new(target: &'m dyn Model, context_len: usize, max_nodes: usize) -> Result<Self, DecodeError> {
        let cache = target.new_cache(context_len + max_nodes);
        let mut pass = Self { target, cache, tree: TokenTree::root(0), hidden: Hidden::new(), logits: Vec::new() };
        if context_len > 0 {
            pass.grow_chain(context_len);
            pass.forward(Outputs::None)?;
            let path = pass.tree.path(pass.tree.last());
            pass.cache.commit(&path);
        }
        Ok(pass)
    }

    /// One pass over a tree of `nodes` nodes and their logits, as a round does it; the cache is as before.
    ///
    /// # Errors
    /// When the model fails, or `nodes` exceeds the room that was left.
    pub fn run(&mut self, nodes: usize) -> Result<(), DecodeError> {
        self.grow_tree(nodes);
        self.forward(Outputs::All)?;
        self.target.logits(&self.hidden, 0..self.hidden.num_rows(), &mut self.logits);
        Ok(())
    }

    fn forward(&mut self, outputs: Outputs) -> Result<(), DecodeError> {
        let row = Row { tree: &self.tree, cache: &mut self.cache, outputs };
        Ok(self.target.forward(&mut [row], &mut self.hidden)?)
    }

    fn grow_chain(&mut self, len: usize) {
        self.tree.reset(self.token(0));
        for index in 1..len {
            self.tree.push(self.tree.last(), self.token(index));
        }
    }

    /// A binary tree: some depth and some width, as drafts have.
    fn grow_tree(&mut self, nodes: usize) {
        self.tree.reset(self.token(0));
        for index in 1..nodes {
            self.tree.push(NodeId((index as u32 - 1) / 2), self.token(index));
        }
    }

    /// Different tokens, so that no embedding row is read twice in a row.
    fn token(&self, index: usize) -> u32 {
        ((index * 37 + 11) % self.target.config().vocab_size) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeModel;

    #[test]
    fn passes_leave_the_cache_as_it_was() {
        let model = FakeModel::new(20, 4.0);
        let mut pass = TrialPass::new(&model, 33, 16).unwrap();
        for nodes in [1, 16, 3] {
            pass.run(nodes).unwrap();
            assert_eq!((pass.hidden.num_rows(), pass.logits.len(), pass.cache.len()), (nodes, nodes * 20, 33));
        }
        assert_eq!(model.num_passes(), 4);
        assert!(matches!(pass.run(17), Err(DecodeError::Model(_))));
    }
}
