//! One fetch from the Hub: lists the repository, keeps the files that are whole, and downloads the others.
//!
//! The client has no time limits, so it runs on its own thread, and silence for too long counts as a failure.

use std::any::Any;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, Repo};

use super::choice::{Choice, INDEX, shards};
use super::failure::{self, Question};
use super::names::Answer;
use super::snapshot::{Comparison, is_sha256, link};
use crate::pull::assembly::hash;
use crate::pull::{Reporter, SourceError};

/// Silence after which the Hub counts as unreachable.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes what is needed of a repository's files.
pub(in crate::pull) type Choose = dyn Fn(&[String]) -> Result<Choice, SourceError> + Send;

/// What the fetching thread reports.
enum Message {
    Say(String),
    Advance {
        done_bytes: u64,
        total_bytes: u64,
    },
    /// A long calculation goes on.
    Alive,
    Done(Result<PathBuf, SourceError>),
}

/// Reports until the thread is done; it may fall silent, or end without a result.
fn listen(
    receiver: &Receiver<Message>,
    reporter: &mut dyn Reporter,
) -> Result<Result<PathBuf, SourceError>, RecvTimeoutError> {
    loop {
        match receiver.recv_timeout(PATIENCE)? {
            Message::Say(line) => reporter.say(&line),
            Message::Advance { done_bytes, total_bytes } => reporter.advance(done_bytes, total_bytes),
            Message::Alive => (),
            Message::Done(result) => return Ok(result),
        }
    }
}

fn text_of_panic(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it said nothing").to_owned()
}

/// One fetch, as the thread needs it.
pub(super) struct Request {
    pub(super) repo: Repo,
    pub(super) choose: Box<Choose>,
    pub(super) expected_sha256: Option<&'static str>,
    pub(super) token: Option<String>,
}

impl Request {
    /// Runs on a thread of its own, and gives up after a long silence.
    pub(super) fn start(self, reporter: &mut dyn Reporter) -> Result<PathBuf, SourceError> {
        let (sender, receiver) = mpsc::channel();
        let fetching = thread::spawn(move || {
            let result = self.run(&sender);
            let _ = sender.send(Message::Done(result)); // nobody listens after the time limit
        });
        listen(&receiver, reporter).unwrap_or_else(|silence| {
            Err(match silence {
                RecvTimeoutError::Timeout => SourceError::NoAnswer { seconds: PATIENCE.as_secs() },
                RecvTimeoutError::Disconnected => SourceError::Crashed {
                    problem: fetching.join().map_or_else(|panic| text_of_panic(&*panic), |()| "no result".to_owned()),
                },
            })
        })
    }

    fn run(&self, sender: &Sender<Message>) -> Result<PathBuf, SourceError> {
        let repository = self.repo.url();
        let question = Question { repository: &repository, file: None, needed_bytes: None };
        let failed = |error: ApiError| failure::describe(error, question);
        let mut builder = ApiBuilder::from_env().with_progress(false);
        if self.token.is_some() {
            builder = builder.with_token(self.token.clone());
        }
        let api = builder.build().map_err(failed)?;
        let repo = api.repo(self.repo.clone());
        let siblings = repo.info().map_err(failed)?.siblings;
        let files: Vec<String> = siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let mut fetch = Fetch { request: self, api: &api, repo, sender, kept: Comparison::default(), num_fetched: 0 };
        let path = match (self.choose)(&files)? {
            Choice::File(file) => fetch.file(&file)?,
            Choice::Directory(files) => fetch.directory(&files)?,
        };
        fetch.say_what_was_kept();
        Ok(path)
    }
}

/// A fetch that has begun.
struct Fetch<'a> {
    request: &'a Request,
    api: &'a Api,
    repo: ApiRepo,
    sender: &'a Sender<Message>,
    /// The files that were already there.
    kept: Comparison,
    num_fetched: usize,
}

impl Fetch<'_> {
    fn send(&self, message: Message) {
        let _ = self.sender.send(message); // nobody listens after the time limit
    }

    fn say(&self, line: String) {
        self.send(Message::Say(line));
    }

    fn say_what_was_kept(&self) {
        let (num_fetched, num_kept) = (self.num_fetched, self.kept.num_right + self.kept.num_unknown);
        if num_fetched == 0 {
            self.say(self.kept.describe());
        } else if num_kept > 0 {
            self.say(format!("fetched {num_fetched} files, {num_kept} were already there"));
        }
    }

    /// Fetches all of `files`, and the shards that an index among them names.
    fn directory(&mut self, files: &[String]) -> Result<PathBuf, SourceError> {
        let mut last = None;
        for file in files {
            let path = self.file(file)?;
            if file == INDEX {
                for shard in shards(&path)? {
                    self.file(&shard)?;
                }
            }
            last = path.parent().map(Path::to_owned);
        }
        last.ok_or_else(|| SourceError::NotFound("the repository is empty".to_owned()))
    }

    fn file(&mut self, file: &str) -> Result<PathBuf, SourceError> {
        let repository = self.request.repo.url();
        let url = self.repo.url(file);
        let server = url.split_once(&format!("/{repository}/resolve/")).map_or(&*url, |(server, _)| server);
        let answer = Answer { server, repository: &repository };
        answer.check_file(file)?;
        let question = Question { repository: &repository, file: Some(file), needed_bytes: None };
        let metadata = self.api.metadata(&url).map_err(|error| failure::describe(error, question))?;
        answer.check_commit_and_etag(metadata.commit_hash(), metadata.etag())?;
        let announced = metadata.etag().to_owned(); // of a large file: its SHA-256
        if let Some(expected) = self.request.expected_sha256.filter(|expected| *expected != announced) {
            let expected = expected.to_owned();
            return Err(SourceError::Checksum { path: file.into(), expected, got: announced });
        }
        if let Some(path) = self.keep(file, &metadata) {
            return Ok(path);
        }
        self.say(format!("{repository}/{file}, {} bytes", metadata.size()));
        self.num_fetched += 1;
        self.download(file, &metadata)
    }

    /// The file, if an earlier pull has left it whole.
    fn keep(&mut self, file: &str, metadata: &Metadata) -> Option<PathBuf> {
        let cache = Cache::from_env().repo(self.request.repo.clone());
        let pointer = cache.pointer_path(metadata.commit_hash()).join(file);
        // Where the system has no links the file itself is in the snapshot.
        let held = [cache.blob_path(metadata.etag()), pointer.clone()].into_iter().find(|path| path.is_file())?;
        let has_size = fs::metadata(&held).ok()?.len() == metadata.size() as u64;
        let has_sum = is_sha256(metadata.etag());
        if !has_size || has_sum && self.sha256_of(&held).ok()? != metadata.etag() {
            self.say(format!("{} is damaged; fetching it anew", pointer.display()));
            return None;
        }
        link(&held, &pointer).and_then(|()| cache.create_ref(metadata.commit_hash())).ok()?;
        *(if has_sum { &mut self.kept.num_right } else { &mut self.kept.num_unknown }) += 1;
        Some(pointer)
    }

    fn download(&self, file: &str, metadata: &Metadata) -> Result<PathBuf, SourceError> {
        let cache = Cache::from_env().repo(self.request.repo.clone());
        let blob = cache.blob_path(metadata.etag());
        let part = blob.with_extension("part"); // as the client calls it
        let total_bytes = metadata.size() as u64;
        let here_bytes = || fs::metadata(&part).map_or(0, |metadata| metadata.len());
        if here_bytes() >= total_bytes {
            let _ = fs::remove_file(&part); // the client cannot go on with it, and asks for what is beyond the end
        }
        let progress = Forward { sender: self.sender.clone(), done_bytes: 0, total_bytes };
        let path = self.repo.download_with_progress(file, progress).map_err(|error| {
            let repository = self.request.repo.url();
            let needed_bytes = Some(total_bytes.saturating_sub(here_bytes()));
            failure::describe(error, Question { repository: &repository, file: Some(file), needed_bytes })
        })?;
        if blob.is_file() {
            let link_error = |cause| SourceError::File { action: "link", path: path.clone(), cause };
            link(&blob, &path).map_err(link_error)?; // the client leaves alone what had the name
        }
        self.check(&path, metadata)?;
        Ok(path)
    }

    /// Refuses and removes a file that is not what was announced.
    fn check(&self, path: &Path, metadata: &Metadata) -> Result<(), SourceError> {
        let (expected, expected_bytes) = (metadata.etag(), metadata.size() as u64);
        let got_bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
        let has_sum = is_sha256(expected);
        let got = if has_sum { self.sha256_of(path)? } else { expected.to_owned() };
        if got == expected && got_bytes == expected_bytes {
            return Ok(());
        }
        let blob = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        for file in [path, &blob] {
            let _ = fs::remove_file(file); // the error below says what matters
        }
        if got_bytes != expected_bytes {
            return Err(SourceError::Size {
                part: path.display().to_string(),
                expected: expected_bytes,
                got: got_bytes,
            });
        }
        Err(SourceError::Checksum { path: path.to_owned(), expected: expected.to_owned(), got })
    }

    /// Tells the listener that this goes on: a large file takes longer than its patience.
    fn sha256_of(&self, path: &Path) -> Result<String, SourceError> {
        hash(path, &mut || self.send(Message::Alive))
    }
}

/// Passes progress on to the listening thread.
struct Forward {
    sender: Sender<Message>,
    done_bytes: u64,
    total_bytes: u64,
}

impl Progress for Forward {
    fn init(&mut self, size: usize, _filename: &str) {
        self.total_bytes = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.done_bytes += size as u64;
        let message = Message::Advance { done_bytes: self.done_bytes, total_bytes: self.total_bytes };
        let _ = self.sender.send(message);
    }

    fn finish(&mut self) {}
}
