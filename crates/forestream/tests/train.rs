//! Training as users meet it: one command on rows of their own, and what it says when something is wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{Run, Sandbox, tiny_model};

/// Sizes that suit a model of two layers.
const TINY: &str = "--num-streams 2 --num-msa-layers 1 --lora-rank 4 --sampler-size 8 --draft-vocab-size 100 --steps 4 \
                    --batch-tokens 60 --save-steps 2 --eval-steps 2";

fn rows(count: usize) -> String {
    let row = |index| format!("{{\"prompt\": \"Count from {index}\", \"completion\": \"{index} and one and two\"}}\n");
    (0..count).map(row).collect::<Vec<_>>().concat()
}

fn train(sandbox: &Sandbox, data: &str, output: &Path, more: &str) -> Run {
    Run::of(command(sandbox, data, output, more).output().unwrap())
}

fn command(sandbox: &Sandbox, data: &str, output: &Path, more: &str) -> Command {
    let model = tiny_model("tiny-llama");
    let mut arguments = vec!["train", "-m", &model, "--data", data, "-o", output.to_str().unwrap()];
    let tiny: Vec<&str> = TINY.split_whitespace().collect();
    arguments.extend(tiny.chunks(2).filter(|flag| !more.contains(flag[0])).flatten());
    arguments.extend(more.split_whitespace());
    sandbox.command(&arguments)
}

#[test]
fn one_command_makes_an_adapter_that_drafts() {
    let sandbox = Sandbox::new();
    let (data, output) = (sandbox.file("mine.jsonl", rows(100)), sandbox.path("adapter"));

    let plan = train(&sandbox, &data, &output, "--dry-run");
    assert!(
        plan.assert_success().stdout.contains("estimated time") && plan.stderr.contains("98 examples"),
        "{}",
        plan.stderr
    );
    assert!(!output.exists(), "a dry run writes nothing");

    let run = train(&sandbox, &data, &output, "--device flex");
    assert!(run.assert_success().stdout.contains("tokens per pass"), "{}", run.stdout);
    for expected in ["held out, step 4", "checkpoint of step 4", "positions/s"] {
        assert!(run.stderr.contains(expected), "{expected}: {}", run.stderr);
    }
    let provenance: Value = serde_json::from_slice(&std::fs::read(output.join("provenance.json")).unwrap()).unwrap();
    let command = provenance["command"].as_str().unwrap();
    assert!(command.contains("--data mine.jsonl") && !command.contains('/'), "{command}");

    let again = train(&sandbox, &data, &output, "");
    again.assert_error(1, &["checkpoint.safetensors", "finished run", "--init-from"]);
    train(&sandbox, &data, &output, "--resume").assert_success();

    let (model, adapter) = (tiny_model("tiny-llama"), output.to_str().unwrap());
    let generate = |more: &[&str]| {
        let arguments = ["generate", "-m", &model, "-p", "Count from 7", "--temp", "0", "-n", "24", "--output", "json"];
        sandbox.run(&[&arguments, more].concat()).json()
    };
    let drafted = generate(&["--adapter", adapter, "--spec-type", "streaming"]);
    assert_eq!(drafted["token_ids"], generate(&["--spec-type", "none"])["token_ids"]);
    let other = tiny_model("tiny-llama-untied");
    let refused = sandbox.run(&["generate", "-m", &other, "--adapter", adapter, "-p", "hi", "-n", "2"]);
    refused.assert_error(1, &["trained for `tiny-llama`"]);
}

#[test]
fn streams_with_rotated_values_draft_in_either_pass() {
    let sandbox = Sandbox::new();
    let (data, output) = (sandbox.file("mine.jsonl", rows(60)), sandbox.path("adapter"));
    let flags = "--value-rotation 0.5 --no-token-conditioning --stream-position anchor";
    train(&sandbox, &data, &output, flags).assert_success();
    let config: Value = serde_json::from_slice(&std::fs::read(output.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["streams"]["identity"]["value_rotation"]["angle"], 0.5, "{config}");
    assert_eq!(config["streams"]["position"], "anchor", "{config}");
    let (model, adapter) = (tiny_model("tiny-llama"), output.to_str().unwrap());
    let ids = |more: &[&str]| {
        let arguments = ["generate", "-m", &model, "-p", "Count from 7", "--temp", "0", "-n", "24", "--output", "json"];
        sandbox.run(&[&arguments, more].concat()).json()["token_ids"].clone()
    };
    let plain = ids(&["--spec-type", "none"]);
    for pass in ["deferred", "fused"] {
        let drafted = ids(&["--adapter", adapter, "--spec-type", "streaming", "--spec-stream-pass", pass]);
        assert_eq!(drafted, plain, "{pass}");
    }
}

#[test]
fn joint_mode_teaches_a_task_by_its_name() {
    let sandbox = Sandbox::new();
    let row = |i| format!("{{\"meaning_representation\": \"name[{i}]\", \"reference\": \"The {i} is a pub.\"}}\n");
    let data = sandbox.file("e2e.jsonl", (0..40).map(row).collect::<String>());
    let output = sandbox.path("adapter");
    let flags = "--mode joint --task e2e --limit 20 --main-lora-layers 1 --main-lora-rank 4 --main-lr 0.01 --steps 4";
    let run = train(&sandbox, &data, &output, flags);
    for expected in ["train on e2e.jsonl: 19 examples", "learns in its top 1 layers", "perplexity"] {
        assert!(run.assert_success().stderr.contains(expected), "{expected}: {}", run.stderr);
    }
    let provenance: Value = serde_json::from_slice(&std::fs::read(output.join("provenance.json")).unwrap()).unwrap();
    let selection = provenance["data"]["selection"].as_str().unwrap();
    assert!(selection.contains("about a restaurant") && selection.contains("20 rows drawn"), "{selection}");

    let (model, adapter) = (tiny_model("tiny-llama"), output.to_str().unwrap());
    let arguments = ["compare", "-m", &model, "--adapter", adapter, "--data", &data, "--task", "e2e", "--limit", "3"];
    let more = ["-n", "16", "--spec-types", "none,streaming", "--output", "json"];
    let compared = sandbox.run(&[arguments.as_slice(), &more].concat()).json();
    assert_eq!(compared["arms"][1]["identical"], true, "{compared}");

    let further = sandbox.path("further");
    let arguments = ["train", "-m", &model, "--adapter", adapter, "--data", &data, "--task", "e2e", "--steps", "2"];
    let more = ["--batch-tokens", "60", "--draft-vocab-size", "9", "--stream-intermediate-size", "16"];
    let run = sandbox.run(&[arguments.as_slice(), &more, &["-o", further.to_str().unwrap()]].concat());
    assert!(run.assert_success().stderr.contains("2 streams in the top 1 layers"), "{}", run.stderr);
    let config: Value = serde_json::from_slice(&std::fs::read(further.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["streams"]["draft_vocab_size"], 9, "no tensor depends on it, so it may change");
    assert_eq!(config["streams"]["intermediate_size"], 16, "streams that are trained on may become narrow");
    let card = std::fs::read_to_string(further.join("README.md")).unwrap();
    assert!(run.stderr.contains("16 inner features of each MLP") && card.contains("16 inner features of each MLP"));
    let arguments = ["compare", "-m", &model, "--adapter", further.to_str().unwrap(), "--data", &data, "--task", "e2e"];
    let more = ["--limit", "3", "-n", "16", "--spec-types", "none,streaming", "--output", "json"];
    let compared = sandbox.run(&[arguments.as_slice(), &more].concat()).json();
    assert_eq!(compared["arms"][1]["identical"], true, "{compared}");
    let text = std::fs::read(further.join("provenance.json")).unwrap();
    let both: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(both["previous"], provenance, "the card of the second run knows the first");

    let streams_alone =
        train(&sandbox, &data, &sandbox.path("alone"), &format!("--task e2e --init-from {adapter} --dry-run"));
    assert!(
        streams_alone.assert_success().stderr.contains("--adapter in place of --init-from"),
        "the task is left out"
    );
    assert!(!run.stderr.contains("in place of"), "with --adapter it is kept: {}", run.stderr);

    let merged = sandbox.path("merged");
    let merge = || sandbox.run(&["merge", "-m", &model, "--adapter", adapter, "-o", merged.to_str().unwrap()]);
    assert!(merge().assert_success().stdout.contains("model.safetensors, config.json"), "what was written is said");
    merge().assert_error(1, &["--output", "choose another directory"]);
    let answer = sandbox.run(&["generate", "-m", merged.to_str().unwrap(), "-p", "hi", "-n", "4", "--output", "json"]);
    assert_eq!(answer.json()["usage"]["completion_tokens"], 4);
}

#[test]
fn a_run_that_starts_from_an_adapter_takes_its_sizes() {
    let sandbox = Sandbox::new();
    let (data, first) = (sandbox.file("mine.jsonl", rows(30)), sandbox.path("first"));
    train(&sandbox, &data, &first, "--stream-intermediate-size 16 --early-exit-rank 2").assert_success();
    let (model, output) = (tiny_model("tiny-llama"), sandbox.path("second"));
    let on = |more: &[&str]| {
        let (from, to) = (first.to_str().unwrap(), output.to_str().unwrap());
        let arguments = ["train", "-m", &model, "--data", &data, "--init-from", from, "-o", to, "--steps", "2"];
        sandbox.run(&[arguments.as_slice(), more].concat())
    };
    on(&["--sampler-size", "4"]).assert_error(1, &["`sampler.down_proj.weight`", "leave out the flags for sizes"]);
    on(&["--preset", "paper", "--num-msa-layers", "1"]).assert_error(1, &["leave out the flag"]);
    on(&[]).assert_success();
    let config = |directory: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(directory.join("adapter_config.json")).unwrap()).unwrap()
    };
    for part in ["streams", "lora"] {
        assert_eq!(config(&output)[part], config(&first)[part], "{part}");
    }
    on(&["--resume"]).assert_success();
}

#[test]
fn a_joint_run_goes_on_with_the_changes_of_its_adapter() {
    let sandbox = Sandbox::new();
    let data = sandbox.file("mine.jsonl", rows(20));
    let [first, second, lossless, refused] = ["first", "second", "lossless", "refused"].map(|name| sandbox.path(name));
    let from = |adapter: &Path, more: &str| format!("--mode joint {more} --init-from {}", adapter.display());
    train(&sandbox, &data, &first, "--mode joint --main-lora-layers 1 --main-lora-alpha 8").assert_success();
    train(&sandbox, &data, &second, &from(&first, "")).assert_success();
    let main_lora = |directory: &Path| -> Value {
        let config: Value =
            serde_json::from_slice(&std::fs::read(directory.join("adapter_config.json")).unwrap()).unwrap();
        config["main_lora"].clone()
    };
    assert_eq!((main_lora(&second), &main_lora(&second)["alpha"]), (main_lora(&first), &Value::from(8.0)));
    let larger = train(&sandbox, &data, &refused, &from(&first, "--main-lora-layers 2"));
    larger.assert_error(1, &["in its top 1 layers", "leave out --main-lora-layers"]);

    let run = train(&sandbox, &data, &lossless, "--main-lora-rank 3 --stream-intermediate-size 0");
    assert!(
        run.assert_success().stderr.contains("--main-lora-rank changes nothing in lossless mode"),
        "{}",
        run.stderr
    );
    train(&sandbox, &data, &refused, &from(&lossless, "")).assert_error(1, &["leaves the model as it is", "--adapter"]);
    let narrow = sandbox.path("narrow");
    train(&sandbox, &data, &narrow, "").assert_success();
    train(&sandbox, &data, &refused, &from(&narrow, "")).assert_error(1, &["streams are narrow", "wide"]);
}

/// Trains tiny-llama on answers to prompts of its own.
fn train_on_own(sandbox: &Sandbox, output: &Path, more: &str) -> Run {
    let model = tiny_model("tiny-llama");
    let mut arguments = vec!["train", "-m", &model, "-o", output.to_str().unwrap(), "--own-prompts", "6"];
    arguments.extend(TINY.split_whitespace().chain(more.split_whitespace()));
    sandbox.run(&arguments)
}

#[test]
fn a_model_needs_no_data_to_learn_to_foresee_itself() {
    let sandbox = Sandbox::new();
    let (output, more) = (sandbox.path("adapter"), "--eval-split 0.2");
    let run = train_on_own(&sandbox, &output, more);
    assert!(run.assert_success().stderr.contains("6 of 6 answers"), "{}", run.stderr);
    assert!(run.stdout.contains("tokens per pass"), "{}", run.stdout);
    let answers = output.join("answers.jsonl");
    let text = std::fs::read_to_string(&answers).unwrap();
    assert_eq!(text.lines().count(), 7);
    train_on_own(&sandbox, &output, &format!("{more} --resume")).assert_success();
    train_on_own(&sandbox, &output, more).assert_error(1, &["finished run"]);

    let second = sandbox.path("second");
    std::fs::create_dir(&second).unwrap();
    let three: String = text.split_inclusive('\n').take(4).collect();
    std::fs::write(second.join("answers.jsonl"), three).unwrap();
    train_on_own(&sandbox, &second, more).assert_success();
    assert_eq!(std::fs::read_to_string(second.join("answers.jsonl")).unwrap(), text);
    let weights = |directory: &Path| std::fs::read(directory.join("adapter_model.safetensors")).unwrap();
    assert!(weights(&second) == weights(&output), "a run that was interrupted while it wrote answers ends the same");

    train_on_own(&sandbox, &sandbox.path("third"), "--mode joint").assert_error(1, &["--own-prompts", "--data"]);
    train_on_own(&sandbox, &sandbox.path("third"), "--dry-run").assert_error(2, &["--own-prompts", "--dry-run"]);
    assert!(!sandbox.path("third").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_the_run_and_resume_goes_on() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;

    let sandbox = Sandbox::new();
    let (data, output) = (sandbox.file("mine.jsonl", rows(20)), sandbox.path("adapter"));
    let endless = "--steps 1000000 --save-steps 1000000 --eval-steps 1000000";
    let mut child = command(&sandbox, &data, &output, endless).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("step ") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before the first step");
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    assert!(rest.contains("continue with --resume"), "{rest}");
    let differs = train(&sandbox, &data, &output, "--steps 5 --resume");
    differs.assert_error(1, &["steps = 1000000, but now it is 5"]);
}

#[test]
fn what_is_wrong_with_the_data_is_said() {
    let sandbox = Sandbox::new();
    let output = sandbox.path("adapter");
    let broken = rows(2) + "{\"prompt\": \"Hi\"}\n" + &rows(2);
    let distilled =
        "{\"forestream_distill\": 1, \"model\": \"other\", \"fingerprint\": \"ffff\"}\n".to_owned() + &rows(3);
    let cases = [
        (sandbox.file("broken.jsonl", broken), vec!["broken.jsonl, line 3", "`completion`"]),
        (sandbox.file("other.jsonl", distilled), vec!["other.jsonl, line 1", "`other`", "distill"]),
        (sandbox.file("one.jsonl", rows(1)), vec!["one example", "--eval-data"]),
        (sandbox.file("none.jsonl", ""), vec!["none.jsonl", "nothing to train on: it has no rows"]),
        (sandbox.path("absent.jsonl").to_str().unwrap().to_owned(), vec!["cannot read", "absent.jsonl"]),
    ];
    for (data, expected) in cases {
        train(&sandbox, &data, &output, "").assert_error(1, &expected);
        assert!(!output.exists(), "{data}");
    }
}

#[test]
fn settings_and_places_that_cannot_be_used_are_errors() {
    let sandbox = Sandbox::new();
    let (data, output) = (sandbox.file("mine.jsonl", rows(20)), sandbox.path("adapter"));
    let cases = [
        ("--num-streams 0", 1, "num_streams must be from 1 to 16"),
        ("--num-msa-layers 3", 1, "num_msa_layers must be from 1 to 2"),
        ("--draft-vocab-size 999", 1, "draft_vocab_size must be from 1 to 320"),
        ("--lr 0", 1, "--lr"),
        ("--warmup-ratio 1", 1, "--warmup-ratio: must be at least 0 and below 1"),
        ("--lr-scheduler-type stairs", 2, "cosine, linear"),
        ("--value-rotation 0.8", 1, "value_rotation.angle must be from 0 to 0.785"),
        ("--value-rotation -0.1", 1, "value_rotation.angle must be from 0 to"),
        ("--value-rotation nan", 1, "value_rotation.angle must be from 0 to"),
        ("--eval-split 0", 2, "between 0 and 1"),
        ("--resume", 1, "there is no checkpoint"),
        ("--init-from nowhere", 1, "nowhere"),
        ("--adapter nowhere", 1, "nowhere"),
        ("--lora-target-modules q_proj,x_proj", 2, "known are q_proj"),
        ("--objective mse", 2, "ce, kl, tv"),
        ("--device abacus", 2, "this build does not have it; it has flex"),
        ("--task mt_bench", 1, "name its --completion-field"),
        ("--template {a} --task e2e", 2, "cannot be used with"),
        ("--template {a}", 2, "--completion-field"),
        ("--completion-field a", 2, "required"),
        ("--mode joint --main-lora-layers 3", 1, "main_lora.num_layers must be from 1 to 2"),
        ("--mode joint --objective kl", 1, "use `ce`"),
        ("--lora-target-modules q_proj,q_proj", 1, "target_modules, each once"),
        ("--sampler-size 9999999999999999", 1, "sampler_size must be from 1 to 4096"),
        ("--lora-rank 4611686018427387904", 1, "a rank from 1 to 4096"),
        ("--early-exit-rank 100000000000", 1, "early_exit_rank must be from 1 to 4096"),
        ("--epochs 2", 2, "cannot be used with"),
        ("--resume --dry-run", 2, "cannot be used with"),
        ("--merge-adapter", 2, "unexpected argument"),
        ("--ctx-size 100000", 1, "lower --ctx-size"),
    ];
    for (more, code, expected) in cases {
        train(&sandbox, &data, &output, more).assert_error(code, &[expected]);
    }
    let file = sandbox.file("in-the-way", "");
    train(&sandbox, &data, Path::new(&file), "").assert_error(1, &["cannot write", "in-the-way", "--output"]);
}

#[test]
fn a_broken_provenance_of_the_adapter_to_start_from_is_named() {
    let sandbox = Sandbox::new();
    let (data, first) = (sandbox.file("mine.jsonl", rows(40)), sandbox.path("first"));
    train(&sandbox, &data, &first, "").assert_success();
    let provenance = first.join("provenance.json");
    let whole = std::fs::read(&provenance).unwrap();
    let start = format!("--init-from {} --dry-run", first.display());
    let output = sandbox.path("second");
    for broken in [&whole[..whole.len() / 2], b""] {
        std::fs::write(&provenance, broken).unwrap();
        train(&sandbox, &data, &output, &start).assert_error(1, &["first/provenance.json", "remove it"]);
    }
    std::fs::remove_file(&provenance).unwrap(); // other makers write none
    train(&sandbox, &data, &output, &start).assert_success();
}
