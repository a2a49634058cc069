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

/// The ids of each prompt, greedy then drawn; each strategy and budget must give the same. Also counts accepted tokens.
fn all_ids(engine: &Engine, prompts: &[&str]) -> (Vec<Vec<TokenId>>, usize) {
    let (mut all, mut num_accepted) = (Vec::new(), 0);
    for prompt in prompts {
        for sampling in samplings() {
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

fn open(isa: Isa, threads: usize) -> Engine {
    let path = ModelStore::for_user(Network::Offline).locate(DEFAULT_MODEL, &mut ()).unwrap();
    let options = EngineOptions { threads: Some(threads), isa: Some(isa), ..EngineOptions::default() };
    Engine::open(&path, &options).unwrap()
}

#[test]
fn the_default_model_gives_the_same_ids_in_every_way() {
    let (expected, num_accepted) = all_ids(&open(Isa::best(), 1), PROMPTS);
    assert!(num_accepted > 50, "only {num_accepted} draft tokens were accepted: the test shows little");
    for isa in Isa::available() {
        // The portable kernels are ten times slower: one prompt has to do.
        let prompts = if isa == Isa::PORTABLE { &PROMPTS[..1] } else { PROMPTS };
        let (ids, _) = all_ids(&open(isa, 2), prompts);
        assert_eq!(ids, expected[..ids.len()], "{} with 2 threads", isa.name());
    }
}
