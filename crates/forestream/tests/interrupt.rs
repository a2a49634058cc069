//! Ctrl-C as users meet it: what runs ends in order, and where nothing runs, the program does.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use support::{Run, Sandbox, tiny_model};

/// A random model with room for an answer that ends by itself only after minutes.
fn model_of_long_answers(sandbox: &Sandbox) -> String {
    let directory = sandbox.path("model");
    std::fs::create_dir(&directory).unwrap();
    for entry in std::fs::read_dir(tiny_model("tiny-llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, directory.join(path.file_name().unwrap())).unwrap();
    }
    let config = std::fs::read_to_string(directory.join("config.json")).unwrap();
    let config = config.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 1000000");
    std::fs::write(directory.join("config.json"), config).unwrap();
    directory.to_str().unwrap().to_owned()
}

fn start(sandbox: &Sandbox, arguments: &[&str]) -> Child {
    let mut command = sandbox.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the process takes Ctrl-C itself: the system says which signals it catches.
fn wait_for_handler(child: &Child) {
    let catches_interrupt = |status: String| {
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&caught, 16).unwrap() & 0b10 != 0
    };
    while !catches_interrupt(std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap()) {
        std::thread::yield_now();
    }
}

fn press(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_comparison_ends_between_tokens() {
    let sandbox = Sandbox::new();
    let (model, data) = (model_of_long_answers(&sandbox), sandbox.file("data.jsonl", "{\"prompt\": \"one two\"}\n"));
    let without_stop = ["--logit-bias", "0=-1000", "--logit-bias", "2=-1000"];
    let flags = ["--spec-types", "ngram", "-n", "900000", "--raw"];
    let child = start(&sandbox, &[&["compare", "-m", &model, "--data", &data], &flags[..], &without_stop].concat());
    wait_for_handler(&child);
    press(&child);
    let run = Run::of(child.wait_with_output().unwrap());
    run.assert_error(130, &["interrupted", "no prompt is complete"]);
    assert_eq!(run.stdout, "", "there is nothing to report");
}

#[test]
fn a_conversation_from_a_pipe_ends_where_it_waits() {
    let sandbox = Sandbox::new();
    let mut child = start(&sandbox, &["chat", "-m", &tiny_model("tiny-llama")]);
    let open_input = child.stdin.take();
    wait_for_handler(&child);
    press(&child);
    assert_eq!(Run::of(child.wait_with_output().unwrap()).code, 130);
    drop(open_input);
}

#[test]
fn an_answer_from_a_pipe_ends_and_the_conversation_goes_on() {
    let sandbox = Sandbox::new();
    let model = model_of_long_answers(&sandbox);
    let mut child = start(&sandbox, &["chat", "-m", &model, "--ignore-eos", "--temp", "0"]);
    child.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 20]).unwrap();
    press(&child);
    child.stdin.as_mut().unwrap().write_all(b"/stats\n").unwrap();
    drop(child.stdin.take());
    let run = Run::of(child.wait_with_output().unwrap());
    assert!(run.assert_success().stderr.contains("answer "), "{}", run.stderr);
}
