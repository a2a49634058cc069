//! Where a text ends, and what is reused for the next one: exact, whatever was drafted.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use forestream_decode::strategies::{StreamPass, Streaming, StreamingOptions, TreeShape};
use forestream_decode::{
    Budget, DecodeError, Draft, DraftRequest, Drafter, FinishReason, Generation, SamplingSettings, Sequence,
    SequenceOptions,
};
use forestream_model::{Model, ModelError, TokenId};
use support::{
    MAX_TOKENS, assert_counts, budgets, drafter, ids, model, options, oracle, plain, prompt, samplings, sequence,
};

#[test]
fn a_stop_token_ends_the_text_in_the_middle_of_a_draft() {
    let model = model();
    for sampling in samplings() {
        let prompt = prompt(3);
        let text = plain(&model, &prompt, &sampling);
        for (stop_at, &stop_token) in text.iter().enumerate() {
            if text[..stop_at].contains(&stop_token) {
                continue;
            }
            let sequence = sequence(&model, &prompt, oracle(&prompt, &text), options(&sampling));
            let mut generation = Generation::new(&model, sequence, Budget::Fixed(16)).stop_on(&[1000, stop_token]);
            let tokens: Vec<_> = generation.by_ref().map(Result::unwrap).collect();
            let got: Vec<TokenId> = tokens.iter().map(|token| token.id).collect();
            assert_eq!(got, text[..=stop_at]);
            assert!(tokens.iter().enumerate().all(|(i, token)| token.is_stop == (i == stop_at)));
            assert!(tokens.iter().enumerate().all(|(i, token)| token.position == prompt.len() + i));
            assert_eq!(generation.finish_reason(), Some(FinishReason::Stop));
            assert_counts(generation.stats(), got.len());
            let sequence = generation.sequence();
            assert_eq!(sequence.cache().tokens(), &sequence.tokens()[..sequence.tokens().len() - 1]);
            assert_eq!(
                generation.stats().rounds,
                stop_at.div_ceil(16),
                "16 tokens a round, the stop token in mid draft"
            );
        }
    }
}

#[test]
fn a_text_from_streams_ends_at_a_stop_token_and_where_the_context_does() {
    let (model, prompt) = (model(), prompt(3));
    let mut accepted = 0;
    for (sampling, pass) in samplings()
        .into_iter()
        .flat_map(|sampling| [StreamPass::Deferred, StreamPass::Fused].map(|p| (sampling.clone(), p)))
    {
        let text = plain(&model, &prompt, &sampling);
        let mut run = |stop_tokens: Vec<TokenId>, capacity: usize| {
            let tree = TreeShape::Static { top_k: 3 };
            let drafter = Box::new(Streaming::new(StreamingOptions { pass, tree, pruning: None }));
            let options = SequenceOptions { stop_tokens, ..options(&sampling) };
            let sequence = Sequence::new(model.config(), &prompt, model.new_cache(capacity), drafter, options).unwrap();
            let mut generation = Generation::new(&model, sequence, Budget::Fixed(40));
            let ids = ids(&mut generation);
            accepted += generation.stats().accepted;
            (ids, generation.finish_reason())
        };
        for (stop_at, &stop_token) in text.iter().enumerate() {
            if !text[..stop_at].contains(&stop_token) {
                assert_eq!(
                    run(vec![stop_token], 512),
                    (text[..=stop_at].to_vec(), Some(FinishReason::Stop)),
                    "{pass:?}"
                );
            }
        }
        for room in [1, 2, 3, 10, 33] {
            let expected = (text[..room].to_vec(), Some(FinishReason::Length));
            assert_eq!(run(Vec::new(), prompt.len() + room), expected, "{pass:?}, room for {room}");
        }
    }
    assert!(accepted > 100, "only {accepted} draft tokens were accepted: the test shows little");
}

#[test]
fn a_text_is_the_same_up_to_an_error() {
    let (model, prompt) = (model(), prompt(3));
    // A reward for repetition, which grows beyond any number once a token has occurred often enough.
    let sampling = SamplingSettings { frequency_penalty: -2e37, penalty_last_n: None, ..SamplingSettings::default() };
    let run = |drafter: Box<dyn Drafter>, budget: Budget| {
        let generation = Generation::new(&model, sequence(&model, &prompt, drafter, options(&sampling)), budget);
        let (ids, errors): (Vec<_>, Vec<_>) = generation.partition(Result::is_ok);
        let ids: Vec<TokenId> = ids.into_iter().map(|token| token.unwrap().id).collect();
        let errors: Vec<String> = errors.into_iter().map(|error| error.unwrap_err().to_string()).collect();
        (ids, errors)
    };
    let (ids, errors) = run(drafter("none"), Budget::Fixed(1));
    assert!(ids.len() > 4 && errors.len() == 1 && errors[0].contains("penalty is too great"), "{ids:?} {errors:?}");
    let text = [ids.as_slice(), &ids].concat(); // beyond the error too
    for max_nodes in [2, 4, 16, 64] {
        let run = run(oracle(&prompt, &text), Budget::Fixed(max_nodes));
        assert_eq!(run, (ids.clone(), errors.clone()), "{max_nodes} nodes");
    }
}

#[test]
fn no_stop_token_is_drawn_before_min_tokens() {
    let model = model();
    for sampling in samplings() {
        let prompt = prompt(3);
        let stop_token = plain(&model, &prompt, &sampling)[4];
        let answer = |min_tokens: usize, names: &str, budget: Budget| {
            let options = SequenceOptions { min_tokens, stop_tokens: vec![1000, stop_token], ..options(&sampling) };
            ids(&mut Generation::new(&model, sequence(&model, &prompt, drafter(names), options), budget))
        };
        for min_tokens in [0, 1, 5, 20, MAX_TOKENS] {
            let expected = answer(min_tokens, "none", Budget::Fixed(1));
            let end = expected.iter().position(|&token| token == stop_token);
            assert!(end.is_none_or(|end| end >= min_tokens && end + 1 == expected.len()), "{end:?}");
            assert_eq!(expected.len() == MAX_TOKENS, end.is_none_or(|end| end + 1 == MAX_TOKENS));
            for budget in budgets() {
                assert_eq!(answer(min_tokens, "ngram", budget), expected);
            }
        }
        assert!(answer(0, "none", Budget::Fixed(1)).len() <= 5);
        assert!(answer(6, "none", Budget::Fixed(1)).len() > 6);
    }
}

#[test]
fn max_tokens_is_exact() {
    let model = model();
    for sampling in samplings() {
        let text = plain(&model, &prompt(3), &sampling);
        for budget in budgets() {
            for max_tokens in [0, 1, 2, 3, 5, 17, 40] {
                let sequence = sequence(&model, &prompt(3), oracle(&prompt(3), &text), options(&sampling));
                let mut generation = Generation::new(&model, sequence, budget.clone()).max_tokens(max_tokens);
                let passes = model.num_passes();
                assert_eq!(ids(&mut generation), text[..max_tokens]);
                assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
                assert!(max_tokens > 0 || model.num_passes() == passes);
                let stats = generation.stats();
                assert_eq!(stats.drafted, stats.accepted, "nothing is verified that could not be emitted");
                assert!(generation.next().is_none());
            }
        }
    }
}

/// Notes the greatest depth that it is asked for, and drafts nothing.
struct Depths(Arc<AtomicUsize>);

impl Drafter for Depths {
    fn draft(&mut self, request: &mut DraftRequest<'_>, _: &mut Draft) -> Result<(), DecodeError> {
        self.0.fetch_max(request.limits.max_depth, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn nobody_is_asked_for_a_chain_longer_than_the_budget() {
    let model = model();
    for nodes in [2, 5, 16] {
        let deepest = Arc::new(AtomicUsize::new(0));
        let drafter = Box::new(Depths(deepest.clone()));
        let sequence = sequence(&model, &prompt(3), drafter, options(&SamplingSettings::default()));
        Generation::new(&model, sequence, Budget::Fixed(nodes)).max_tokens(40).for_each(drop);
        assert_eq!(deepest.load(Ordering::Relaxed), nodes - 1);
    }
}

#[test]
fn a_full_context_ends_the_text() {
    let model = model();
    let sampling = &samplings()[0];
    let prompt = prompt(3);
    let text = plain(&model, &prompt, sampling);
    for room in [1, 2, 3, 10, 33] {
        for names in ["none", "ngram", "oracle"] {
            let cache = model.new_cache(prompt.len() + room);
            let drafter = if names == "oracle" { oracle(&prompt, &text) } else { drafter(names) };
            let sequence = Sequence::new(model.config(), &prompt, cache, drafter, options(sampling)).unwrap();
            let mut generation = Generation::new(&model, sequence, Budget::Fixed(16));
            assert_eq!(ids(&mut generation), text[..room]);
            assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
        }
    }
}

#[test]
fn bad_requests_are_refused_with_a_reason() {
    let model = model();
    let build = |prompt: &[TokenId], sampling: SamplingSettings| {
        let options = SequenceOptions { sampling, ..SequenceOptions::default() };
        Sequence::new(model.config(), prompt, model.new_cache(8), drafter("none"), options).err().unwrap().to_string()
    };
    let settings = SamplingSettings::default;
    let cases = [
        (build(&[], settings()), "no tokens"),
        (build(&[1; 8], settings()), "8 tokens and the context holds 8"),
        (build(&[1, 48], settings()), "the prompt names token id 48, the vocabulary has 48"),
        (build(&[1], SamplingSettings { logit_bias: vec![(99, 1.0)], ..settings() }), "logit_bias names token id 99"),
        (build(&[1], SamplingSettings { top_p: 0.0, ..settings() }), "top_p is 0, it must be above 0 and at most 1"),
    ];
    let reversed = SequenceOptions { min_tokens: 3, max_tokens: 2, ..SequenceOptions::default() };
    let error = Sequence::new(model.config(), &[1], model.new_cache(8), drafter("none"), reversed).err().unwrap();
    assert_eq!(error.to_string(), "min_tokens is 3, it must be at most max_tokens");
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn prompt_chunks_change_nothing() {
    let model = model();
    let prompt: Vec<TokenId> = (0..100).map(|i| i * i % 47).collect();
    let sampling = &samplings()[1];
    let text = plain(&model, &prompt, sampling);
    for chunk in [1, 2, 31, 32, 33, 99, 100, 1000] {
        let sequence = sequence(&model, &prompt, drafter("ngram"), options(sampling));
        let mut generation = Generation::new(&model, sequence, Budget::Fixed(8)).prefill_chunk(chunk);
        let passes = model.num_passes();
        generation.next().unwrap().unwrap();
        assert_eq!(model.num_passes() - passes, 100_usize.div_ceil(chunk));
        assert_eq!(ids(&mut generation), text[1..]);
    }
}

#[test]
fn a_prompt_can_be_read_pass_by_pass() {
    let model = model();
    let prompt: Vec<TokenId> = (0..10).collect();
    let sampling = &samplings()[1];
    let text = plain(&model, &prompt, sampling);
    let sequence = sequence(&model, &prompt, drafter("ngram"), options(sampling));
    let mut generation = Generation::new(&model, sequence, Budget::Fixed(8)).prefill_chunk(4);
    let passes = model.num_passes();
    let mut read_prompt = || (generation.read_prompt().unwrap(), generation.stats().read_tokens);
    let read: Vec<(bool, usize)> = (0..4).map(|_| read_prompt()).collect();
    assert_eq!(read, [(true, 4), (true, 8), (false, 10), (false, 10)]);
    assert_eq!(model.num_passes() - passes, 3, "one pass each, and none where nothing is left");
    assert_eq!(ids(&mut generation), text);
}

#[test]
fn a_later_prompt_reuses_the_rows_of_a_common_beginning() {
    let model = model();
    let sampling = &samplings()[1];
    let first_prompt = prompt(6);
    let mut generation =
        Generation::new(&model, sequence(&model, &first_prompt, drafter("ngram"), options(sampling)), Budget::Fixed(8));
    let answer = ids(&mut generation);
    let cache = generation.into_cache();
    let conversation = [&first_prompt[..], &answer].concat();
    let branch = [&first_prompt[..], &answer[..10], &[40, 41]].concat();
    let longer = [&conversation[..], &[1, 2, 3]].concat();
    let other: Vec<TokenId> = vec![45, 44, 43];
    let prefix = conversation[..20].to_vec();
    let cases = [
        (longer, conversation.len() - 1),
        (conversation, first_prompt.len() + answer.len() - 1),
        (branch, first_prompt.len() + 10),
        (other, 0),
        (prefix, 19),
    ];
    for (prompt, reused) in cases {
        let cache = cache.fork(cache.len());
        let sequence = Sequence::new(model.config(), &prompt, cache, drafter("ngram"), options(sampling)).unwrap();
        let mut generation = Generation::new(&model, sequence, Budget::Fixed(8));
        let passes = model.num_passes();
        assert_eq!(ids(&mut generation), plain(&model, &prompt, sampling), "{reused} rows");
        assert_eq!(generation.stats().reused_tokens, reused);
        assert_eq!(generation.stats().read_tokens, prompt.len() - reused, "also where a round reads the last one");
        assert!(model.num_passes() > passes);
        assert_counts(generation.stats(), generation.sequence().completion().len());
    }
}

#[test]
fn an_error_ends_the_iterator() {
    let model = model();
    let ban_all = SamplingSettings {
        logit_bias: (0..48).map(|token| (token, f32::NEG_INFINITY)).collect(),
        ..SamplingSettings::default()
    };
    let sequence = sequence(&model, &prompt(2), drafter("none"), options(&ban_all));
    let mut generation = Generation::new(&model, sequence, Budget::Fixed(1));
    assert!(matches!(generation.next(), Some(Err(DecodeError::NothingToDraw { position: 27 }))));
    assert!(generation.next().is_none());
    let full = DecodeError::from(ModelError::ContextFull { capacity: 4, needed: 5 });
    assert!(full.to_string().contains("--ctx-size"));
}
