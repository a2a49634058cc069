//! What goes in and out of the program: readers that go away, text that would control a terminal, marks before text.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io;

use support::{Run, Sandbox, tiny_model};

/// A run whose standard output nobody reads.
fn run_unread(sandbox: &Sandbox, arguments: &[&str]) -> Run {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    Run::of(sandbox.command(arguments).stdout(writer).output().unwrap())
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let cases: &[&[&str]] = &[
        &["generate", "-m", &model, "-p", "hi", "-n", "20"],
        &["generate", "-m", &model, "-p", "hi", "-n", "20", "-o", "json"],
        &["pull", "--list"],
        &["completions", "bash"],
        &["inspect", &model],
    ];
    for arguments in cases {
        let run = run_unread(&sandbox, arguments);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
fn check_and_trace_are_made_also_where_nobody_reads_the_answer() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    for output in ["text", "json"] {
        let page = sandbox.path(output);
        let run = |more: &[&str]| {
            let answer = ["generate", "-m", &model, "-p", "one two one two", "-n", "30", "--temp", "0", "-o", output];
            run_unread(&sandbox, &[&answer, more].concat())
        };
        let checked = run(&["--ignore-eos", "--verify-lossless", "--trace", page.to_str().unwrap()]);
        checked.assert_success();
        let says_so = checked.stderr.contains("lossless: plain decoding gives the same 30 tokens");
        assert_eq!(says_so, output == "text", "{}", checked.stderr);
        assert!(std::fs::read_to_string(&page).unwrap().contains("</script>"));
        run(&["--trace", sandbox.path("text/no").to_str().unwrap()]).assert_error(1, &["cannot create the trace"]);
    }
}

#[test]
fn notes_cannot_control_the_terminal() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let run = sandbox.run_with_input(&["chat", "-m", &model], b"/\x1b[31m\n");
    run.assert_success();
    assert!(run.stderr.contains("there is no command /\\u001b[31m"), "{:?}", run.stderr);
}

#[test]
fn a_byte_order_mark_is_not_part_of_a_prompt() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-qwen2"));
    let generate = |flags: &[&str], input: &[u8]| {
        let common = ["generate", "-m", &model, "-n", "1", "--temp", "0", "-o", "json"];
        sandbox.run_with_input(&[&common, flags].concat(), input)
    };
    let prompt_tokens = |run: Run| run.json()["usage"]["prompt_tokens"].clone();
    let file = sandbox.file("prompt.txt", "\u{feff}Hello\n");
    let expected = prompt_tokens(generate(&["-p", "Hello"], b""));
    assert_eq!(prompt_tokens(generate(&["-f", &file], b"")), expected);
    assert_eq!(prompt_tokens(generate(&[], "\u{feff}Hello".as_bytes())), expected);
    let twice = prompt_tokens(generate(&[], "\u{feff}\u{feff}Hello".as_bytes()));
    assert_ne!(twice, expected, "a second one belongs to the text");
}
