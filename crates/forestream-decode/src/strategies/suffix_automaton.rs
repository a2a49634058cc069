//! An online suffix automaton with occurrence counts: every piece of a text, and what followed it how often.
//!
//! A state stands for the pieces that end at the same places; its link leads to the longest shorter suffix that ends at
//! more places. Adding a token takes constant time on average, plus one step along the links for each count. Source:
//! Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use forestream_model::TokenId;

use crate::random::mix;

/// The index of a state; the first one stands for the empty piece.
pub(super) type StateId = u32;

/// The state of the empty piece.
pub(super) const EMPTY: StateId = 0;
/// The end of a list of edges.
const NO_EDGE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct State {
    /// Length of the longest piece.
    len: u32,
    /// `None` for the empty piece alone.
    link: Option<StateId>,
    /// How many places the pieces end at.
    count: u32,
    /// The newest edge.
    first_edge: u32,
    num_edges: u32,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    token: TokenId,
    target: StateId,
    /// The next older edge of the same state.
    next: u32,
}

/// Every piece of a growing text.
#[derive(Debug)]
pub(super) struct SuffixAutomaton {
    states: Vec<State>,
    edges: Vec<Edge>,
    edge_of: HashMap<(StateId, TokenId), u32, BuildHasherDefault<PairHasher>>,
    /// The state of the whole text.
    last: StateId,
}

impl SuffixAutomaton {
    /// The automaton of the empty text.
    pub(super) fn new() -> Self {
        let mut automaton = Self { states: Vec::new(), edges: Vec::new(), edge_of: HashMap::default(), last: EMPTY };
        automaton.clear();
        automaton
    }

    /// Forgets the text, keeping allocations.
    pub(super) fn clear(&mut self) {
        self.states.clear();
        self.edges.clear();
        self.edge_of.clear();
        self.states.push(State { len: 0, link: None, count: 0, first_edge: NO_EDGE, num_edges: 0 });
        self.last = EMPTY;
    }

    /// Makes room for a text of `len` tokens: at most `2 len` states and `3 len` edges.
    pub(super) fn reserve(&mut self, len: usize) {
        self.states.reserve((2 * len).saturating_sub(self.states.len()));
        self.edges.reserve((3 * len).saturating_sub(self.edges.len()));
        self.edge_of.reserve((3 * len).saturating_sub(self.edge_of.len()));
    }

    /// The state of the longest suffix of the text that also occurs earlier; the empty piece if none does.
    pub(super) fn longest_repeated_suffix(&self) -> StateId {
        self.link(self.last).unwrap_or(EMPTY)
    }

    /// The next shorter suffix that has other continuations; `None` after the empty piece.
    pub(super) fn link(&self, state: StateId) -> Option<StateId> {
        self.states[state as usize].link
    }

    /// Length of the longest piece of `state`.
    pub(super) fn len(&self, state: StateId) -> usize {
        self.states[state as usize].len as usize
    }

    /// How often the pieces of `state` occur.
    pub(super) fn count(&self, state: StateId) -> usize {
        self.states[state as usize].count as usize
    }

    /// The state after `token`; `None` where the pieces are never followed by it.
    pub(super) fn step(&self, state: StateId, token: TokenId) -> Option<StateId> {
        let edge = *self.edge_of.get(&(state, token))?;
        Some(self.edges[edge as usize].target)
    }

    /// How many different tokens have followed the pieces of `state`.
    pub(super) fn num_continuations(&self, state: StateId) -> usize {
        self.states[state as usize].num_edges as usize
    }

    /// What has followed the pieces of `state`, most recently seen kind first.
    pub(super) fn continuations(&self, state: StateId) -> impl Iterator<Item = (TokenId, StateId)> + Clone + '_ {
        let mut next = self.states[state as usize].first_edge;
        std::iter::from_fn(move || {
            let edge = *self.edges.get(next as usize)?;
            next = edge.next;
            Some((edge.token, edge.target))
        })
    }

    /// Adds a token to the end of the text.
    pub(super) fn push(&mut self, token: TokenId) {
        let len = self.states[self.last as usize].len + 1;
        let new = self.add_state(State { len, link: None, count: 0, first_edge: NO_EDGE, num_edges: 0 });
        let mut state = Some(self.last);
        while let Some(id) = state.filter(|&id| self.step(id, token).is_none()) {
            self.add_edge(id, token, new);
            state = self.link(id);
        }
        let link = state.map_or(EMPTY, |id| self.split(id, token));
        self.states[new as usize].link = Some(link);
        self.last = new;
        let mut state = Some(new);
        while let Some(id) = state {
            self.states[id as usize].count += 1;
            state = self.link(id);
        }
    }

    /// The state of exactly the longest piece of `state` followed by `token`, split off its state if that has longer ones.
    fn split(&mut self, state: StateId, token: TokenId) -> StateId {
        let target = self.step(state, token).expect("the caller found the edge");
        let len = self.states[state as usize].len + 1;
        if self.states[target as usize].len == len {
            return target;
        }
        let copy = self.add_state(State { len, first_edge: NO_EDGE, ..self.states[target as usize].clone() });
        self.copy_edges(target, copy);
        self.states[target as usize].link = Some(copy);
        let mut state = Some(state);
        while let Some(id) = state.filter(|&id| self.step(id, token) == Some(target)) {
            let edge = self.edge_of[&(id, token)];
            self.edges[edge as usize].target = copy;
            state = self.link(id);
        }
        copy
    }

    fn add_state(&mut self, state: State) -> StateId {
        self.states.push(state);
        self.states.len() as StateId - 1
    }

    fn add_edge(&mut self, state: StateId, token: TokenId, target: StateId) {
        let edge = self.edges.len() as u32;
        let state_ref = &mut self.states[state as usize];
        state_ref.num_edges += 1;
        self.edges.push(Edge { token, target, next: std::mem::replace(&mut state_ref.first_edge, edge) });
        self.edge_of.insert((state, token), edge);
    }

    /// Gives `to`, which has no edges, the edges of `from` in the same order.
    fn copy_edges(&mut self, from: StateId, to: StateId) {
        let mut next = self.states[from as usize].first_edge;
        let mut previous = NO_EDGE;
        while next != NO_EDGE {
            let Edge { token, target, next: older } = self.edges[next as usize];
            let copy = self.edges.len() as u32;
            self.edges.push(Edge { token, target, next: NO_EDGE });
            self.edge_of.insert((to, token), copy);
            match self.edges.get_mut(previous as usize) {
                Some(previous) => previous.next = copy,
                None => self.states[to as usize].first_edge = copy,
            }
            previous = copy;
            next = older;
        }
    }
}

/// Mixes the two halves of a key; the map is never iterated, so nothing depends on its order.
#[derive(Debug, Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        mix(self.0)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = self.0.rotate_left(32) ^ u64::from(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text over few tokens, so that pieces repeat.
    fn text(seed: u64, len: usize, kinds: u64) -> Vec<TokenId> {
        (0..len as u64).map(|i| (mix(seed * 1000 + i) % kinds) as TokenId).collect()
    }

    fn state_of(automaton: &SuffixAutomaton, piece: &[TokenId]) -> Option<StateId> {
        piece.iter().try_fold(EMPTY, |state, &token| automaton.step(state, token))
    }

    #[test]
    fn every_piece_is_counted_as_a_search_counts_it() {
        for (seed, kinds) in [(1, 2), (2, 3), (3, 1), (4, 7)] {
            let text = text(seed, 40, kinds);
            let mut automaton = SuffixAutomaton::new();
            for end in 1..=text.len() {
                automaton.push(text[end - 1]);
                let so_far = &text[..end];
                for start in 0..end {
                    for piece_len in 1..=(end - start).min(6) {
                        let piece = &so_far[start..start + piece_len];
                        let expected = so_far.windows(piece_len).filter(|window| *window == piece).count();
                        let state = state_of(&automaton, piece).unwrap();
                        assert_eq!(automaton.count(state), expected, "{piece:?} in {so_far:?}");
                        let continuations: Vec<_> = automaton.continuations(state).collect();
                        let longer = so_far.windows(piece_len + 1).filter(|window| window[..piece_len] == *piece);
                        let sum: usize = continuations.iter().map(|&(_, next)| automaton.count(next)).sum();
                        assert_eq!(sum, longer.count());
                    }
                }
                let suffix_len = automaton.len(automaton.longest_repeated_suffix());
                let repeats = |len: usize| so_far.windows(len).filter(|w| *w == &so_far[end - len..]).count() > 1;
                assert_eq!(suffix_len, (1..end).rev().find(|&len| repeats(len)).unwrap_or(0));
            }
            assert!(automaton.states.len() <= 2 * text.len() && automaton.edges.len() <= 3 * text.len());
        }
    }

    #[test]
    fn a_piece_that_never_occurs_has_no_state() {
        let mut automaton = SuffixAutomaton::new();
        for token in [1, 2, 3, 1, 2] {
            automaton.push(token);
        }
        assert_eq!(state_of(&automaton, &[2, 1]), None);
        assert_eq!(automaton.continuations(automaton.longest_repeated_suffix()).next().unwrap().0, 3);
        automaton.clear();
        assert_eq!(automaton.longest_repeated_suffix(), EMPTY);
    }
}
