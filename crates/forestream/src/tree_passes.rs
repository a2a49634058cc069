//! Passes over made-up trees and prompts, for measuring: what a round does to the model, without its decisions.

use forestream_decode::strategies::{Streaming, StreamingOptions, TreeShape};
use forestream_decode::{DecodeError, Draft, DraftRequest, Drafter, Limits, Random, VerifiedRound};
use forestream_model::{Hidden, KvCache, Model, NodeId, Outputs, Row, TokenId, TokenTree};

/// Nodes of a draft while drafting is measured, root included, about as many as pay.
const TYPICAL_NODES: usize = 8;

/// Verification passes over trees of any size behind a filled cache, as a round makes them; nothing is committed.
pub(crate) struct TreePasses<'m> {
    model: &'m dyn Model,
    cache: KvCache,
    hidden: Hidden,
    logits: Vec<f32>,
    drafter: Streaming,
}

impl<'m> TreePasses<'m> {
    /// Fills a cache with `depth` tokens, and leaves room for trees of `max_nodes`.
    ///
    /// # Errors
    /// If a pass fails.
    pub(crate) fn new(model: &'m dyn Model, depth: usize, max_nodes: usize) -> Result<Self, DecodeError> {
        let (cache, hidden) = (model.new_cache(depth + max_nodes), Hidden::new());
        // After made-up tokens streams are sure of nothing, and a tree of probable nodes would end at once.
        let tree = TreeShape::Static { top_k: 1 };
        let drafter = Streaming::new(StreamingOptions { tree, ..StreamingOptions::default() });
        let mut this = Self { model, cache, hidden, logits: Vec::new(), drafter };
        if depth > 0 {
            this.fill(depth)?;
        }
        Ok(this)
    }

    /// Commits `more` further tokens, at least one, and lets the drafter know where streams begin.
    ///
    /// # Errors
    /// If the pass fails.
    pub(crate) fn fill(&mut self, more: usize) -> Result<(), DecodeError> {
        let len = self.cache.len();
        let tokens = some_tokens(len + more, self.model.config().vocab_size);
        let context = &tokens[len..];
        let mut draft = Draft::new(context[0]);
        let mut path = vec![NodeId::ROOT];
        for &token in &context[1..] {
            path.push(draft.push(draft.tree().last(), token, 1.0));
        }
        let row = Row { tree: draft.tree(), cache: &mut self.cache, outputs: Outputs::Last };
        self.model.forward(&mut [row], &mut self.hidden)?;
        self.cache.commit(&path);
        self.drafter.observe(VerifiedRound {
            target: self.model,
            draft: &draft,
            hidden: &self.hidden,
            sequence_index: 0,
            path: &path,
            context,
            num_emitted: 1,
            cache: &mut self.cache,
            report: None,
        })
    }

    /// One pass over a tree of `nodes` nodes, with logits of all of them.
    ///
    /// # Errors
    /// If the pass fails.
    pub(crate) fn run(&mut self, nodes: usize) -> Result<(), DecodeError> {
        let tree = some_tree(nodes, self.model.config().vocab_size);
        let mut rows = [Row { tree: &tree, cache: &mut self.cache, outputs: Outputs::All }];
        self.model.forward(&mut rows, &mut self.hidden)?;
        self.model.logits(&self.hidden, 0..self.hidden.num_rows(), &mut self.logits);
        Ok(())
    }
}

impl TreePasses<'_> {
    /// One draft of `num_streams` streams behind the filled cache; none for a model without streams, or behind an empty cache.
    ///
    /// # Errors
    /// If the stream pass fails.
    pub(crate) fn draft(&mut self, num_streams: usize) -> Result<(), DecodeError> {
        let vocab_size = self.model.config().vocab_size;
        let context = some_tokens(2, vocab_size);
        let mut draft = Draft::new(context[1]);
        let limits = Limits { max_nodes: TYPICAL_NODES, max_depth: num_streams, vocab_size, min_score: 0.0 };
        let mut request = DraftRequest {
            target: self.model,
            cache: &mut self.cache,
            context: &context,
            limits,
            random: Random::draft(0),
            cost: None,
            expected: 0.0,
        };
        self.drafter.draft(&mut request, &mut draft)?;
        let (Some(streams), Some(awaited)) = (self.model.streams(), self.drafter.awaited_streams()) else {
            return Ok(());
        };
        let row = Row { tree: awaited.chain, cache: &mut *request.cache, outputs: Outputs::All };
        streams.run(&mut [row], &[awaited.anchor], &mut self.hidden)?;
        streams.stream_logits(&self.hidden, 0..self.hidden.num_rows(), &mut self.logits);
        self.drafter.draft_from_streams(&mut request, &self.logits, &mut draft)
    }
}

/// A tree in which every node has two children: neither a chain nor a star.
fn some_tree(nodes: usize, vocab_size: usize) -> TokenTree {
    let tokens = some_tokens(nodes, vocab_size);
    let mut tree = TokenTree::root(tokens[0]);
    for (index, &token) in tokens.iter().enumerate().skip(1) {
        tree.push(NodeId((index as u32 - 1) / 2), token);
    }
    tree
}

/// Tokens from all over the vocabulary, the same each time.
pub(crate) fn some_tokens(len: usize, vocab_size: usize) -> Vec<TokenId> {
    (0..len).map(|index| (index.wrapping_mul(7919).wrapping_add(13) % vocab_size) as TokenId).collect()
}

#[cfg(test)]
mod tests {
    use forestream_decode::testing::FakeModel;

    use super::*;

    /// However unsure the streams are, as after made-up tokens they must be: a draft that ends early would seem cheap.
    #[test]
    fn a_measured_draft_goes_down_to_its_last_stream() {
        for sharpness in [0.0, 1.0, 18.0] {
            let model = FakeModel::new(1000, sharpness).with_streams(6);
            let mut passes = TreePasses::new(&model, 12, TYPICAL_NODES).unwrap();
            for num_streams in 1..=6 {
                let before = model.num_depths();
                passes.draft(num_streams).unwrap();
                assert_eq!(model.num_depths() - before, num_streams, "{sharpness}");
            }
        }
    }
}
