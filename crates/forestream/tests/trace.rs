//! `generate --trace`: a page that shows what happened, and no text that could become markup.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stderr, reason = "a skipped check says so")]

#[path = "support/adapter.rs"]
mod adapter;
mod support;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use forestream::trace::{Stage, TracedPass};
use forestream::{
    AdapterChoice, Engine, EngineOptions, FinishReason, GenerateOptions, Pruning, Report, SamplingSettings,
    StreamingOptions, TokenId, Trace,
};
use serde_json::{Value, json};
use support::{Run, Sandbox, tiny_model};

const TEXT: &str = "one two three one two three </script><script>alert('x')</script> <!-- & \" one two";

/// A model with a prompt that repeats itself, and random streams.
fn engine(sandbox: &Sandbox) -> Engine {
    let (model, directory) = (tiny_model("tiny-llama"), sandbox.path("adapter"));
    adapter::write_random_adapter(Path::new(&model), &directory);
    let options = EngineOptions { adapter: AdapterChoice::Directory(directory), ..EngineOptions::default() };
    Engine::open(Path::new(&model), &options).unwrap()
}

fn options(strategy: &str) -> GenerateOptions {
    let sampling = SamplingSettings { seed: 3, ..SamplingSettings::default() };
    let max_tokens = Some(60);
    GenerateOptions { strategy: strategy.to_owned(), budget: Some(8), max_tokens, ..GenerateOptions::new(sampling) }
}

fn traced(engine: &Engine, prompt: &[TokenId], options: &GenerateOptions) -> (Report, Vec<TracedPass>, String) {
    let (trace, mut session) = (Trace::new(engine), engine.session());
    let mut answer = session.generate_traced(prompt, options, &trace).unwrap();
    answer.by_ref().for_each(|piece| drop(piece.unwrap()));
    let report = answer.finish();
    let page = trace.page(prompt, &report).unwrap();
    (report, trace.passes(), page)
}

/// The data that a page's script reads.
fn data(page: &str) -> Value {
    let (_, from_data) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(from_data.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn every_pass_of_every_strategy_is_recorded_and_changes_no_token() {
    let sandbox = Sandbox::new();
    let engine = engine(&sandbox);
    let mut session = engine.session();
    let prompt = session.plain_prompt(TEXT).unwrap();
    for (strategy, pruning) in [
        ("none", None),
        ("ngram", None),
        ("streaming", None),
        ("ngram,streaming", None),
        ("streaming", Some(Pruning::Best(3))),
    ] {
        let streaming = StreamingOptions { pruning, ..StreamingOptions::default() };
        let options = |strategy| GenerateOptions { streaming, ..options(strategy) };
        let mut answer = session.generate(&prompt, &options(strategy)).unwrap();
        answer.by_ref().for_each(|piece| drop(piece.unwrap()));
        let untraced = answer.finish();
        let (report, passes, _) = traced(&engine, &prompt, &options(strategy));
        assert_eq!(report.token_ids, untraced.token_ids, "{strategy}");
        assert_eq!(passes.iter().flat_map(|pass| pass.emitted.clone()).collect::<Vec<_>>(), report.token_ids);
        assert!(passes[0].is_prompt && passes[0].nodes.is_empty());
        let rounds = &passes[1..];
        assert_eq!(rounds.len(), report.speculative.rounds, "{strategy}");
        for pass in rounds {
            let tokens = |nodes: &[usize]| nodes.iter().map(|&node| pass.nodes[node].token).collect::<Vec<_>>();
            assert_eq!(tokens(&pass.path)[1..], pass.emitted[..pass.emitted.len() - 1], "{strategy}: {pass:?}");
            assert!(pass.num_proposed + 1 >= pass.nodes.len(), "{strategy}: {pass:?}");
            assert!(pass.times[Stage::Forward as usize] > Duration::ZERO);
        }
        let drafted: usize = rounds.iter().map(|pass| pass.nodes.len() - 1).sum();
        assert_eq!((drafted, drafted > 0), (report.timings.draft_n, strategy != "none"), "{strategy}");
        let pruned: usize = rounds.iter().flat_map(|pass| &pass.nodes).filter(|node| node.is_pruned).count();
        assert_eq!((pruned, pruned > 0), (report.speculative.pruned_tokens, pruning.is_some()), "{strategy}");
        let ran_streams = rounds.iter().any(|pass| pass.times[Stage::Streams as usize] > Duration::ZERO);
        assert_eq!(ran_streams, strategy.contains("streaming"), "{strategy}");
    }
}

#[test]
fn no_text_ends_the_script_of_the_page() {
    let sandbox = Sandbox::new();
    let engine = engine(&sandbox);
    let prompt = engine.session().plain_prompt(TEXT).unwrap();
    let (report, _, page) = traced(&engine, &prompt, &options("ngram"));
    let ends = |page: &str| page.matches("</script").count();
    assert_eq!((ends(&page), page.matches("<!--").count()), (2, 0), "the two scripts of the page itself");
    assert!(!page.contains("src=") && !page.contains("href="), "the page loads nothing");
    let data = data(&page);
    assert!(data["prompt"].as_str().unwrap().ends_with(TEXT), "{}", data["prompt"]);
    assert_eq!(data["prompt_tokens"], prompt.len());
    let emitted = data["passes"].as_array().unwrap().iter().flat_map(|pass| pass["emitted"].as_array().unwrap());
    let text: String = emitted.map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(text, report.text);
}

/// The texts of the tokens on a page, and how many tokens the answer does not have.
fn shown_text(data: &Value) -> (String, usize) {
    let passes = data["passes"].as_array().unwrap();
    let emitted: Vec<_> = passes.iter().flat_map(|pass| pass["emitted"].as_array().unwrap()).collect();
    let num_dropped = emitted.iter().filter(|token| token["is_dropped"] == true).count();
    (emitted.iter().map(|token| token["text"].as_str().unwrap()).collect(), num_dropped)
}

#[test]
fn the_page_ends_where_a_stop_string_ends_the_answer() {
    let sandbox = Sandbox::new();
    let engine = engine(&sandbox);
    let prompt = engine.session().plain_prompt(TEXT).unwrap();
    let options = options("ngram");
    let whole = traced(&engine, &prompt, &options).0.text;
    let letters: Vec<char> = whole.chars().collect();
    let mut stopped_within_a_pass = None;
    for num_letters in (4..letters.len().min(40)).step_by(3) {
        let stop = vec![letters[num_letters - 4..num_letters].iter().collect()];
        let (report, passes, page) = traced(&engine, &prompt, &GenerateOptions { stop, ..options.clone() });
        let (text, dropped) = shown_text(&data(&page));
        assert_eq!(text, report.text);
        let num_emitted: usize = passes.iter().map(|pass| pass.emitted.len()).sum();
        assert_eq!(num_emitted - dropped, report.token_ids.len());
        if dropped > 0 && !report.text.is_empty() {
            stopped_within_a_pass = Some((report.text, page));
        }
    }
    let (text, page) = stopped_within_a_pass.expect("the test must stop within passes");
    let Some(shown) = shown(&sandbox, &page) else { return eprintln!("skipped: no node on this machine") };
    assert_eq!(shown["answer"], text);
    assert!(shown["sentence"].as_str().unwrap().contains("The answer ended before the last"), "{shown}");
}

/// An answer that ends with a stop token which the drafter has guessed: its page, and that token.
fn guessed_end(engine: &Engine) -> (TokenId, Vec<TracedPass>, String) {
    let (word, stop) = (*engine.session().plain_prompt("one two").unwrap().last().unwrap(), engine.stop_tokens()[0]);
    let prompt = [&[word; 9][..], &[stop, 5]].concat();
    let logit_bias = vec![(word, 1000.0), (stop, 2000.0)];
    let sampling = SamplingSettings { logit_bias, ..SamplingSettings::default() };
    let (report, passes, page) =
        traced(engine, &prompt, &GenerateOptions { sampling, min_tokens: 7, ..options("ngram") });
    assert_eq!((report.token_ids.len(), report.finish_reason), (8, FinishReason::Stop));
    (stop, passes, page)
}

#[test]
fn a_guessed_stop_token_was_right() {
    let sandbox = Sandbox::new();
    let engine = engine(&sandbox);
    let (stop, passes, page) = guessed_end(&engine);
    let (pass, data) = (passes.last().unwrap(), data(&page));
    let nodes = data["passes"][passes.len() - 1]["nodes"].as_array().unwrap();
    let is_end = |node: usize| pass.nodes[node].parent == pass.path.last().copied() && pass.nodes[node].token == stop;
    let end = (1..nodes.len()).find(|&node| is_end(node)).expect("the drafter guesses the end");
    for (index, node) in nodes.iter().enumerate() {
        let expected = match index {
            0 => "root",
            _ if index == end || pass.path.contains(&index) => "accepted",
            _ => "rejected",
        };
        assert_eq!(node["kind"], expected, "node {index} of {pass:?}");
    }
}

/// A browser as far as the page's script needs one: reads the page, chooses the last pass, and writes what is seen of it.
const BROWSER: &str = r#"
class Node {
  constructor() { this.children = []; this.attributes = {}; this.style = {}; this.classList = { add() {}, remove() {} }; }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener() {}
  getContext() { return { measureText: (text) => ({ width: text.length }) }; }
  get textContent() { return this.children.map((child) => child.textContent ?? child).join(""); }
  set textContent(text) { this.children = [text]; }
}
const page = require("fs").readFileSync(0, "utf8");
const [data, script] = [...page.matchAll(/<script[^>]*>([^]*?)<\/script>/g)].map((match) => match[1]);
const elements = {};
const document = {
  getElementById: (id) => (elements[id] ??= new Node()),
  createElement: () => new Node(),
  createElementNS: () => new Node(),
  addEventListener() {},
};
document.getElementById("data").textContent = data;
new Function("document", "Node", script + "\nchoose(data.passes.length - 1);")(document, Node);
const boxes = elements["tree"].children[0].children.filter((child) => child.children.length > 0);
console.log(JSON.stringify({
  answer: elements["answer"].textContent,
  sentence: elements["sentence"].textContent,
  boxes: boxes.map((box) => [box.attributes.class, box.children[1].textContent]),
}));
"#;

/// What a browser shows of a page; nothing where there is no node to run its script with.
fn shown(sandbox: &Sandbox, page: &str) -> Option<Value> {
    let path = sandbox.path("page.html");
    std::fs::write(&path, page).unwrap();
    let node = Command::new("node").args(["-e", BROWSER]).stdin(File::open(&path).unwrap()).output().ok()?;
    assert!(node.status.success(), "{}", String::from_utf8_lossy(&node.stderr));
    Some(serde_json::from_slice(&node.stdout).unwrap())
}

#[test]
fn a_guessed_stop_token_is_drawn_once() {
    let sandbox = Sandbox::new();
    let engine = engine(&sandbox);
    let (stop, passes, page) = guessed_end(&engine);
    let Some(shown) = shown(&sandbox, &page) else { return eprintln!("skipped: no node on this machine") };
    let piece = engine.tokenizer().piece(stop).unwrap();
    let (boxes, pass) = (shown["boxes"].as_array().unwrap(), passes.last().unwrap());
    assert_eq!(boxes.len(), pass.nodes.len(), "no box besides the guesses: {shown}");
    let is_right = |shown: &&Value| **shown == json!(["accepted", piece]);
    assert_eq!(boxes.iter().filter(is_right).count(), 1, "{shown}");
    let sentence = shown["sentence"].as_str().unwrap();
    assert!(sentence.contains("had been guessed too") && !sentence.contains("none was right"), "{sentence}");
}

#[test]
fn the_command_writes_the_page_beside_the_answer() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let path = sandbox.path("trace.html");
    let generate = |path: &str| {
        sandbox.run(&["generate", "-m", &model, "-p", TEXT, "-n", "20", "-o", "json", "--temp", "0", "--trace", path])
    };
    let report = generate(path.to_str().unwrap()).json();
    let data = data(&std::fs::read_to_string(&path).unwrap());
    assert_eq!(data["model"], report["model"]);
    assert_eq!(data["strategy"], report["speculative"]["strategy"]);
    let num_passes = report["speculative"]["rounds"].as_u64().unwrap() + 1;
    assert_eq!(data["passes"].as_array().unwrap().len() as u64, num_passes);
    generate("/nowhere/trace.html").assert_error(1, &["cannot create the trace", "/nowhere/trace.html"]);
    generate(sandbox.path("").to_str().unwrap()).assert_error(1, &["cannot create the trace"]);
    generate("/dev/null").assert_success();
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn an_answer_that_fails_leaves_the_old_page() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let pages = sandbox.path("pages");
    std::fs::create_dir(&pages).unwrap();
    let generate = |path: &Path, more: &[&str]| {
        let path = path.to_str().unwrap();
        sandbox.run(&[&["generate", "-m", &model, "-p", TEXT, "-n", "4", "--trace", path], more].concat())
    };
    let names = || pages.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let old = pages.join("old.html");
    std::fs::write(&old, "old").unwrap();
    generate(&old, &["-c", "8"]).assert_error(1, &["the context holds 8"]);
    generate(&pages.join("new.html"), &["-c", "8"]).assert_error(1, &["the context holds 8"]);
    assert_eq!((std::fs::read_to_string(&old).unwrap().as_str(), names()), ("old", vec!["old.html".into()]));
    generate(&old, &[]).assert_success();
    assert!(std::fs::read_to_string(&old).unwrap().contains("</script>"));
    assert_eq!(names(), ["old.html"]);
}

#[test]
fn a_page_that_cannot_be_written_is_refused_before_the_model_is_loaded() {
    let sandbox = Sandbox::new();
    let page = sandbox.path("nowhere/trace.html");
    let run = sandbox.run(&["generate", "-m", "no/model.gguf", "-p", "hi", "--trace", page.to_str().unwrap()]);
    run.assert_error(1, &["cannot create the trace", "nowhere/trace.html"]);
}

#[test]
fn a_killed_run_leaves_no_page_that_is_not_whole() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    for old in [None, Some("old")] {
        let page = sandbox.path("trace.html");
        if let Some(old) = old {
            std::fs::write(&page, old).unwrap();
        }
        let answer = ["generate", "-m", &model, "-p", TEXT, "-n", "400", "--ignore-eos"];
        let mut command = sandbox.command(&[&answer[..], &["--trace", page.to_str().unwrap()]].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap(); // the answer has begun
        child.kill().unwrap();
        child.wait().unwrap();
        let left = std::fs::read_to_string(&page).ok();
        let is_whole = left.as_ref().is_some_and(|page| page.contains("</html>"));
        assert!(is_whole || left.as_deref() == old, "{left:?} in place of {old:?}");
    }
}

/// A script of the shell that gets `command` as its arguments.
#[cfg(unix)]
fn in_shell(script: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

#[cfg(unix)]
#[test]
fn a_page_that_cannot_be_completed_leaves_the_old_one() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    std::fs::create_dir(sandbox.path("pages")).unwrap();
    let page = sandbox.file("pages/trace.html", "old");
    let generate = sandbox.command(&["generate", "-m", &model, "-p", TEXT, "-n", "4", "--trace", &page]);
    // No file may grow beyond a block, as on a full disk.
    let run = Run::of(in_shell("trap '' XFSZ; ulimit -f 1; exec \"$@\"", &generate).output().unwrap());
    run.assert_error(1, &["cannot write the trace", &page]);
    assert_eq!(std::fs::read_to_string(&page).unwrap(), "old");
    let names: Vec<_> = sandbox.path("pages").read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["trace.html"], "nothing half-written stays behind");
}

#[cfg(target_os = "linux")]
#[test]
fn a_page_goes_where_there_is_no_file_to_replace() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let answer = ["generate", "-m", &model, "-p", TEXT, "-n", "4", "--temp", "0", "--trace"];
    let to_pipe = sandbox.run(&[&answer[..], &["/dev/stdout"]].concat());
    assert!(to_pipe.assert_success().stdout.contains("</html>"), "{}", to_pipe.stdout);
    let output = sandbox.path("output");
    let to_file = |path: &str| {
        let mut command = sandbox.command(&[&answer[..], &[path]].concat());
        Run::of(command.stdout(File::create(&output).unwrap()).output().unwrap()).code
    };
    assert_eq!(to_file("/dev/null"), 0);
    let text = std::fs::read_to_string(&output).unwrap();
    assert_eq!(to_file("/dev/stdout"), 0);
    let with_page = std::fs::read_to_string(&output).unwrap();
    assert!(!text.is_empty() && with_page.starts_with(&format!("{text}<!DOCTYPE html>")), "{with_page:.99}");
    let mut to_descriptor =
        in_shell("exec \"$@\" 3>&1 >/dev/null", &sandbox.command(&[&answer[..], &["/dev/fd/3"]].concat()));
    let page = Run::of(to_descriptor.output().unwrap());
    assert!(page.assert_success().stdout.starts_with("<!DOCTYPE html>"), "{}", page.stdout);
}

#[cfg(unix)]
#[test]
fn a_page_keeps_its_permissions_and_the_link_that_leads_to_it() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let [page, link] = ["page.html", "link.html"].map(|name| sandbox.path(name));
    symlink(&page, &link).unwrap();
    let generate = |more: &[&str]| {
        let trace = ["--trace", link.to_str().unwrap()];
        sandbox.run(&[&["generate", "-m", &model, "-p", TEXT, "-n", "4"], &trace[..], more].concat())
    };
    generate(&["-c", "8"]).assert_error(1, &["the context holds 8"]);
    assert!(link.is_symlink() && !page.exists(), "the page that the link leads to is not there yet");
    generate(&[]).assert_success();
    std::fs::set_permissions(&page, std::fs::Permissions::from_mode(0o600)).unwrap();
    generate(&[]).assert_success();
    assert!(link.is_symlink() && std::fs::read_to_string(&page).unwrap().contains("</script>"));
    assert_eq!(page.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}
