//! The exactness contract on the default model: token ids are equal for every strategy, budget, number of threads and
//! instruction set, greedy and drawn. Needs the model on this machine: `forestream pull`.
//!
//! `FORESTREAM_PROMPTS=FILE.jsonl` takes the first 50 rows' `prompt` instead of the few prompts below, 64 tokens each. Where
//! the compiler may not use fused multiply-add, the portable kernels come to a few tokens a second and take two of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use forestream::pull::{DEFAULT_MODEL, ModelStore, Network};
use forestream::{Engine, EngineOptions, GenerateOptions, Isa, Message, SamplingSettings, TokenId};

/// Questions of several kinds; some make the answer repeat the prompt.
const PROMPTS: &[&str] = &[
    "Why is the sky blue? Answer in one sentence.",
    "Repeat this list three times: apples, pears, plums, cherries.",
    "Write a Python function that adds two numbers.",
    "Correct the spelling: teh quik brown fox jumpd over teh lazy dog.",
    "Translate into French: Good morning, how are you today?",
    "Summarize in one sentence: Anna met Ben at the station. Anna gave Ben a letter. Ben read the letter and smiled.",
];

/// Whether the compiler turns the portable kernels into fused instructions, as it does for aarch64 and where it is told
/// of a processor that has them (`-C target-cpu=x86-64-v3`).
const PORTABLE_IS_FAST: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

/// What to generate, and how much.
struct Workload {
    prompts: Vec<String>,
    max_tokens: usize,
    /// Prompts for the portable kernels.
    num_portable: usize,
}

impl Workload {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the way to ask a test for more")]
        let Ok(file) = std::env::var("FORESTREAM_PROMPTS") else {
            let prompts = PROMPTS.iter().map(|&prompt| prompt.to_owned()).collect();
            return Self { prompts, max_tokens: 32, num_portable: 1 };
        };
        let prompt_of = |row: &str| {
            let row: serde_json::Value = serde_json::from_str(row).unwrap();
            row["prompt"].as_str().expect("a row has a `prompt`").to_owned()
        };
        let prompts: Vec<String> = std::fs::read_to_string(file).unwrap().lines().take(50).map(prompt_of).collect();
        let num_portable = if PORTABLE_IS_FAST { prompts.len() } else { 2 };
        Self { prompts, max_tokens: 64, num_portable }
    }
}

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
fn all_ids(engine: &Engine, prompts: &[String], max_tokens: usize) -> (Vec<Vec<TokenId>>, usize) {
    let (mut all, mut num_accepted) = (Vec::new(), 0);
    for prompt in prompts {
        for sampling in samplings() {
            let options = |strategy: &str, budget| GenerateOptions {
                strategy: strategy.to_owned(),
                budget,
                max_tokens: Some(max_tokens),
                ..GenerateOptions::new(sampling.clone())
            };
            let (plain, _) = generate(engine, prompt, &options("none", None));
            let cases =
                [("ngram", Some(4)), ("ngram", Some(16)), ("ngram", None), ("streaming", Some(8)), ("auto", None)];
            for (strategy, budget) in cases {
                let (ids, accepted) = generate(engine, prompt, &options(strategy, budget));
                let temperature = sampling.temperature;
                assert_eq!(ids, plain, "{prompt:?}, {strategy}, budget {budget:?}, temperature {temperature}");
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

/// Compares every instruction set, with this number of threads, with one thread and the best of them.
fn compare_all(num_threads: usize) {
    let Workload { prompts, max_tokens, num_portable } = Workload::new();
    let (expected, num_accepted) = all_ids(&open(Isa::best(), 1), &prompts, max_tokens);
    assert!(num_accepted > 50, "only {num_accepted} draft tokens were accepted: the test shows little");
    for isa in Isa::available() {
        let prompts = if isa == Isa::PORTABLE { &prompts[..num_portable] } else { &prompts };
        let (ids, _) = all_ids(&open(isa, num_threads), prompts, max_tokens);
        assert_eq!(ids, expected[..ids.len()], "{} with {num_threads} threads", isa.name());
    }
}

#[test]
fn the_default_model_gives_the_same_ids_in_every_way() {
    compare_all(2);
}

#[test]
fn one_thread_gives_them_too() {
    compare_all(1);
}
