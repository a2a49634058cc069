//! Several drafters whose trees are merged: a path that two of them propose is one path.

use forestream_model::NodeId;

use crate::draft::{AwaitedStreams, DraftRequest, UnverifiedPass, VerifiedRound};
use crate::{DecodeError, Draft, Drafter};

/// Asks each drafter in turn and tells it what the earlier ones expect; of equal nodes the higher score counts. For drafters that choose, not draw.
pub struct Combined {
    drafters: Vec<Box<dyn Drafter>>,
    /// One drafter's proposal.
    part: Draft,
    /// By node of `part`: its node in the merged draft.
    merged: Vec<NodeId>,
}

impl Combined {
    /// The union of what these drafters propose.
    pub fn new(drafters: Vec<Box<dyn Drafter>>) -> Self {
        Self { drafters, part: Draft::default(), merged: Vec::new() }
    }

    /// Adds the nodes of `part` that `draft` does not have yet.
    fn merge_into(&mut self, draft: &mut Draft) {
        let tree = self.part.tree();
        if let Some(pruning) = self.part.pruning() {
            draft.set_pruning(pruning);
        }
        draft.add_seconds(self.part.seconds());
        self.merged.clear();
        self.merged.push(NodeId::ROOT);
        for node in tree.node_ids().skip(1) {
            let parent = tree.parent(node).expect("only the root has no parent");
            let (parent, token, score) = (self.merged[parent.index()], tree.token(node), self.part.score(node));
            let twin = if tree.is_probe(node) { None } else { draft.tree().child_with(parent, token) };
            self.merged.push(match twin {
                Some(twin) => {
                    draft.raise_score(twin, score);
                    twin
                }
                None if tree.is_probe(node) => draft.push_probe(parent, token, score),
                None => draft.push(parent, token, score),
            });
        }
    }
}

impl Drafter for Combined {
    fn draft(&mut self, request: &mut DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError> {
        let root = draft.tree().token(NodeId::ROOT);
        for index in 0..self.drafters.len() {
            self.part.reset(root);
            request.expected = draft.expected();
            self.drafters[index].draft(request, &mut self.part)?;
            self.merge_into(draft);
        }
        Ok(())
    }

    fn drafts(&self) -> bool {
        self.drafters.iter().any(|drafter| drafter.drafts())
    }

    fn awaited_streams(&self) -> Option<AwaitedStreams<'_>> {
        self.drafters.iter().find_map(|drafter| drafter.awaited_streams())
    }

    fn draft_from_streams(
        &mut self,
        request: &mut DraftRequest<'_>,
        logits: &[f32],
        draft: &mut Draft,
    ) -> Result<(), DecodeError> {
        let waiting = self.drafters.iter_mut().find(|drafter| drafter.awaited_streams().is_some());
        if let Some(drafter) = waiting {
            self.part.reset(draft.tree().token(NodeId::ROOT));
            drafter.draft_from_streams(request, logits, &mut self.part)?;
            self.merge_into(draft);
        }
        Ok(())
    }

    fn inspect(&mut self, pass: UnverifiedPass<'_>) -> Result<(), DecodeError> {
        let UnverifiedPass { target, draft, hidden, sequence_index, cache } = pass;
        for drafter in &mut self.drafters {
            drafter.inspect(UnverifiedPass { target, draft, hidden, sequence_index, cache: &mut *cache })?;
        }
        Ok(())
    }

    fn observe(&mut self, round: VerifiedRound<'_>) -> Result<(), DecodeError> {
        let VerifiedRound { target, draft, hidden, sequence_index, path, context, num_emitted, cache, report } = round;
        for drafter in &mut self.drafters {
            let cache = &mut *cache;
            let round =
                VerifiedRound { target, draft, hidden, sequence_index, path, context, num_emitted, cache, report };
            drafter.observe(round)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use forestream_model::TokenId;

    use super::*;
    use crate::Limits;
    use crate::testing::propose;

    /// Proposes one chain with the given scores.
    struct Chain(Vec<(TokenId, f32)>);

    impl Drafter for Chain {
        fn draft(&mut self, _request: &mut DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError> {
            for &(token, score) in &self.0 {
                draft.push(draft.tree().last(), token, score);
            }
            Ok(())
        }
    }

    #[test]
    fn equal_paths_become_one() {
        let first = Chain(vec![(1, 0.5), (2, 0.4)]);
        let second = Chain(vec![(1, 0.8), (3, 0.7), (4, 0.6)]);
        let mut combined = Combined::new(vec![Box::new(first), Box::new(second)]);
        let limits = Limits { max_nodes: 9, max_depth: 9, vocab_size: 10, min_score: 0.0 };
        let draft = propose(&mut combined, &[0], limits);
        let tree = draft.tree();
        let nodes: Vec<_> =
            tree.node_ids().skip(1).map(|node| (tree.parent(node).unwrap().0, tree.token(node))).collect();
        assert_eq!(nodes, [(0, 1), (1, 2), (1, 3), (3, 4)]);
        let scores: Vec<f32> = tree.node_ids().map(|node| draft.score(node)).collect();
        assert_eq!(scores, [1.0, 0.8, 0.4, 0.7, 0.6]);
    }
}
