//! Models by name of a repository: the client that users have, against a server on this machine that answers as the Hub
//! does, and fails as it does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use forestream::pull::sha256_of;
use support::{Run, Sandbox, tiny_model};

const NAME: &str = "somebody/tiny";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// What the server has, and what it was asked.
#[derive(Default)]
struct Repository {
    files: BTreeMap<String, PathBuf>,
    /// Answers other than the file; the listing is called by the empty name.
    failures: BTreeMap<String, u16>,
    commit: String,
    /// What the server calls the content of every file, where it is not a sum of it.
    etag: Option<String>,
    downloads: Vec<String>,
}

struct Hub {
    endpoint: String,
    repository: Arc<Mutex<Repository>>,
}

impl Hub {
    /// Has one repository, with the files of a tiny model.
    fn start(model: &str) -> Self {
        let entries = std::fs::read_dir(tiny_model(model)).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).collect();
        let repository =
            Arc::new(Mutex::new(Repository { files, commit: "c0ffee".to_owned(), ..Repository::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&repository);
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(&stream.unwrap(), &mut shared.lock().unwrap());
            }
        });
        Self { endpoint, repository }
    }

    fn fail(&self, file: &str, status: u16) {
        self.repository.lock().unwrap().failures.insert(file.to_owned(), status);
    }

    fn mend(&self) {
        self.repository.lock().unwrap().failures.clear();
    }

    /// The files that were downloaded since the last call.
    fn downloads(&self) -> Vec<String> {
        std::mem::take(&mut self.repository.lock().unwrap().downloads)
    }

    fn pull(&self, sandbox: &Sandbox, name: &str) -> Run {
        Run::of(sandbox.command(&["pull", name]).env("HF_ENDPOINT", &self.endpoint).output().unwrap())
    }
}

/// One request, then the connection is closed.
fn answer(mut stream: &TcpStream, repository: &mut Repository) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let range = lines.find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let file = path.strip_prefix(&format!("/{NAME}/resolve/main/")).unwrap_or_default();
    let is_listing = path == format!("/api/models/{NAME}/revision/main");
    let found = repository.files.get(file);
    let failure = repository.failures.get(file).copied().or((found.is_none() && !is_listing).then_some(404));
    let (mut etag, content) = match found {
        Some(path) => (sha256_of(path).unwrap(), std::fs::read(path).unwrap()),
        None => ("0".to_owned(), listing(repository)),
    };
    if !file.ends_with(".safetensors") {
        etag.truncate(40); // small files have another sum
    }
    let etag = repository.etag.as_ref().unwrap_or(&etag);
    let first_byte_only = range.as_deref() == Some("0-0");
    if !first_byte_only && !is_listing && failure.is_none() {
        repository.downloads.push(file.to_owned());
    }
    let start: usize = range.and_then(|range| range.split('-').next()?.parse().ok()).unwrap_or(0);
    let body = if first_byte_only { &content[..1] } else { &content[start..] };
    let (status, body) = failure.map_or((206, body), |status| (status, &b""[..]));
    let head = format!(
        "HTTP/1.1 {status} Said\r\nconnection: close\r\nx-repo-commit: {}\r\netag: \"{etag}\"\r\ncontent-length: {}\r\n\
         content-range: bytes {start}-{}/{}\r\n\r\n",
        repository.commit,
        body.len(),
        (start + body.len()).saturating_sub(1),
        content.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)); // the client may have seen enough
}

fn listing(repository: &Repository) -> Vec<u8> {
    let siblings: Vec<String> = repository.files.keys().map(|file| format!(r#"{{"rfilename": "{file}"}}"#)).collect();
    format!(r#"{{"sha": "c0ffee", "siblings": [{}]}}"#, siblings.join(", ")).into_bytes()
}

fn generate_offline(sandbox: &Sandbox) -> Run {
    sandbox.run(&["generate", "-m", NAME, "-p", "x", "-n", "2", "--offline"])
}

/// A file of the repository as it is on this machine.
fn local(sandbox: &Sandbox, file: &str) -> PathBuf {
    sandbox.path("hugging-face/hub/models--somebody--tiny/snapshots/c0ffee").join(file)
}

fn change_a_byte(path: &Path) {
    let mut content = std::fs::read(path).unwrap();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(path, content).unwrap();
}

#[test]
fn a_directory_without_its_tokenizer_is_completed() {
    let (hub, sandbox) = (Hub::start("tiny-llama"), Sandbox::new());
    hub.fail("tokenizer.json", 500);
    hub.pull(&sandbox, NAME).assert_error(1, &["tokenizer.json of somebody/tiny", "500", "check the network"]);
    generate_offline(&sandbox).assert_error(1, &["skipped: --offline"]);
    hub.mend();
    hub.downloads();
    let run = hub.pull(&sandbox, NAME);
    assert!(!run.assert_success().stderr.contains("is right"), "{}", run.stderr);
    assert_eq!(hub.downloads(), ["tokenizer.json", "tokenizer_config.json", "model.safetensors"]);
    assert_eq!(Path::new(run.stdout.trim()), local(&sandbox, ""));
    generate_offline(&sandbox).assert_success();
}

#[test]
fn the_shards_of_the_index_are_fetched_and_no_other_weights() {
    let (hub, sandbox) = (Hub::start("tiny-mistral"), Sandbox::new());
    let other = Path::new(&tiny_model("tiny-llama")).join("model.safetensors");
    hub.repository.lock().unwrap().files.insert("consolidated.safetensors".to_owned(), other);
    hub.fail(SHARDS[1], 500);
    hub.pull(&sandbox, NAME).assert_error(1, &[SHARDS[1]]);
    generate_offline(&sandbox).assert_error(1, &["skipped: --offline"]);
    hub.mend();
    assert!(!hub.downloads().contains(&"consolidated.safetensors".to_owned()));
    let place = format!("into {}", sandbox.path("hugging-face/hub").display());
    let run = hub.pull(&sandbox, NAME);
    assert!(run.assert_success().stderr.contains(&place), "{place} is not in: {}", run.stderr);
    assert_eq!(hub.downloads(), [SHARDS[1]]);
    generate_offline(&sandbox).assert_success();
}

#[test]
fn a_damaged_file_is_found_and_fetched_anew() {
    let (hub, sandbox) = (Hub::start("tiny-mistral"), Sandbox::new());
    hub.pull(&sandbox, NAME).assert_success();
    hub.downloads();
    let shard = local(&sandbox, SHARDS[0]);
    change_a_byte(&shard);
    let shard_name = shard.to_str().unwrap();
    let offline = sandbox.run(&["pull", NAME, "--offline"]);
    offline.assert_error(1, &[shard_name, "is damaged", "delete it and pull again", "without --offline"]);
    let run = hub.pull(&sandbox, NAME);
    assert!(run.assert_success().stderr.contains("is damaged; fetching it anew"), "{}", run.stderr);
    assert_eq!(hub.downloads(), [SHARDS[0]]);
    generate_offline(&sandbox).assert_success();
    std::fs::write(local(&sandbox, "tokenizer.json"), "{").unwrap();
    hub.pull(&sandbox, NAME).assert_success();
    assert_eq!(hub.downloads(), ["tokenizer.json"]);
}

#[test]
fn what_is_said_of_a_complete_directory_is_what_was_compared() {
    let (hub, sandbox) = (Hub::start("tiny-mistral"), Sandbox::new());
    hub.pull(&sandbox, NAME).assert_success();
    hub.downloads();
    let here = ["already on this machine", "complete", "compared and right: 2 of 7 files"];
    hub.pull(&sandbox, NAME).assert_error(0, &here);
    assert_eq!(hub.downloads(), [] as [&str; 0]);
    sandbox.run(&["pull", NAME, "--offline"]).assert_error(0, &here);
    hub.fail("", 503);
    hub.pull(&sandbox, NAME).assert_error(0, &["503", here[0], here[2]]);
}

#[test]
fn an_old_commit_runs_until_the_new_one_is_complete() {
    let (hub, sandbox) = (Hub::start("tiny-mistral"), Sandbox::new());
    hub.pull(&sandbox, NAME).assert_success();
    hub.downloads();
    hub.repository.lock().unwrap().commit = "facade".to_owned();
    hub.fail(SHARDS[1], 500);
    hub.pull(&sandbox, NAME).assert_error(0, &["500", "already on this machine"]);
    generate_offline(&sandbox).assert_success();
    hub.mend();
    let run = hub.pull(&sandbox, NAME);
    assert!(run.assert_success().stdout.contains("facade"), "{}", run.stdout);
    assert_eq!(hub.downloads(), [] as [&str; 0], "what has not changed is not fetched again");
    generate_offline(&sandbox).assert_success();
}

#[test]
fn each_refusal_has_its_own_remedy() {
    let (hub, sandbox) = (Hub::start("tiny-llama"), Sandbox::new());
    let cases: [(&str, u16, &[&str]); 4] = [
        ("", 401, &["somebody/tiny is refused (status 401)", "--hf-token", "licence"]),
        ("config.json", 403, &["config.json of somebody/tiny is refused (status 403)", "--hf-token", "licence"]),
        ("", 404, &["there is no repository somebody/tiny"]),
        ("config.json", 404, &["there is no file config.json in somebody/tiny"]),
    ];
    for (file, status, expected) in cases {
        hub.mend();
        hub.fail(file, status);
        let run = hub.pull(&sandbox, NAME);
        run.assert_error(1, expected);
        assert!(!run.stderr.contains("check the network"), "{}", run.stderr);
    }
}

/// The files and links below `directory` whose name has `part` in it.
fn found_below(directory: &Path, part: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            let is_called_so = path.file_name().unwrap().to_str().unwrap().contains(part);
            let inside = if path.is_dir() { found_below(&path, part) } else { Vec::new() };
            is_called_so.then_some(path).into_iter().chain(inside)
        })
        .collect()
}

#[test]
fn a_file_that_would_leave_the_cache_is_neither_fetched_nor_replaced() {
    let (hub, sandbox) = (Hub::start("tiny-llama"), Sandbox::new());
    let weights = Path::new(&tiny_model("tiny-llama")).join("model.safetensors");
    for name in ["../../../../evil-Q4_K_M.gguf", "/evil-Q4_K_M.gguf", "x/../../evil-Q4_K_M.gguf"] {
        hub.repository.lock().unwrap().files = BTreeMap::from([(name.to_owned(), weights.clone())]);
        std::fs::create_dir_all(sandbox.path("hugging-face")).unwrap();
        let own = sandbox.path("hugging-face/evil-Q4_K_M.gguf");
        std::fs::write(&own, "own").unwrap();
        let run = hub.pull(&sandbox, NAME);
        run.assert_error(1, &[&hub.endpoint, "somebody/tiny", &format!("{name:?}"), "HF_ENDPOINT"]);
        assert_eq!(hub.downloads(), [] as [&str; 0]);
        assert_eq!(std::fs::read_to_string(&own).unwrap(), "own");
        assert_eq!(found_below(&sandbox.path("."), "evil"), [sandbox.path("./hugging-face/evil-Q4_K_M.gguf")]);
    }
}

#[test]
fn a_commit_or_etag_that_would_leave_the_cache_is_refused() {
    let (hub, sandbox) = (Hub::start("tiny-llama"), Sandbox::new());
    let refused = |what: &str, name: &str| {
        let run = hub.pull(&sandbox, NAME);
        run.assert_error(1, &[&hub.endpoint, "somebody/tiny", what, &format!("{name:?}"), "HF_ENDPOINT"]);
        assert_eq!(hub.downloads(), [] as [&str; 0]);
        assert_eq!(found_below(&sandbox.path("."), "evil"), [] as [PathBuf; 0]);
    };
    for commit in ["../../../../evil", "evil/1", "..", ""] {
        hub.repository.lock().unwrap().commit = commit.to_owned();
        refused("commit", commit);
    }
    hub.repository.lock().unwrap().commit = "c0ffee".to_owned();
    for etag in ["../../../../evil", "/evil", "..", "W/../evil", ""] {
        hub.repository.lock().unwrap().etag = Some(etag.to_owned());
        refused("etag", etag);
    }
}

#[test]
fn a_crash_of_the_client_is_not_silence_of_the_network() {
    let (hub, sandbox) = (Hub::start("tiny-llama"), Sandbox::new());
    hub.fail("config.json", 302); // leads nowhere, which the client does not expect
    let run = hub.pull(&sandbox, NAME);
    assert_eq!(run.code, 1, "{}", run.stderr);
    for part in ["the client crashed: location", "HF_ENDPOINT"] {
        assert!(run.stderr.contains(part), "{part:?} is not in: {}", run.stderr);
    }
    assert!(!run.stderr.contains("no answer") && !run.stderr.contains("check the network"), "{}", run.stderr);
}
