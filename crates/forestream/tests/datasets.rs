//! Data by name: the client that users have, against a server on this machine that answers as the Hub does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use support::{Run, Sandbox, tiny_model};

const TABLE: &str = "default/train/0000.parquet";

/// Answers requests for one dataset, `owner/chats`, and counts them.
struct Hub {
    endpoint: String,
    num_requests: Arc<AtomicUsize>,
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let num_requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&num_requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                answer(&stream.unwrap());
            }
        });
        Self { endpoint, num_requests }
    }

    fn run(&self, sandbox: &Sandbox, arguments: &[&str]) -> Run {
        Run::of(sandbox.command(arguments).env("HF_ENDPOINT", &self.endpoint).output().unwrap())
    }
}

/// One request, then the connection is closed.
fn answer(mut stream: &TcpStream) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let wants_first_byte = lines.any(|line| line.eq_ignore_ascii_case("range: bytes=0-0"));
    let listing = format!(r#"{{"sha": "c0ffee", "siblings": [{{"rfilename": "{TABLE}"}}]}}"#);
    let (status, body) = match path.as_str() {
        "/api/datasets/owner/chats/revision/refs%2Fconvert%2Fparquet" => ("200 OK", listing.into_bytes()),
        path if path == format!("/datasets/owner/chats/resolve/refs%2Fconvert%2Fparquet/{TABLE}") => {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/data/chat-snappy.parquet");
            ("206 Partial Content", std::fs::read(file).unwrap())
        }
        _ => ("404 Not Found", Vec::new()),
    };
    let total = body.len();
    let body = if wants_first_byte { &body[..1] } else { &body[..] };
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\nx-repo-commit: c0ffee\r\netag: \"1\"\r\ncontent-length: {}\r\n\
         content-range: bytes 0-{}/{total}\r\n\r\n",
        body.len(),
        body.len().saturating_sub(1)
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)); // the client may have seen enough
}

fn distill<'a>(model: &'a str, data: &'a str, output: &'a str) -> [&'a str; 11] {
    ["distill", "-m", model, "--data", data, "--template", "{id}", "-n", "4", "-o", output]
}

#[test]
fn a_dataset_of_the_hub_is_fetched_once() {
    let (hub, sandbox, model) = (Hub::start(), Sandbox::new(), tiny_model("tiny-llama"));
    let output = sandbox.path("adapter");
    let output = output.to_str().unwrap();
    let train = |data: &str| hub.run(&sandbox, &["train", "-m", &model, "--data", data, "-o", output, "--dry-run"]);
    let first = train("owner/chats");
    first.assert_success();
    assert!(first.stderr.contains("pulling the dataset owner/chats"), "{}", first.stderr);
    assert!(first.stderr.contains("train on 0000.parquet: 4 examples"), "{}", first.stderr);
    let num_requests = hub.num_requests.load(Ordering::SeqCst);
    assert!(num_requests > 0);
    train("owner/chats:train").assert_success();
    train("owner/chats:default/train").assert_success();
    assert_eq!(hub.num_requests.load(Ordering::SeqCst), num_requests, "what is on this machine is not fetched again");
}

#[test]
fn what_the_hub_has_not_is_said_with_a_remedy() {
    let (hub, sandbox, model) = (Hub::start(), Sandbox::new(), tiny_model("tiny-llama"));
    let output = sandbox.path("answers.jsonl");
    let output = output.to_str().unwrap();
    let run = |data: &str| hub.run(&sandbox, &distill(&model, data, output));
    run("owner/chats:test").assert_error(1, &["owner/chats:test is no file", "no test, but default/train"]);
    run("owner/nothing").assert_error(1, &["owner/nothing is no file", "404", "owner/name[:split]"]);
    run("owner/rows.jsonl").assert_error(1, &["cannot read owner/rows.jsonl"]);
    let offline: Vec<&str> = distill(&model, "owner/chats", output).into_iter().chain(["--offline"]).collect();
    let num_requests = hub.num_requests.load(Ordering::SeqCst);
    hub.run(&sandbox, &offline).assert_error(1, &["skipped: --offline"]);
    let mut command = sandbox.command(&distill(&model, "owner/chats", output));
    let without_hub = command.env("HF_ENDPOINT", &hub.endpoint).env("HF_HUB_OFFLINE", "1").output().unwrap();
    Run::of(without_hub).assert_error(1, &["skipped: HF_HUB_OFFLINE is set"]);
    assert_eq!(hub.num_requests.load(Ordering::SeqCst), num_requests);
    assert!(!Path::new(output).exists());
}
