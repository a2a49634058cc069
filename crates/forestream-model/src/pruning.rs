//! Which nodes of a draft an early exit lets pass: the rule, whoever computes the probabilities.
//!
//! Source: Speculative Streaming (arXiv 2402.11131), parallel tree draft pruning (a threshold); keeping a number of nodes
//! instead is an addition of this project, for passes of a known size.

use crate::{NodeId, TokenId, TokenTree};

/// A rule for ending nodes. What follows an ended node ends too; the root never does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pruning {
    /// A node goes on if its token has at least this probability after its parent.
    Threshold(f32),
    /// So many nodes go on, the root included: those whose whole path from the root is most probable.
    Best(usize),
}

/// The decision about one tree; buffers are reused from tree to tree.
#[derive(Clone, Debug, Default)]
pub struct Passing {
    /// By node: whether it goes on.
    goes_on: Vec<bool>,
    /// By node: the probability of its path from the root.
    reach: Vec<f32>,
    order: Vec<NodeId>,
}

impl Passing {
    /// By node: whether it goes on. `probability` is that of a token after a node, and `None` for tokens that the early exit
    /// knows nothing about: they cost their path nothing.
    pub fn decide(
        &mut self,
        pruning: Pruning,
        tree: &TokenTree,
        probability: impl Fn(NodeId, TokenId) -> Option<f32>,
    ) -> &[bool] {
        self.goes_on.clear();
        self.reach.clear();
        for node in tree.node_ids() {
            let after = |parent| probability(parent, tree.token(node)).unwrap_or(1.0);
            let (reach, goes_on) = match (tree.parent(node), pruning) {
                (None, _) => (1.0, true),
                (Some(parent), Pruning::Threshold(threshold)) => {
                    (0.0, self.goes_on[parent.index()] && after(parent) >= threshold)
                }
                (Some(parent), Pruning::Best(_)) => (self.reach[parent.index()] * after(parent), false),
            };
            self.reach.push(reach);
            self.goes_on.push(goes_on);
        }
        if let Pruning::Best(count) = pruning {
            self.mark_best(count, tree);
        }
        &self.goes_on
    }

    /// Marks the `count` nodes of the greatest reach. A path's reach never grows and ids do, so the best hang together.
    fn mark_best(&mut self, count: usize, tree: &TokenTree) {
        self.order.clear();
        self.order.extend(tree.node_ids());
        let reach = |node: &NodeId| self.reach[node.index()];
        self.order.sort_unstable_by(|a, b| reach(b).total_cmp(&reach(a)).then(a.cmp(b)));
        self.goes_on[NodeId::ROOT.index()] = true; // whatever the count, and wherever reaches that are no numbers are sorted
        for node in self.order.iter().take(count) {
            self.goes_on[node.index()] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node `i` carries token `i`; its probability after its parent is the `i`th number.
    fn decide(pruning: Pruning, parents: &[u32], probabilities: &[f32]) -> Vec<usize> {
        let mut tree = TokenTree::root(0);
        for (index, &parent) in parents.iter().enumerate() {
            tree.push(NodeId(parent), index as TokenId + 1);
        }
        let probability = |parent: NodeId, token: TokenId| {
            assert_eq!(parent.0, parents[token as usize - 1], "asked after its parent");
            probabilities.get(token as usize - 1).copied()
        };
        let mut passing = Passing::default();
        passing.decide(Pruning::Best(9), &TokenTree::chain(&[1, 2, 3]), |_, _| None); // leaves nothing behind
        let goes_on = passing.decide(pruning, &tree, probability);
        (0..tree.len()).filter(|&node| goes_on[node]).collect()
    }

    #[test]
    fn a_threshold_ends_nodes_with_what_follows_them() {
        let (parents, probabilities) = ([0, 0, 1, 2, 3], [0.5, 0.1, 0.2, 0.9, 0.3]);
        assert_eq!(decide(Pruning::Threshold(0.2), &parents, &probabilities), [0, 1, 3, 5]);
        assert_eq!(decide(Pruning::Threshold(0.05), &parents, &probabilities), [0, 1, 2, 3, 4, 5]);
        assert_eq!(decide(Pruning::Threshold(1.0), &parents, &probabilities), [0]);
        assert_eq!(decide(Pruning::Threshold(0.2), &parents, &[f32::NAN; 5]), [0]);
        assert_eq!(decide(Pruning::Threshold(0.2), &parents, &[]), [0, 1, 2, 3, 4, 5], "unknown tokens pass");
    }

    #[test]
    fn the_most_probable_paths_are_kept_whole() {
        // Paths: 1: 0.5, 2: 0.4, 3: 0.5 * 0.2 = 0.1, 4: 0.4 * 0.9 = 0.36, 5: 0.1 * 1.0 = 0.1.
        let (parents, probabilities) = ([0, 0, 1, 2, 3], [0.5, 0.4, 0.2, 0.9, 1.0]);
        let best = |count| decide(Pruning::Best(count), &parents, &probabilities);
        assert_eq!((best(0), best(1)), (vec![0], vec![0]));
        assert_eq!(best(3), [0, 1, 2]);
        assert_eq!(best(4), [0, 1, 2, 4]);
        assert_eq!(best(5), [0, 1, 2, 3, 4], "of equals the earlier, which others follow");
        assert_eq!(best(99), [0, 1, 2, 3, 4, 5]);
    }
}
