//! A text ends where plain decoding ends it, also when the end lies inside an accepted path.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use forestream_decode::strategies::{self, Resources};
use forestream_decode::testing::FakeModel;
use forestream_decode::{
    Budget, DecodeError, Draft, DraftRequest, Drafter, FinishReason, Generation, SamplingSettings, Sequence,
    SequenceOptions,
};
use forestream_model::{Model, NodeId, TokenId};

const VOCAB_SIZE: usize = 40;
const PROMPT: [TokenId; 4] = [3, 1, 4, 1];
const CAPACITY: usize = 64;

/// Proposes the very text that will come, and a wrong sibling before each of its tokens.
struct Oracle {
    text: Vec<TokenId>,
}

impl Drafter for Oracle {
    fn draft(&mut self, request: &DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError> {
        let mut parent = NodeId::ROOT;
        for &token in &self.text[request.context.len().min(self.text.len())..] {
            draft.push(parent, (token + 1) % VOCAB_SIZE as TokenId, 0.9);
            parent = draft.push(parent, token, 0.9);
        }
        Ok(())
    }
}

/// Ids, reason, and the index of the token that was marked as a stop token.
type Answer = (Vec<TokenId>, Option<FinishReason>, Option<usize>);

fn generate(model: &FakeModel, drafter: Box<dyn Drafter>, max_tokens: usize, stop_tokens: &[TokenId]) -> Answer {
    let sampling = SamplingSettings { temperature: 0.7, seed: 5, ..SamplingSettings::default() };
    let options =
        SequenceOptions { sampling, max_tokens, stop_tokens: stop_tokens.to_vec(), ..SequenceOptions::default() };
    let cache = model.new_cache(CAPACITY);
    let sequence = Sequence::new(model.config(), &PROMPT, cache, drafter, options).unwrap();
    let mut generation = Generation::new(model, sequence, Budget::Fixed(16));
    let tokens: Vec<_> = generation.by_ref().map(Result::unwrap).collect();
    let stop = tokens.iter().position(|token| token.is_stop);
    (tokens.iter().map(|token| token.id).collect(), generation.finish_reason(), stop)
}

fn plain(model: &FakeModel, max_tokens: usize, stop_tokens: &[TokenId]) -> Answer {
    let drafter = strategies::build("none", &Resources::default()).unwrap();
    generate(model, drafter, max_tokens, stop_tokens)
}

/// A drafter that knows what plain decoding says.
fn oracle(model: &FakeModel) -> Oracle {
    let (text, ..) = plain(model, usize::MAX, &[]);
    Oracle { text: [&PROMPT[..], &text].concat() }
}

#[test]
fn a_stop_token_inside_an_accepted_path_ends_the_text() {
    let model = FakeModel::new(VOCAB_SIZE, 14.0);
    let (text, reason, stop) = plain(&model, usize::MAX, &[]);
    assert_eq!((text.len(), reason, stop), (CAPACITY - PROMPT.len(), Some(FinishReason::Length), None));
    for (index, &token) in text.iter().enumerate() {
        let first = text.iter().position(|&other| other == token).unwrap();
        let expected = (text[..=first].to_vec(), Some(FinishReason::Stop), Some(first));
        assert_eq!(plain(&model, usize::MAX, &[token]), expected);
        assert_eq!(
            generate(&model, Box::new(oracle(&model)), usize::MAX, &[token]),
            expected,
            "token {token} at {index}"
        );
    }
}

#[test]
fn the_limit_is_met_exactly_inside_an_accepted_path() {
    let model = FakeModel::new(VOCAB_SIZE, 14.0);
    let (text, ..) = plain(&model, usize::MAX, &[]);
    for max_tokens in 0..text.len() {
        let expected = (text[..max_tokens].to_vec(), Some(FinishReason::Length), None);
        assert_eq!(generate(&model, Box::new(oracle(&model)), max_tokens, &[]), expected);
    }
}
