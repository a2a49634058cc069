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
const STREAMS: &str = "crates/forestream-model/src/cpu/streams.rs";
const EARLY_EXIT: &str = "crates/forestream-model/src/cpu/early_exit.rs";
const STREAMING: &str = "crates/forestream-decode/src/strategies/streaming.rs";
const STREAM_BATCH: &str = "crates/forestream-decode/src/stream_batch.rs";

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
    Mutation {
        name: "first-embedding",
        what: "all streams start with the embedding of the first",
        file: STREAMS,
        healthy: "&embeddings[index * width..][..width]",
        broken: "&embeddings[index * 0..][..width]",
    },
    Mutation {
        name: "one-next-token",
        what: "the streams of all sequences are told the token that the first one emitted",
        file: STREAMS,
        healthy: "anchors[index].next_token",
        broken: "anchors[index * 0].next_token",
    },
    Mutation {
        name: "one-parent",
        what: "all parents get the proposals of the first",
        file: STREAMS,
        healthy: "|index| parents[index])",
        broken: "|index| parents[index * 0])",
    },
    Mutation {
        name: "stream-without-itself",
        what: "a stream of the fused pass sees the streams below it and not itself",
        file: BATCH,
        healthy: "visible.num_scattered += stream + 1;",
        broken: "visible.num_scattered += stream;",
    },
    Mutation {
        name: "stream-position",
        what: "the streams of a position are all rotated to the one after it",
        file: BATCH,
        healthy: "committed + 1 + stream)",
        broken: "committed + 1 + 0 * stream)",
    },
    Mutation {
        name: "ended-position",
        what: "a row that goes on takes the position of the row whose place it takes",
        file: BATCH,
        healthy: "self.positions[to] = self.positions[from];",
        broken: "self.positions[to] = self.positions[from.min(to)];",
    },
    Mutation {
        name: "ended-visible",
        what: "a row that goes on sees what the row whose place it takes saw",
        file: BATCH,
        healthy: "self.visible[to] = self.visible[from];",
        broken: "self.visible[to] = self.visible[from.min(to)];",
    },
    Mutation {
        name: "exit-of-another",
        what: "the early exit of a node reads the guess of the root",
        file: EARLY_EXIT,
        healthy: "Some((self.logits[index * width + column] - self.log_sums[index]).exp())",
        broken: "Some((self.logits[column] - self.log_sums[index]).exp())",
    },
    Mutation {
        name: "fused-root",
        what: "after a fused pass the next draft comes from the streams of the root, not of the accepted node",
        file: STREAMING,
        healthy: "map(|index| index * num_streams)",
        broken: "map(|index| index * 0 * num_streams)",
    },
    Mutation {
        name: "stale-boundary",
        what: "the next draft starts from the state of the round's first node, not of the accepted one",
        file: STREAMING,
        healthy: "let row = round.hidden.row_of(round.sequence_index, last);",
        broken: "let row = round.hidden.row_of(round.sequence_index, round.path[0]);",
    },
    Mutation {
        name: "streams-of-another",
        what: "all drafts of a round go on from the streams of its first sequence",
        file: STREAM_BATCH,
        healthy: "self.states.rows_of(index)",
        broken: "self.states.rows_of(index * 0)",
    },
    Mutation {
        name: "one-calibration",
        what: "all depths use the calibration of the first",
        file: STREAMING,
        healthy: "calibration.get(stream_index)",
        broken: "calibration.get(stream_index * 0)",
    },
];
