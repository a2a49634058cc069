//! The only shape of model input: a tree of tokens.
//!
//! A prompt is a chain, one token is a bare root, a draft is a tree. Positions and the attention mask are *derived* from
//! the parents, so they cannot disagree. A tree is a plain value: it knows no model, cache or sampler.

/// A vocabulary index.
pub type TokenId = u32;

/// The index of a node in its tree; parents have smaller ids than their children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The first node of every tree.
    pub const ROOT: Self = Self(0);

    /// The id as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    token: TokenId,
    parent: Option<NodeId>,
    depth: u32,
    is_probe: bool,
}

/// Tokens arranged by what each one follows. Node 0 is the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenTree {
    nodes: Vec<Node>,
}

impl TokenTree {
    /// A tree of one token.
    pub fn root(token: TokenId) -> Self {
        let root = Node { token, parent: None, depth: 0, is_probe: false };
        Self { nodes: vec![root] }
    }

    /// A chain: every token follows the one before it.
    ///
    /// # Panics
    /// If `tokens` is empty: a tree has a root.
    pub fn chain(tokens: &[TokenId]) -> Self {
        let (&first, rest) = tokens.split_first().expect("a chain has at least one token");
        let mut tree = Self::root(first);
        let mut last = NodeId::ROOT;
        for &token in rest {
            last = tree.push(last, token);
        }
        tree
    }

    /// Makes room for trees of `num_nodes` nodes.
    pub fn reserve(&mut self, num_nodes: usize) {
        self.nodes.reserve(num_nodes.saturating_sub(self.nodes.len()));
    }

    /// Drops all nodes and starts again from `token`, keeping the allocation.
    pub fn reset(&mut self, token: TokenId) {
        self.nodes.clear();
        self.nodes.push(Node { token, parent: None, depth: 0, is_probe: false });
    }

    /// Adds `token` as a child of `parent`.
    ///
    /// # Panics
    /// If `parent` is not in the tree.
    pub fn push(&mut self, parent: NodeId, token: TokenId) -> NodeId {
        self.push_node(parent, token, false)
    }

    /// Adds a node that is computed but can never be accepted.
    ///
    /// # Panics
    /// If `parent` is not in the tree.
    pub fn push_probe(&mut self, parent: NodeId, token: TokenId) -> NodeId {
        self.push_node(parent, token, true)
    }

    fn push_node(&mut self, parent: NodeId, token: TokenId, is_probe: bool) -> NodeId {
        let depth = self.nodes[parent.index()].depth + 1;
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node { token, parent: Some(parent), depth, is_probe });
        id
    }

    /// Number of nodes, the root included; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a tree always has its root")]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All node ids, parents before children.
    pub fn node_ids(&self) -> impl ExactSizeIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// The last node that was added.
    pub fn last(&self) -> NodeId {
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// The token at `node`.
    pub fn token(&self, node: NodeId) -> TokenId {
        self.nodes[node.index()].token
    }

    /// What `node` follows; `None` for the root.
    pub fn parent(&self, node: NodeId) -> Option<NodeId> {
        self.nodes[node.index()].parent
    }

    /// Distance from the root.
    pub fn depth(&self, node: NodeId) -> usize {
        self.nodes[node.index()].depth as usize
    }

    /// Whether `node` is a probe.
    pub fn is_probe(&self, node: NodeId) -> bool {
        self.nodes[node.index()].is_probe
    }

    /// The children of `node` that may be accepted, in order of addition.
    pub fn children(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let after = self.node_ids().skip(node.index() + 1);
        after.filter(move |&id| self.parent(id) == Some(node) && !self.is_probe(id))
    }

    /// The first child of `node` that carries `token`, probes excluded.
    pub fn child_with(&self, node: NodeId, token: TokenId) -> Option<NodeId> {
        self.children(node).find(|&child| self.token(child) == token)
    }

    /// Writes the nodes from the root down to `node`, both included, into `path`.
    pub fn path_into(&self, node: NodeId, path: &mut Vec<NodeId>) {
        path.clear();
        let mut next = Some(node);
        while let Some(id) = next {
            path.push(id);
            next = self.parent(id);
        }
        path.reverse();
    }

    /// The nodes from the root down to `node`, both included.
    pub fn path(&self, node: NodeId) -> Vec<NodeId> {
        let mut path = Vec::with_capacity(self.depth(node) + 1);
        self.path_into(node, &mut path);
        path
    }

    /// The greatest depth of any node.
    pub fn max_depth(&self) -> usize {
        self.nodes.iter().map(|node| node.depth as usize).max().unwrap_or(0)
    }

    /// How many leading nodes form a chain (each the child of the one before it).
    pub fn chain_len(&self) -> usize {
        self.nodes.iter().enumerate().take_while(|(index, node)| node.depth as usize == *index).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_has_increasing_depths() {
        let tree = TokenTree::chain(&[5, 6, 7]);
        let depths: Vec<usize> = tree.node_ids().map(|node| tree.depth(node)).collect();
        assert_eq!(depths, [0, 1, 2]);
        assert_eq!(tree.chain_len(), 3);
        assert_eq!(tree.path(NodeId(2)), [NodeId(0), NodeId(1), NodeId(2)]);
    }

    #[test]
    fn children_leave_probes_out() {
        let mut tree = TokenTree::root(1);
        let probe = tree.push_probe(NodeId::ROOT, 2);
        let child = tree.push(NodeId::ROOT, 2);
        assert_eq!(tree.child_with(NodeId::ROOT, 2), Some(child));
        assert!(tree.is_probe(probe));
        assert_eq!(tree.children(NodeId::ROOT).collect::<Vec<_>>(), [child]);
    }

    #[test]
    fn a_branch_ends_the_leading_chain() {
        let mut tree = TokenTree::chain(&[1, 2, 3]);
        let branch = tree.push(NodeId(1), 9);
        assert_eq!(tree.chain_len(), 3);
        assert_eq!(tree.path(branch), [NodeId(0), NodeId(1), branch]);
        assert_eq!(tree.max_depth(), 2);
    }
}
