//! Sample and match: the target draws every token, and a draft only saves passes.
//!
//! The draw is the one that plain decoding would make at that position, whatever was drafted. So the text is identical
//! for any tree, however it was built or cut. Exact for greedy decoding and for sampling.

use super::{Acceptance, Walk};
use crate::DecodeError;

/// The default rule: one target draw per emitted token; descend while a child carries it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SampleAndMatch;

impl Acceptance for SampleAndMatch {
    fn walk(&mut self, walk: &mut Walk<'_>) -> Result<(), DecodeError> {
        loop {
            let token = walk.draw()?;
            let child = walk.draft().tree().child_with(walk.node(), token);
            if walk.emit(token, child).is_break() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use forestream_model::{Hidden, Model, NodeId, Outputs, Row, TokenId, TokenTree};

    use super::*;
    use crate::acceptance::Stop;
    use crate::testing::FakeModel;
    use crate::{Draft, Sampler, SamplingSettings};

    const VOCAB_SIZE: usize = 6;
    const PROMPT: [TokenId; 3] = [0, 1, 2];
    /// What a draft of depth 2 can emit.
    const NUM_TOKENS: usize = 3;

    fn sampler(seed: u64) -> Sampler {
        // A penalty, so that laws depend on the tokens of the path.
        let settings =
            SamplingSettings { temperature: 1.0, presence_penalty: 0.2, seed, ..SamplingSettings::default() };
        Sampler::new(settings).expect("the settings are valid")
    }

    /// The target's law after the prompt and `text`, by a pass of its own; in the order of the target's candidates.
    fn law(model: &FakeModel, text: &[TokenId]) -> Vec<(TokenId, f64)> {
        let context = [&PROMPT, text].concat();
        let (tree, mut cache) = (TokenTree::chain(&context), model.new_cache(16));
        let (mut hidden, mut logits) = (Hidden::new(), Vec::new());
        let row = Row { tree: &tree, cache: &mut cache, outputs: Outputs::Last };
        model.forward(&mut [row], &mut hidden).expect("the text is short");
        model.logits(&hidden, 0..1, &mut logits);
        let mut sampler = sampler(0);
        let law = sampler.distribution(&mut logits, &context).expect("all logits are finite");
        law.candidates().iter().map(|candidate| (candidate.token, law.probability(candidate.token))).collect()
    }

    /// The random numbers under which plain decoding says `text`: a box of the unit cube.
    struct Cell {
        text: Vec<TokenId>,
        /// The volume of the box.
        probability: f64,
        /// A seed whose random numbers lie in the box.
        seed: u64,
    }

    /// The laws after all texts of up to [`NUM_TOKENS`] - 1 tokens.
    fn laws(model: &FakeModel) -> BTreeMap<Vec<TokenId>, Vec<(TokenId, f64)>> {
        let mut texts = vec![Vec::new()];
        for text in 0..=VOCAB_SIZE {
            for token in 0..VOCAB_SIZE as TokenId {
                texts.push([&texts[text][..], &[token]].concat());
            }
        }
        texts.into_iter().map(|text| (text.clone(), law(model, &text))).collect()
    }

    /// One cell for every text of [`NUM_TOKENS`] tokens.
    fn cells(model: &FakeModel) -> Vec<Cell> {
        let laws = laws(model);
        let mut cells = BTreeMap::new();
        for seed in 0.. {
            let random = sampler(seed).random();
            let (mut text, mut probability) = (Vec::new(), 1.0);
            for position in PROMPT.len()..PROMPT.len() + NUM_TOKENS {
                let (uniform, mut end) = (random.uniform(position, 0), 0.0);
                let covers = |&&(_, share): &&(TokenId, f64)| {
                    end += share;
                    uniform < end
                };
                let &(token, share) = laws[&text].iter().find(covers).expect("the probabilities add up to 1");
                text.push(token);
                probability *= share;
            }
            cells.entry(text.clone()).or_insert(Cell { text, probability, seed });
            if cells.len() == VOCAB_SIZE.pow(NUM_TOKENS as u32) {
                break;
            }
        }
        cells.into_values().collect()
    }

    /// A draft of depth 2: bit t of `set` says whether token t follows the root, and which tokens follow token t.
    fn draft(set: u32) -> Draft {
        let mut draft = Draft::new(PROMPT[PROMPT.len() - 1]);
        let tokens = |shift: u32| (0..VOCAB_SIZE as u32).filter(move |&token| set >> ((token + shift) % 6) & 1 == 1);
        for token in tokens(0) {
            let node = draft.push(NodeId::ROOT, token, 0.5);
            for next in tokens(token + 1) {
                draft.push(node, next, 0.5);
            }
        }
        draft
    }

    /// What the rule emits of `draft` under each cell's random numbers.
    fn emitted(model: &FakeModel, draft: &Draft, cells: &[Cell]) -> Vec<Vec<TokenId>> {
        let (before, last) = PROMPT.split_at(PROMPT.len() - 1);
        let (tree, mut cache) = (TokenTree::chain(before), model.new_cache(64));
        let (mut hidden, mut all_logits) = (Hidden::new(), Vec::new());
        let row = Row { tree: &tree, cache: &mut cache, outputs: Outputs::None };
        model.forward(&mut [row], &mut hidden).expect("the prompt fits");
        cache.commit(&tree.path(tree.last()));
        assert_eq!(draft.tree().token(NodeId::ROOT), last[0]);
        let row = Row { tree: draft.tree(), cache: &mut cache, outputs: Outputs::All };
        model.forward(&mut [row], &mut hidden).expect("the draft fits");
        model.logits(&hidden, 0..hidden.num_rows(), &mut all_logits);
        let run = |cell: &Cell| {
            let (mut tokens, mut path, mut logits) = (PROMPT.to_vec(), vec![NodeId::ROOT], all_logits.clone());
            let mut walk = Walk {
                draft,
                logits: &mut logits,
                vocab_size: VOCAB_SIZE,
                hidden: &hidden,
                sequence_index: 0,
                sampler: &mut sampler(cell.seed),
                tokens: &mut tokens,
                path: &mut path,
                stop: Stop { tokens: &[], min_len: 0, max_len: usize::MAX },
            };
            SampleAndMatch.walk(&mut walk).expect("all logits are finite");
            tokens.split_off(PROMPT.len())
        };
        cells.iter().map(run).collect()
    }

    /// Over all random numbers, in exact sums: every text comes out with its probability under the target, and as far as
    /// the draft has it.
    #[test]
    fn every_draft_leaves_the_law_as_it_is() {
        let model = FakeModel::new(VOCAB_SIZE, 2.5);
        let cells = cells(&model);
        let mut expected: BTreeMap<&[TokenId], f64> = BTreeMap::new();
        for (cell, len) in cells.iter().flat_map(|cell| (1..=NUM_TOKENS).map(move |len| (cell, len))) {
            *expected.entry(&cell.text[..len]).or_default() += cell.probability;
        }
        let first = law(&model, &[]);
        assert!(first.iter().any(|(_, p)| *p > 0.3) && first.iter().any(|(_, p)| *p < 0.1), "a flat law hides errors");
        for set in 0..1 << VOCAB_SIZE {
            let draft = draft(set);
            let mut got: BTreeMap<Vec<TokenId>, f64> = BTreeMap::new();
            for (text, cell) in emitted(&model, &draft, &cells).into_iter().zip(&cells) {
                for len in 1..=text.len() {
                    *got.entry(text[..len].to_vec()).or_default() += cell.probability;
                }
            }
            for (text, probability) in &expected {
                let drafted = text[..text.len() - 1]
                    .iter()
                    .try_fold(NodeId::ROOT, |node, &token| draft.tree().child_with(node, token));
                let probability = if drafted.is_some() { *probability } else { 0.0 };
                let got = got.get(*text).copied().unwrap_or(0.0);
                assert!((got - probability).abs() < 1e-12, "set {set:#b}, {text:?}: {got} for {probability}");
            }
        }
    }
}
