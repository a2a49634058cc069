//! The tokens that streams can propose: a head of a few thousand rows costs a fraction of the whole one.

use forestream_model::TokenId;

use crate::data::Example;

/// The `size` most frequent completion tokens, ties by id; fewer where the data has fewer, since what never occurs would
/// only be read in every draft.
pub(crate) fn choose(examples: &[Example], size: usize, vocab_size: usize) -> Vec<TokenId> {
    let mut counts = vec![0_u64; vocab_size];
    for &token in examples.iter().flat_map(|example| &example.completion) {
        counts[token as usize] += 1;
    }
    let mut ids: Vec<TokenId> = (0..vocab_size as TokenId).filter(|&id| counts[id as usize] > 0).collect();
    ids.sort_by_key(|&id| (std::cmp::Reverse(counts[id as usize]), id));
    ids.truncate(size);
    ids
}

/// From token id to the row of a draft vocabulary's head.
#[derive(Clone, Debug)]
pub(crate) struct DraftRows {
    rows: Vec<Option<u32>>,
}

impl DraftRows {
    /// The rows of `draft_vocabulary`; empty means all tokens.
    pub(crate) fn new(draft_vocabulary: &[TokenId], vocab_size: usize) -> Self {
        if draft_vocabulary.is_empty() {
            return Self { rows: (0..vocab_size as u32).map(Some).collect() };
        }
        let mut rows = vec![None; vocab_size];
        for (row, &token) in draft_vocabulary.iter().enumerate() {
            rows[token as usize] = Some(row as u32);
        }
        Self { rows }
    }

    /// The row of a token; `None` if streams cannot propose it.
    pub(crate) fn row(&self, token: TokenId) -> Option<u32> {
        self.rows[token as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_tokens_come_first_and_others_not_at_all() {
        let examples = [
            Example { prompt: vec![9, 9, 9, 9], completion: vec![5, 3, 5] },
            Example { prompt: vec![1], completion: vec![7, 3, 5] },
        ];
        assert_eq!(choose(&examples, 2, 10), [5, 3]);
        assert_eq!(choose(&examples, 6, 10), [5, 3, 7]);
        let rows = DraftRows::new(&[5, 3], 10);
        assert_eq!([rows.row(5), rows.row(3), rows.row(7)], [Some(0), Some(1), None]);
        assert_eq!(DraftRows::new(&[], 10).row(7), Some(7));
    }
}
