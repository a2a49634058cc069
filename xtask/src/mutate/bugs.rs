//! The planted bugs: text that stands once in a file, and what a tired programmer might have written.
//!
//! Most of them leave every greedy answer as it is; only tests that sample, or that compare bits, can see them.

/// A bug as a text substitution.
#[derive(Debug)]
pub(super) struct Mutation {
    pub(super) name: &'static str,
    /// For the table: what is wrong.
    pub(super) what: &'static str,
    pub(super) file: &'static str,
    /// Stands exactly once in `file`.
    pub(super) healthy: &'static str,
    pub(super) broken: &'static str,
}

const REJECTION: &str = "crates/forestream-decode/src/acceptance/rejection.rs";
const SAMPLE_AND_MATCH: &str = "crates/forestream-decode/src/acceptance/sample_and_match.rs";
const WALK: &str = "crates/forestream-decode/src/acceptance/walk.rs";
const BATCH: &str = "crates/forestream-model/src/cpu/batch.rs";
const KV_CACHE: &str = "crates/forestream-model/src/kv_cache.rs";

pub(super) const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "no-residual",
        what: "after a rejection the next token is drawn from the target's law, not from what is left of it",
        file: REJECTION,
        healthy: "*target_prob = (*target_prob - probability(&self.draft_probs, *candidate)).max(0.0);",
        broken: "*target_prob = (*target_prob - 0.0 * probability(&self.draft_probs, *candidate)).max(0.0);",
    },
    Mutation {
        name: "no-draft-probability",
        what: "a drawn token is accepted with the target's probability, the draft's left out",
        file: REJECTION,
        healthy: "(target_prob / draft_prob).min(1.0)",
        broken: "(target_prob / draft_prob.max(1.0)).min(1.0)",
    },
    Mutation {
        name: "sibling-kept",
        what: "a rejected token stays in the draft's law when its sibling is tested",
        file: REJECTION,
        healthy: "self.draft_probs.retain(|&(candidate, _)| candidate != token);",
        broken: "self.draft_probs.retain(|&(candidate, _)| candidate != TokenId::MAX || candidate != token);",
    },
    Mutation {
        name: "fresh-draw",
        what: "after a mismatch the target draws again",
        file: SAMPLE_AND_MATCH,
        healthy: "            if walk.emit(token, child)",
        broken: "            let again = walk.random().uniform(walk.position(), 1);
            let token = if child.is_none() { walk.distribution()?.draw(again) } else { token };
            if walk.emit(token, child)",
    },
    Mutation {
        name: "draws-by-round",
        what: "random numbers are keyed by the place in the draft, not by the position in the text",
        file: WALK,
        healthy: "self.random().uniform(self.position(), 0)",
        broken: "self.random().uniform(self.path.len(), 0)",
    },
    Mutation {
        name: "stop-in-path",
        what: "a stop token inside an accepted path does not end the text",
        file: WALK,
        healthy: "len >= self.max_len || self.tokens.contains(&token)",
        broken: "len >= self.max_len || (len == 0 && self.tokens.contains(&token))",
    },
    Mutation {
        name: "commit-order",
        what: "accepted rows are committed in the order of nodes, not of the path",
        file: KV_CACHE,
        healthy: "if node.index() != offset {",
        broken: "if node.index() < offset {",
    },
    Mutation {
        name: "rows-by-offset",
        what: "a node finds its ancestors' rows by their place in the path, not by their node",
        file: BATCH,
        healthy: "self.path[in_place..].iter().map(|node| (committed + node.index()) as u32)",
        broken: "self.path[in_place..].iter().enumerate().map(|(offset, _)| (committed + in_place + offset) as u32)",
    },
    Mutation {
        name: "position-by-node",
        what: "a node is rotated to the place of its row, not to its depth",
        file: BATCH,
        healthy: "committed + row.tree.depth(node)",
        broken: "committed + node.index()",
    },
];
