//! Prompt lookup: what followed the same words earlier in prompt and answer is proposed again, as a tree.
//!
//! The longest suffix of the text that occurred before, and shorter ones, say which tokens followed and how often. A
//! continuation's probability is its share of the occurrences times the experience that such predictions hold; what a
//! long suffix leaves open goes to the next shorter one (prediction by partial matching). Nodes are added best first.
//! The experience comes from every emitted token, drafted or not, so a text that never repeats itself stops drafting.
//! Sources: prompt lookup decoding; suffix decoding (arXiv 2411.04975).

use std::collections::BinaryHeap;

use forestream_model::{NodeId, TokenId};

use super::suffix_automaton::{EMPTY, StateId, SuffixAutomaton};
use super::{Requires, Strategy};
use crate::draft::DraftRequest;
use crate::sequence::LONGEST_RESERVED;
use crate::{DecodeError, Draft, Drafter};

pub(super) static STRATEGY: Strategy = Strategy {
    name: "ngram",
    summary: "repeats what followed the same words earlier in prompt and answer",
    requires: Requires::Nothing,
    build: |_| Ok(Box::new(Ngram::new())),
};

/// Suffixes of how many different lengths may contribute to one prediction.
const MAX_SUFFIXES: usize = 4;
/// Continuations of one suffix that are looked at, the most recent kinds first.
const MAX_CONTINUATIONS: usize = 32;
/// Less probable nodes are not worth their place in the queue.
const MIN_SCORE: f32 = 0.01;
/// Room in the queue: scores of one depth add up to 1 at most, so 100 candidates of it reach [`MIN_SCORE`].
const QUEUE_CAPACITY: usize = 2048;

/// Drafts from the text itself.
#[derive(Debug)]
pub struct Ngram {
    automaton: SuffixAutomaton,
    /// The tokens that the automaton has read.
    text: Vec<TokenId>,
    experience: Experience,
    queue: BinaryHeap<Candidate>,
    /// Candidates queued in this round.
    num_queued: usize,
    predictions: Vec<Prediction>,
}

/// A suffix of the text: its state, and how many of its tokens are known to match.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Suffix {
    state: StateId,
    len: usize,
}

/// A token that may follow, and the suffix that it makes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Prediction {
    token: TokenId,
    probability: f32,
    suffix: Suffix,
}

/// A node that may be added to the draft; ordered by score, then first come first.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    score: f32,
    /// Negative number of the candidate, so that of equal scores the earlier is greater.
    age: i32,
    parent: NodeId,
    prediction: Prediction,
}

impl Ngram {
    /// A drafter that has read nothing yet.
    pub fn new() -> Self {
        Self {
            automaton: SuffixAutomaton::new(),
            text: Vec::new(),
            experience: Experience::default(),
            queue: BinaryHeap::with_capacity(QUEUE_CAPACITY),
            num_queued: 0,
            predictions: Vec::with_capacity(MAX_SUFFIXES * MAX_CONTINUATIONS),
        }
    }

    /// Reads what is new in `context`; starts again when it is another text.
    fn read(&mut self, context: &[TokenId], capacity: usize) {
        if !context.starts_with(&self.text) {
            self.automaton.clear();
            self.text.clear();
        }
        if self.text.is_empty() {
            let len = capacity.min(LONGEST_RESERVED) + 1;
            self.automaton.reserve(len);
            self.text.reserve(len);
        }
        for &token in &context[self.text.len()..] {
            self.learn(token);
            self.automaton.push(token);
            self.text.push(token);
        }
    }

    /// Compares what the suffixes predict with the `token` that comes next.
    fn learn(&mut self, token: TokenId) {
        for suffix in suffixes(&self.automaton, self.longest_suffix()) {
            let is_known = self.automaton.step(suffix.state, token).is_some();
            self.experience.record(suffix.len, self.automaton.count(suffix.state), is_known);
            if is_known {
                return;
            }
        }
    }

    fn longest_suffix(&self) -> Suffix {
        let state = self.automaton.longest_repeated_suffix();
        Suffix { state, len: self.automaton.len(state) }
    }

    /// What may follow `longest`, from it and from shorter suffixes, with at least `floor` probability.
    fn predict(&mut self, longest: Suffix, floor: f32) {
        self.predictions.clear();
        let automaton = &self.automaton;
        let mut open = 1.0; // the probability that no longer suffix knows the next token
        let mut longer: Option<Suffix> = None;
        for suffix in suffixes(automaton, longest) {
            if open < floor {
                break;
            }
            // A token that a longer suffix knows is none of those left open. A longer suffix knows fewer tokens, so the
            // next longer one is enough to ask.
            let is_left = |token: TokenId| longer.is_none_or(|longer| automaton.step(longer.state, token).is_none());
            let known = automaton.continuations(suffix.state).take(MAX_CONTINUATIONS);
            let start = self.predictions.len();
            self.predictions.extend(known.filter(|&(token, _)| is_left(token)).map(|(token, next)| Prediction {
                token,
                probability: automaton.count(next) as f32,
                suffix: Suffix { state: next, len: suffix.len + 1 },
            }));
            let known = &mut self.predictions[start..];
            let total: f32 = known.iter().map(|prediction| prediction.probability).sum();
            let hold = self.experience.probability(suffix.len, automaton.count(suffix.state));
            for prediction in known {
                prediction.probability *= open * hold / total;
            }
            open *= 1.0 - hold;
            longer = Some(suffix);
        }
        self.predictions.retain(|prediction| prediction.probability >= floor);
    }

    /// Queues what may follow `suffix` as children of `parent`.
    fn enqueue(&mut self, parent: NodeId, score: f32, suffix: Suffix) {
        self.predict(suffix, MIN_SCORE / score);
        for &prediction in &self.predictions {
            let age = -(self.num_queued as i32);
            self.num_queued += 1;
            self.queue.push(Candidate { score: score * prediction.probability, age, parent, prediction });
        }
    }
}

impl Default for Ngram {
    fn default() -> Self {
        Self::new()
    }
}

impl Drafter for Ngram {
    fn draft(&mut self, request: &mut DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError> {
        self.read(request.context, request.cache.capacity());
        self.queue.clear();
        self.num_queued = 0;
        self.enqueue(NodeId::ROOT, 1.0, self.longest_suffix());
        while draft.tree().len() < request.limits.max_nodes {
            let Some(Candidate { score, parent, prediction, .. }) = self.queue.pop() else { break };
            let node = draft.push(parent, prediction.token, score);
            if draft.tree().depth(node) < request.limits.max_depth {
                self.enqueue(node, score, prediction.suffix);
            }
        }
        Ok(())
    }
}

/// `longest` and its shorter suffixes, as far as each knows more continuations than the longer ones; at most
/// [`MAX_SUFFIXES`], the empty one left out.
fn suffixes(automaton: &SuffixAutomaton, longest: Suffix) -> impl Iterator<Item = Suffix> + '_ {
    let shorter = |suffix: &Suffix| {
        let state = automaton.link(suffix.state)?;
        Some(Suffix { state, len: automaton.len(state) })
    };
    let mut num_known = 0;
    std::iter::successors(Some(longest), shorter)
        .take_while(|suffix| suffix.state != EMPTY)
        .filter(move |suffix| {
            let known_here = automaton.num_continuations(suffix.state);
            known_here > std::mem::replace(&mut num_known, known_here)
        })
        .take(MAX_SUFFIXES)
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(self.age.cmp(&other.age))
    }
}

/// How often the continuations known to a suffix include the token that comes, by length and number of occurrences.
#[derive(Debug)]
struct Experience {
    /// (predictions that held, predictions), both with a prior.
    cells: [[(f32, f32); NUM_COUNT_CLASSES]; NUM_LEN_CLASSES],
}

const NUM_LEN_CLASSES: usize = 6;
const NUM_COUNT_CLASSES: usize = 3;
/// What a suffix of 1, 2, 3, 4-5, 6-9, 10 and more tokens is believed to know before there is experience.
const PRIOR: [f32; NUM_LEN_CLASSES] = [0.3, 0.45, 0.55, 0.65, 0.8, 0.9];
/// The number of predictions that the prior counts for.
const PRIOR_WEIGHT: f32 = 6.0;
/// Older predictions lose weight, so that the estimate follows the text.
const DECAY: f32 = 0.98;

impl Default for Experience {
    fn default() -> Self {
        Self { cells: PRIOR.map(|prior| [(prior * PRIOR_WEIGHT, PRIOR_WEIGHT); NUM_COUNT_CLASSES]) }
    }
}

impl Experience {
    fn classes(len: usize, count: usize) -> (usize, usize) {
        let len_class = match len {
            0..=3 => len.max(1) - 1,
            4..=5 => 3,
            6..=9 => 4,
            _ => 5,
        };
        let count_class = match count {
            0..=2 => 0,
            3..=5 => 1,
            _ => 2,
        };
        (len_class, count_class)
    }

    fn record(&mut self, len: usize, count: usize, has_held: bool) {
        let (len_class, count_class) = Self::classes(len, count);
        let (held, all) = &mut self.cells[len_class][count_class];
        *held = *held * DECAY + f32::from(u8::from(has_held));
        *all = *all * DECAY + 1.0;
    }

    /// The probability that the next token is among those that the suffix knows.
    fn probability(&self, len: usize, count: usize) -> f32 {
        let (len_class, count_class) = Self::classes(len, count);
        let (held, all) = self.cells[len_class][count_class];
        held / all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;
    use crate::testing::propose;

    fn draft(ngram: &mut Ngram, context: &[TokenId], max_nodes: usize) -> Draft {
        let limits = Limits { max_nodes, max_depth: 16, vocab_size: 1000, min_score: 0.0 };
        propose(ngram, context, limits)
    }

    fn children(draft: &Draft, node: NodeId) -> Vec<TokenId> {
        draft.tree().children(node).map(|child| draft.tree().token(child)).collect()
    }

    #[test]
    fn a_repeated_phrase_is_continued() {
        let context = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3];
        let draft = draft(&mut Ngram::new(), &context, 5);
        assert_eq!(draft.tree(), &forestream_model::TokenTree::chain(&[3, 4, 5, 6, 7]));
    }

    #[test]
    fn the_more_frequent_continuation_scores_higher() {
        let context = [5, 1, 6, 5, 2, 6, 5, 1, 7, 5, 1, 8, 5];
        let draft = draft(&mut Ngram::new(), &context, 12);
        let tokens = children(&draft, NodeId::ROOT);
        assert_eq!(tokens[..2], [1, 2]);
        let score = |token| draft.score(draft.tree().child_with(NodeId::ROOT, token).unwrap());
        assert!((score(1) / score(2) - 3.0).abs() < 1e-4);
        let scores: Vec<f32> = draft.tree().node_ids().map(|node| draft.score(node)).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b), "best first: {scores:?}");
    }

    #[test]
    fn shorter_suffixes_add_what_the_longest_does_not_know() {
        // After [2, 3] came 4; after [3] alone also 5 and 6.
        let context = [1, 2, 3, 4, 9, 3, 5, 8, 3, 6, 7, 2, 3];
        let draft = draft(&mut Ngram::new(), &context, 30);
        let mut tokens = children(&draft, NodeId::ROOT);
        assert_eq!(tokens[0], 4);
        tokens.sort_unstable();
        assert_eq!(tokens, [4, 5, 6]);
    }

    #[test]
    fn a_new_text_replaces_the_old_one() {
        let mut ngram = Ngram::new();
        draft(&mut ngram, &[1, 2, 3, 1, 2], 4);
        let fresh = draft(&mut ngram, &[7, 8, 9, 7], 4);
        assert_eq!(children(&fresh, NodeId::ROOT), [8]);
    }

    #[test]
    fn predictions_that_never_hold_lose_their_score() {
        // Every 0 is followed by a token that never followed it before.
        let misleading: Vec<TokenId> = (1..100).flat_map(|token| [0, token]).chain([0]).collect();
        let faithful: Vec<TokenId> = (1..100).flat_map(|token| [0, token % 3 + 1]).chain([0]).collect();
        let best_score = |context: &[TokenId]| {
            let draft = draft(&mut Ngram::new(), context, 2);
            if draft.num_draft_tokens() == 0 { 0.0 } else { draft.score(NodeId(1)) }
        };
        assert!(best_score(&misleading) < 0.05);
        assert!(best_score(&faithful) > 0.8);
    }
}
