//! The exactness contract on the default model: token ids are equal for every strategy, budget, number of threads and
//! instruction set, greedy and drawn. Needs the model on this machine: `forestream pull`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use forestream::pull::{DEFAULT_MODEL, ModelStore, Network};
use forestream::{Engine, EngineOptions, GenerateOptions, Isa, Message, SamplingSettings, TokenId};

const MAX_TOKENS: usize = 32;

/// Questions of several kinds; some make the answer repeat the prompt.
const PROMPTS: &[&str] = &[
    "Why is the sky blue? Answer in one sentence.",
    "Repeat this list three times: apples, pears, plums, cherries.",
    "Write a Python function that adds two numbers.",
    "Correct the spelling: teh quik brown fox jumpd over teh lazy dog.",
    "Translate into French: Good morning, how are you today?",
    "Summarize in one sentence: Anna met Ben at the station. Anna gave Ben a letter. Ben read the letter and smiled.",
];

fn samplings() -> [SamplingSettings; 2] {
    let greedy = SamplingSettings { seed: 2024, ..SamplingSettings::default() };
    [greedy.clone(), SamplingSettings { temperature: 0.8, top_p: 0.95, ..greedy }]
}

fn generate(engine: &Engine, text: &str, options: &GenerateOptions) -> (Vec<TokenId>, usize) {
    let mut session = engine.session();
    let template = engine.chat_template().unwrap().expect("the default model has a template");
    let prompt = session.chat_prompt(&template, &[Message::new("user", text)], None).unwrap();
    let mut answer = session.generate(&prompt, options).unwrap();
    answer.by_ref().for_each(|piece| drop(piece.unwrap()));
    let report = answer.finish();
    (report.token_ids, report.timings.draft_n_accepted)
}

/// The ids of every prompt and sampling; each strategy and budget must give the same.
fn all_ids(engine: &Engine) -> (Vec<Vec<TokenId>>, usize) {
    let (mut all, mut num_accepted) = (Vec::new(), 0);
    for sampling in samplings() {
        for prompt in PROMPTS {
            let options = |strategy: &str, budget| GenerateOptions {
                strategy: strategy.to_owned(),
                budget,
                max_tokens: Some(MAX_TOKENS),
                ..GenerateOptions::new(sampling.clone())
            };
            let (plain, _) = generate(engine, prompt, &options("none", None));
            for budget in [Some(4), Some(16), None] {
                let (ids, accepted) = generate(engine, prompt, &options("ngram", budget));
                assert_eq!(ids, plain, "{prompt:?}, budget {budget:?}, temperature {}", sampling.temperature);
                num_accepted += accepted;
            }
            all.push(plain);
        }
    }
    (all, num_accepted)
}

#[test]
fn the_default_model_gives_the_same_ids_in_every_way() {
    let path = ModelStore::for_user(Network::Offline).locate(DEFAULT_MODEL, &mut ()).unwrap();
    let mut ways = vec![(Isa::best(), 1)];
    ways.extend(Isa::available().into_iter().rev().map(|isa| (isa, 2)));
    let mut expected = None;
    for (isa, threads) in ways {
        let options = EngineOptions { threads: Some(threads), isa: Some(isa), ..EngineOptions::default() };
        let (ids, num_accepted) = all_ids(&Engine::open(&path, &options).unwrap());
        assert!(num_accepted > 50, "only {num_accepted} draft tokens were accepted: the test shows little");
        assert_eq!(ids, *expected.get_or_insert_with(|| ids.clone()), "{} with {threads} threads", isa.name());
    }
}
