//! `distill`: answers that do not depend on the batch, and a file that can be continued.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/adapter.rs"]
mod adapter;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use forestream::distill::{DistillOptions, DistillPrompt, Distillation, DistilledAnswer, seed_of};
use forestream::{Engine, EngineOptions, FinishReason, GenerateOptions, Message, PLAIN, SamplingSettings};
use forestream_model::Checkpoint;
use forestream_model::streams::{Adapter, LoraConfig, MainLoraConfig, TrainingMode};
use support::{Run, Sandbox, tiny_model};

const QUESTIONS: [&str; 7] =
    ["one", "two and three", "", "a longer question: why is it so, and since when?", "five", "Ünï", "7"];

/// The questions as rows of data.
fn data() -> String {
    let rows = QUESTIONS.map(|question| serde_json::json!({ "prompt": question }).to_string());
    rows.join("\n")
}

fn samplings() -> [SamplingSettings; 2] {
    [SamplingSettings::default(), SamplingSettings { temperature: 1.2, seed: 5, ..SamplingSettings::default() }]
}

#[test]
fn answers_are_those_of_single_sequences_whatever_the_batch() {
    let engine = Engine::open(Path::new(&tiny_model("tiny-llama")), &EngineOptions::default()).unwrap();
    let session = engine.session();
    let prompt = |text: &&str| DistillPrompt {
        text: (*text).to_owned(),
        tokens: session.plain_prompt(text).unwrap(),
        draw: None,
    };
    let prompts: Vec<DistillPrompt> = QUESTIONS.iter().map(prompt).collect();
    let mut finish_reasons = Vec::new();
    for sampling in samplings() {
        let options = |batch_size| DistillOptions { sampling: sampling.clone(), max_tokens: 150, batch_size };
        let expected: Vec<_> = prompts.iter().enumerate().map(|one| alone(&engine, one, &sampling)).collect();
        finish_reasons.extend(expected.iter().map(|answer| answer.finish_reason));
        for batch_size in [1, 2, 3, 16] {
            for first in [0, 4] {
                let distillation = Distillation::new(&engine, &prompts[first..], first, options(batch_size));
                assert_eq!(all(distillation), expected[first..], "batch {batch_size}, from {first}");
            }
        }
    }
    assert!(finish_reasons.contains(&FinishReason::Stop) && finish_reasons.contains(&FinishReason::Length));
}

fn alone(engine: &Engine, one: (usize, &DistillPrompt), sampling: &SamplingSettings) -> DistilledAnswer {
    let (index, prompt) = one;
    let sampling = SamplingSettings { seed: seed_of(sampling.seed, index), ..sampling.clone() };
    let options =
        GenerateOptions { strategy: PLAIN.to_owned(), max_tokens: Some(150), ..GenerateOptions::new(sampling) };
    let mut session = engine.session();
    let mut answer = session.generate(&prompt.tokens, &options).unwrap();
    answer.by_ref().for_each(|piece| drop(piece.unwrap()));
    let report = answer.finish();
    DistilledAnswer {
        index,
        prompt: prompt.text.clone(),
        draw: None,
        completion: report.text,
        prompt_token_ids: prompt.tokens.clone(),
        completion_token_ids: report.token_ids,
        finish_reason: report.finish_reason,
    }
}

fn all(mut distillation: Distillation<'_, '_>) -> Vec<DistilledAnswer> {
    let mut answers = Vec::new();
    while distillation.step().unwrap() {
        answers.extend(std::iter::from_fn(|| distillation.next_answer()));
    }
    assert_eq!(
        distillation.num_tokens(),
        answers.iter().map(|answer| answer.completion_token_ids.len()).sum::<usize>()
    );
    answers
}

/// Runs the command on the data, in a sandbox whose file of answers has this content.
fn distill(sandbox: &Sandbox, content: &[u8], flags: &[&str]) -> Run {
    let (data, model) = (sandbox.file("data.jsonl", data()), tiny_model("tiny-llama"));
    let output = sandbox.file("answers.jsonl", content);
    let mut arguments = vec!["distill", "--data", &data, "-o", &output];
    for usual in [["-m", &model], ["-n", "20"]] {
        if !flags.contains(&usual[0]) {
            arguments.extend(usual);
        }
    }
    sandbox.run(&[&arguments, flags].concat())
}

fn answers(sandbox: &Sandbox) -> Vec<u8> {
    fs::read(sandbox.path("answers.jsonl")).unwrap()
}

#[test]
fn a_file_that_was_cut_anywhere_is_completed_to_the_same_bytes() {
    let sandbox = Sandbox::new();
    let flags = ["--temp", "0.9", "-s", "3"];
    distill(&sandbox, b"", &flags).assert_success();
    let whole = answers(&sandbox);
    let text = String::from_utf8(whole.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1 + QUESTIONS.len());
    assert!(lines[0].starts_with("{\"forestream_distill\":1,"), "{}", lines[0]);
    for (index, line) in lines[1..].iter().enumerate() {
        let answer: DistilledAnswer = serde_json::from_str(line).unwrap();
        assert_eq!((answer.index, answer.prompt.as_str()), (index, QUESTIONS[index]));
    }
    let after_header = lines[0].len() + 1;
    let within_a_character = text.find('Ü').unwrap() + 1;
    for cut in [10, after_header - 1, after_header, after_header + 9, within_a_character, whole.len() - 1, whole.len()]
    {
        distill(&sandbox, &whole[..cut], &[&flags[..], &["--batch-size", "2"]].concat()).assert_success();
        assert_eq!(answers(&sandbox), whole, "cut after {cut} bytes");
    }
    let limit = distill(&sandbox, b"", &[&flags[..], &["--limit", "2"]].concat());
    assert!(limit.assert_success().stderr.contains("2 of 2 answers"), "{}", limit.stderr);
    assert!(whole.starts_with(&answers(&sandbox)) && answers(&sandbox).len() < whole.len());
}

#[test]
fn a_file_that_was_made_otherwise_is_refused_and_left_as_it_is() {
    let sandbox = Sandbox::new();
    distill(&sandbox, b"", &["--limit", "2"]).assert_success();
    let whole = answers(&sandbox);
    let text = String::from_utf8(whole).unwrap();
    let other_model = tiny_model("tiny-mistral");
    let adapter = sandbox.path("adapter");
    adapter::write_random_adapter(tiny_model("tiny-llama").as_ref(), &adapter);
    let lossless = distill(&sandbox, text.as_bytes(), &["--limit", "2", "--adapter", adapter.to_str().unwrap()]);
    lossless.assert_success();
    make_joint(&adapter, 4.0);
    let cases: &[(&str, &[&str], &str)] = &[
        (&text, &["-n", "21"], "max_tokens 20, and 21"),
        (&text, &["--temp", "0.5"], "temperature 0.0, and 0.5"),
        (&text, &["-s", "1"], "seed 0, and 1"),
        (&text, &["--raw"], "prompt_format \"chat\", and \"raw\""),
        (&text, &["--quantize", "q8_0"], "weight_format"),
        (&text, &["--adapter", adapter.to_str().unwrap()], "task_digest null, and "),
        (&text, &["-m", &other_model], "fingerprint"),
        (&text, &["--limit", "1"], "has 2 answers, and the data have 1 prompts"),
        (&text, &["--template", "Say {prompt}"], "line 2: the answer is to \"one\""),
        ("{\"prompt\": \"mine\"}\n", &[], "does not begin as a file of answers does"),
        ("mine", &[], "does not begin as a file of answers does"),
        (&text.replacen("\"index\":1", "\"index\":2", 1), &[], "line 3: not an answer: its index is 2, and 1 is next"),
        (&text.replacen("{\"index\":0", "{", 1), &[], "line 2: not an answer"),
    ];
    for (content, flags, expected) in cases {
        let run = distill(&sandbox, content.as_bytes(), flags);
        run.assert_error(1, &["answers.jsonl", expected]);
        assert_eq!(answers(&sandbox), content.as_bytes(), "{flags:?}");
    }
}

/// Lets the adapter of tiny-llama in `directory` change what the model says, with this scale.
fn make_joint(directory: &Path, alpha: f32) {
    let checkpoint = Checkpoint::open(tiny_model("tiny-llama").as_ref()).unwrap();
    let base = checkpoint.config();
    let mut adapter = Adapter::open(directory, base, &checkpoint.fingerprint()).unwrap();
    let lora = LoraConfig { alpha, ..adapter.config.lora.clone().unwrap() };
    (adapter.config.mode, adapter.config.main_lora) =
        (TrainingMode::Joint, Some(MainLoraConfig { num_layers: 1, lora }));
    for spec in adapter.config.tensors(base) {
        adapter.tensors.entry(spec.name).or_insert_with(|| vec![0.1; spec.shape[0] * spec.shape[1]]);
    }
    adapter.save(directory, base).unwrap();
}

#[test]
fn answers_of_one_fitted_model_are_not_continued_by_another() {
    let (sandbox, directory) = (Sandbox::new(), tempfile::tempdir().unwrap());
    let adapter = directory.path().join("adapter");
    adapter::write_random_adapter(tiny_model("tiny-llama").as_ref(), &adapter);
    make_joint(&adapter, 4.0);
    let flags = ["--limit", "2", "--adapter", adapter.to_str().unwrap()];
    distill(&sandbox, b"", &flags).assert_success();
    let whole = answers(&sandbox);
    distill(&sandbox, &whole, &flags).assert_success();
    make_joint(&adapter, 2.0);
    distill(&sandbox, &whole, &flags).assert_error(1, &["answers.jsonl", "task_digest \""]);
    assert_eq!(answers(&sandbox), whole);
}

/// Lets tiny-llama answer prompts of its own, in a sandbox whose file of answers has this content.
fn distill_own(sandbox: &Sandbox, content: &[u8], num_prompts: &str, flags: &[&str]) -> Run {
    let (model, output) = (tiny_model("tiny-llama"), sandbox.file("answers.jsonl", content));
    let mut arguments = vec!["distill", "--own-prompts", num_prompts, "-n", "12", "-o", &output];
    if !flags.contains(&"-m") {
        arguments.extend(["-m", &model]);
    }
    sandbox.run(&[&arguments, flags].concat())
}

fn parse(answers: &[u8]) -> Vec<DistilledAnswer> {
    let lines = std::str::from_utf8(answers).unwrap().lines().skip(1);
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_model_answers_prompts_of_its_own_and_goes_on_where_it_ended() {
    let sandbox = Sandbox::new();
    distill_own(&sandbox, b"", "6", &["-b", "2"]).assert_success();
    let whole = answers(&sandbox);
    let parsed = parse(&whole);
    let prompts: BTreeSet<&str> = parsed.iter().map(|answer| &*answer.prompt).collect();
    assert_eq!((parsed.len(), prompts.len()), (6, 6), "no prompt comes twice");
    assert!(parsed.is_sorted_by_key(|answer| answer.draw.unwrap()));
    let engine = Engine::open(Path::new(&tiny_model("tiny-llama")), &EngineOptions::default()).unwrap();
    let template = engine.chat_template().unwrap().unwrap();
    for answer in &parsed {
        let turn = [Message::new("user", &answer.prompt)];
        assert_eq!(answer.prompt_token_ids, engine.session().chat_prompt(&template, &turn, None).unwrap());
        assert_eq!(answer.prompt, answer.prompt.trim());
    }
    let after_three = whole.split_inclusive(|&byte| byte == b'\n').take(4).map(<[u8]>::len).sum::<usize>();
    for cut in [0, 9, after_three, after_three + 7, whole.len()] {
        distill_own(&sandbox, &whole[..cut], "6", &["-b", "3"]).assert_success();
        assert!(answers(&sandbox) == whole, "cut after {cut} bytes");
    }
    distill_own(&sandbox, &whole, "8", &["-b", "1"]).assert_success();
    assert!(answers(&sandbox).starts_with(&whole) && parse(&answers(&sandbox)).len() == 8, "more are added");
    distill_own(&sandbox, &whole, "2", &[]).assert_success();
    assert!(answers(&sandbox) == whole, "nothing is taken away");
    distill_own(&sandbox, b"", "2", &["-s", "1"]).assert_success();
    assert!(
        parse(&answers(&sandbox)).iter().all(|answer| !prompts.contains(&*answer.prompt)),
        "the seed is one of prompts too"
    );
}

/// A copy of tiny-llama with this chat template, and without the token from which others are guessed.
fn with_template(sandbox: &Sandbox, template: &serde_json::Value) -> String {
    let (from, to) = (tiny_model("tiny-llama"), sandbox.path("model"));
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let config = to.join("tokenizer_config.json");
    let mut fields: serde_json::Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    fields["chat_template"] = template.clone();
    fs::write(config, fields.to_string()).unwrap();
    let tokenizer = fs::read_to_string(to.join("tokenizer.json")).unwrap();
    fs::write(to.join("tokenizer.json"), tokenizer.replace("<|im_start|>", "<|turn|>")).unwrap();
    to.to_str().unwrap().to_owned()
}

#[test]
fn where_no_token_ends_a_turn_of_the_user_the_text_after_it_does() {
    let sandbox = Sandbox::new();
    let answers_with = |template: &str| {
        let model = with_template(&sandbox, &template.into());
        distill_own(&sandbox, b"", "30", &["-m", &model, "-b", "8"]).assert_success();
        parse(&answers(&sandbox))
    };
    let whole = answers_with("{{ '[INST]' + messages[0].content }}");
    let cut = answers_with("{{ '[INST]' + messages[0].content + 'i' }}");
    assert!(whole.iter().any(|answer| answer.prompt.contains('i')));
    assert!(cut.iter().all(|answer| !answer.prompt.contains('i')));
    let prompts: BTreeSet<&str> = cut.iter().map(|answer| &*answer.prompt).collect();
    assert!(prompts.len() == cut.len() && !prompts.contains(""), "short ones come again, and are left out");
}

#[test]
fn prompts_of_its_own_are_refused_where_a_model_has_none() {
    let sandbox = Sandbox::new();
    let cases: &[(serde_json::Value, &str)] = &[
        (serde_json::Value::Null, "it has no chat template; give --data"),
        ("{{ messages[0].content | upper }}".into(), "its chat template changes what the user says"),
    ];
    for (template, expected) in cases {
        let model = with_template(&sandbox, template);
        distill_own(&sandbox, b"", "2", &["-m", &model]).assert_error(1, &[expected]);
        assert!(answers(&sandbox).is_empty());
    }
    let endless = format!("{{{{ '[INST]' + messages[0].content + '{}' }}}}", "x ".repeat(100));
    let model = with_template(&sandbox, &endless.into());
    distill_own(&sandbox, b"", "2", &["-m", &model, "-c", "64"]).assert_error(1, &["leave no room for an answer"]);
    let data = sandbox.file("data.jsonl", data());
    distill_own(&sandbox, b"", "2", &["--data", &data]).assert_error(2, &["--data", "--own-prompts"]);
    let output = sandbox.path("answers.jsonl");
    sandbox.run(&["distill", "-o", output.to_str().unwrap()]).assert_error(2, &["--data"]);
    distill_own(&sandbox, b"", "2", &[]).assert_success();
    let whole = answers(&sandbox);
    let text = String::from_utf8(whole.clone()).unwrap();
    distill(&sandbox, &whole, &["-n", "12"]).assert_error(1, &["answers.jsonl", "own_prompts true"]);
    let without_draw = text.replacen("\"draw\":", "\"drawn\":", 1);
    distill_own(&sandbox, without_draw.as_bytes(), "2", &[]).assert_error(1, &["line 2", "no number of a draw"]);
}

#[test]
fn two_runs_do_not_write_one_file() {
    let sandbox = Sandbox::new();
    let file = fs::File::create(sandbox.path("answers.jsonl")).unwrap();
    file.lock().unwrap();
    distill(&sandbox, b"", &["--limit", "1"]).assert_error(1, &["another run writes to", "answers.jsonl"]);
    file.unlock().unwrap();
    distill(&sandbox, b"", &["--limit", "1"]).assert_success();
}

#[test]
fn what_cannot_be_used_is_named() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let good = "{\"prompt\": \"a\"}\n";
    let long = format!("{good}\n{{\"prompt\": \"{}\"}}\n", "b ".repeat(300));
    let output = sandbox.path("answers.jsonl").to_str().unwrap().to_owned();
    let in_no_directory = sandbox.path("missing/answers.jsonl").to_str().unwrap().to_owned();
    let cases: &[(&str, &str, &[&str])] = &[
        (&long, &output, &["rows.jsonl, line 3", "--ctx-size"]),
        ("{\"prompt\": ", &output, &["rows.jsonl, line 1", "not a JSON object"]),
        (good, "/dev/null", &["cannot open", "not a regular file"]),
        (good, &in_no_directory, &["cannot open", "missing/answers.jsonl"]),
    ];
    for (content, output, expected) in cases {
        let data = sandbox.file("rows.jsonl", content);
        sandbox
            .run(&["distill", "-m", &model, "--data", &data, "-c", "64", "-n", "4", "-o", output])
            .assert_error(1, expected);
    }
    assert!(!sandbox.path("answers.jsonl").exists(), "nothing is created before the prompts are known to be good");
    sandbox.run(&["distill", "--data", "x"]).assert_error(2, &["--output"]);
}
