//! The walk from the root of a verified draft downwards, one emitted token per node.
//!
//! Target distributions are computed at visited nodes only: penalties depend on the tokens of the path.

use std::ops::ControlFlow;

use forestream_model::{Hidden, NodeId, TokenId};

use crate::logits::Distribution;
use crate::{DecodeError, Draft, Random, Sampler};

/// A sequence's part of a verified pass, and what is emitted of it.
#[derive(Debug)]
pub struct Walk<'a> {
    pub(crate) draft: &'a Draft,
    /// Logits of the whole pass, `[rows, vocab_size]`.
    pub(crate) logits: &'a mut [f32],
    pub(crate) vocab_size: usize,
    pub(crate) hidden: &'a Hidden,
    pub(crate) sequence_index: usize,
    pub(crate) sampler: &'a mut Sampler,
    /// Prompt and answer; emitted tokens are appended.
    pub(crate) tokens: &'a mut Vec<TokenId>,
    /// From the root to the current node.
    pub(crate) path: &'a mut Vec<NodeId>,
    pub(crate) stop: Stop<'a>,
}

/// After which token a sequence ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop<'a> {
    pub(crate) tokens: &'a [TokenId],
    /// No stop token is drawn before so many tokens, prompt included.
    pub(crate) min_len: usize,
    /// The most tokens, prompt included.
    pub(crate) max_len: usize,
}

impl Stop<'_> {
    /// Bans the stop tokens where the text, of `len` tokens so far, is not to end.
    fn withhold(&self, len: usize, logits: &mut [f32]) {
        if len < self.min_len {
            for &token in self.tokens {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

impl Walk<'_> {
    /// The verified draft.
    pub fn draft(&self) -> &Draft {
        self.draft
    }

    /// The last accepted node; the root at first.
    pub fn node(&self) -> NodeId {
        self.path.last().copied().unwrap_or(NodeId::ROOT)
    }

    /// The absolute position of the token that is decided next.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// The target's random numbers.
    pub fn random(&self) -> Random {
        self.sampler.random()
    }

    /// The target's law of the next token. To be called once per node: it changes the node's logits.
    ///
    /// # Errors
    /// [`DecodeError::NothingToDraw`] when no logit is finite.
    ///
    /// # Panics
    /// If the pass gave no logits for the node; a round asks for those of every draft node.
    pub fn distribution(&mut self) -> Result<&mut Distribution, DecodeError> {
        let row = self.hidden.row_of(self.sequence_index, self.node()).expect("verified nodes have logits");
        let logits = &mut self.logits[row * self.vocab_size..][..self.vocab_size];
        self.stop.withhold(self.tokens.len(), logits);
        self.sampler.distribution(logits, self.tokens)
    }

    /// One draw from the target's law. To be called once per node.
    ///
    /// # Errors
    /// [`DecodeError::NothingToDraw`] when no logit is finite.
    pub fn draw(&mut self) -> Result<TokenId, DecodeError> {
        let uniform = self.random().uniform(self.position(), 0);
        Ok(self.distribution()?.draw(uniform))
    }

    /// Emits `token`; goes on at `child`, the node that carries it. Breaks when the round is over, or the early exit has
    /// pruned the child.
    pub fn emit(&mut self, token: TokenId, child: Option<NodeId>) -> ControlFlow<()> {
        self.tokens.push(token);
        match child.filter(|&child| self.hidden.row_of(self.sequence_index, child).is_some()) {
            Some(child) if !self.stop.is_after(token, self.tokens.len()) => {
                self.path.push(child);
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Break(()),
        }
    }
}

impl Stop<'_> {
    /// Whether a text of `len` tokens that ends with `token` is complete.
    pub(crate) fn is_after(&self, token: TokenId, len: usize) -> bool {
        len >= self.max_len || self.tokens.contains(&token)
    }
}
