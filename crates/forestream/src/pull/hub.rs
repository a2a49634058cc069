//! Fetches files from the Hugging Face Hub, into the cache that other tools share.
//!
//! The client has no time limits, so it runs on its own thread, and silence for too long counts as a failure. Must not
//! know which models have short names beyond what the name itself says.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo};

use super::{ModelName, Reporter, Source, SourceError, sha256_of};

/// Silence after which the Hub counts as unreachable.
const PATIENCE: Duration = Duration::from_secs(20);

/// The Hugging Face Hub.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    /// Access token for private and gated repositories.
    pub token: Option<String>,
}

impl Hub {
    /// Its name for users.
    pub const LABEL: &str = "Hugging Face Hub";

    /// Fetches what `choose` takes of a repository's files.
    pub(super) fn fetch_chosen(
        &self,
        repo: Repo,
        choose: Box<Choose>,
        reporter: &mut dyn Reporter,
    ) -> Result<PathBuf, SourceError> {
        Request { repo, choose, expected_sha256: None, token: self.token.clone() }.start(reporter)
    }
}

/// Takes what is needed of a repository's files.
pub(super) type Choose = dyn Fn(&[String]) -> Result<Choice, SourceError> + Send;

/// What the fetching thread reports.
enum Message {
    Say(String),
    Advance { done_bytes: u64, total_bytes: u64 },
    Done(Result<PathBuf, SourceError>),
}

impl Source for Hub {
    fn label(&self) -> &'static str {
        Self::LABEL
    }

    fn may_carry(&self, name: &ModelName) -> bool {
        address(name).is_some()
    }

    fn cached(&self, name: &ModelName) -> Option<PathBuf> {
        let (repository, wanted) = address(name)?;
        let cache = Cache::from_env().model(repository.to_owned());
        // The refs file names the newest snapshot; any file of it leads to the directory.
        let anchor = ["config.json", "README.md", ".gitattributes"].iter().find_map(|file| cache.get(file));
        if let Some(path) = wanted.and_then(|file| cache.get(file)) {
            return Some(path);
        }
        let snapshot = anchor?.parent()?.to_owned();
        let entries = std::fs::read_dir(&snapshot).ok()?;
        let files: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        match choose(&files, wanted).ok()? {
            Choice::File(file) => Some(snapshot.join(file)),
            Choice::Directory(_) => Some(snapshot),
        }
    }

    fn fetch(&self, name: &ModelName, _directory: &Path, reporter: &mut dyn Reporter) -> Result<PathBuf, SourceError> {
        let (repository, wanted) = address(name).ok_or(SourceError::NotCarried)?;
        let expected_sha256 = match name {
            ModelName::Registered(model) => Some(model.sha256),
            _ => None,
        };
        let repo = Repo::model(repository.to_owned());
        let wanted = wanted.map(str::to_owned);
        let choose = Box::new(move |files: &[String]| choose(files, wanted.as_deref()));
        Request { repo, choose, expected_sha256, token: self.token.clone() }.start(reporter)
    }
}

/// The repository of `name`, and the file or quantization that is wanted of it.
fn address(name: &ModelName) -> Option<(&str, Option<&str>)> {
    match name {
        ModelName::Registered(model) => Some((model.hub_repository, Some(model.hub_file))),
        ModelName::Hub { repository, wanted } => Some((repository, wanted.as_deref())),
        ModelName::Path(_) => None,
    }
}

fn listen(receiver: &Receiver<Message>, reporter: &mut dyn Reporter) -> Result<PathBuf, SourceError> {
    loop {
        match receiver.recv_timeout(PATIENCE) {
            Ok(Message::Say(line)) => reporter.say(&line),
            Ok(Message::Advance { done_bytes, total_bytes }) => reporter.advance(done_bytes, total_bytes),
            Ok(Message::Done(result)) => return result,
            Err(_) => return Err(SourceError::NoAnswer { seconds: PATIENCE.as_secs() }),
        }
    }
}

/// One fetch, as the thread needs it.
struct Request {
    repo: Repo,
    choose: Box<Choose>,
    expected_sha256: Option<&'static str>,
    token: Option<String>,
}

impl Request {
    /// Runs on a thread of its own, and gives up after a long silence.
    fn start(self, reporter: &mut dyn Reporter) -> Result<PathBuf, SourceError> {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let result = self.run(&sender);
            let _ = sender.send(Message::Done(result)); // nobody listens after the time limit
        });
        listen(&receiver, reporter)
    }

    fn run(&self, sender: &Sender<Message>) -> Result<PathBuf, SourceError> {
        let mut builder = ApiBuilder::from_env().with_progress(false);
        if self.token.is_some() {
            builder = builder.with_token(self.token.clone());
        }
        let api = builder.build().map_err(|error| SourceError::Hub(error.to_string()))?;
        let repo = api.repo(self.repo.clone());
        let info = repo.info().map_err(|error| SourceError::Hub(error.to_string()))?;
        let files: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        match (self.choose)(&files)? {
            Choice::File(file) => self.fetch_file(&api, &repo, &file, sender),
            Choice::Directory(files) => {
                let paths: Result<Vec<PathBuf>, SourceError> =
                    files.iter().map(|file| self.fetch_file(&api, &repo, file, sender)).collect();
                let directory = paths?.first().and_then(|path| path.parent().map(Path::to_owned));
                directory.ok_or_else(|| SourceError::NotFound("the repository is empty".to_owned()))
            }
        }
    }

    fn fetch_file(
        &self,
        api: &Api,
        repo: &ApiRepo,
        file: &str,
        sender: &Sender<Message>,
    ) -> Result<PathBuf, SourceError> {
        let hub_error = |error: hf_hub::api::sync::ApiError| SourceError::Hub(format!("{file}: {error}"));
        let metadata = api.metadata(&repo.url(file)).map_err(hub_error)?;
        let announced = metadata.etag().to_owned(); // of a large file: its SHA-256
        if let Some(expected) = self.expected_sha256.filter(|expected| *expected != announced) {
            let expected = expected.to_owned();
            return Err(SourceError::Checksum { path: file.into(), expected, got: announced });
        }
        let _ = sender.send(Message::Say(format!("{}/{file}, {} bytes", self.repo.url(), metadata.size())));
        let progress = Forward { sender: sender.clone(), done_bytes: 0, total_bytes: metadata.size() as u64 };
        let path = repo.download_with_progress(file, progress).map_err(hub_error)?;
        if announced.len() == 64 {
            check(&path, &announced)?;
        }
        Ok(path)
    }
}

/// Refuses and removes a file that is not what was announced.
fn check(path: &Path, expected: &str) -> Result<(), SourceError> {
    let got = sha256_of(path)?;
    if got == expected {
        return Ok(());
    }
    let blob = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    for file in [path, &blob] {
        let _ = std::fs::remove_file(file); // the error below says what matters
    }
    Err(SourceError::Checksum { path: path.to_owned(), expected: expected.to_owned(), got })
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

/// What to take of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// One GGUF file.
    File(String),
    /// The files of a Hugging Face checkpoint.
    Directory(Vec<String>),
}

/// Quantizations that are taken when none is asked for, best first.
const PREFERRED: &[&str] = &["Q4_K_M", "Q4_1", "Q4_0", "Q8_0", "F16"];

/// The files of a checkpoint directory that are needed to run it, besides the weights.
const SIDE_FILES: &[&str] =
    &["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

fn choose(files: &[String], wanted: Option<&str>) -> Result<Choice, SourceError> {
    let mut ggufs = files.iter().filter(|file| Path::new(file).extension().is_some_and(|e| e == "gguf"));
    if let Some(wanted) = wanted {
        let quantization = wanted.to_ascii_lowercase();
        let exact = files.iter().find(|file| *file == wanted);
        let found = exact.or_else(|| ggufs.find(|file| file.to_ascii_lowercase().contains(&quantization)));
        let missing = || SourceError::NotFound(format!("no file is called, or quantized as, {wanted}"));
        return found.cloned().map(Choice::File).ok_or_else(missing);
    }
    let is_weights = |file: &&String| file.ends_with(".safetensors") || file.ends_with(".safetensors.index.json");
    let mut weights: Vec<String> =
        files.iter().filter(is_weights).filter(|file| !file.contains('/')).cloned().collect();
    if !weights.is_empty() && files.iter().any(|file| file == "config.json") {
        weights.extend(files.iter().filter(|file| SIDE_FILES.contains(&file.as_str())).cloned());
        return Ok(Choice::Directory(weights));
    }
    let ggufs: Vec<&String> = ggufs.collect();
    let preferred =
        PREFERRED.iter().find_map(|name| ggufs.iter().find(|file| file.to_ascii_uppercase().contains(name)));
    let found = preferred.or(ggufs.first()).map(|file| Choice::File((*file).clone()));
    found.ok_or_else(|| SourceError::NotFound("it has neither GGUF nor safetensors files".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_files_of_a_repository_are_chosen() {
        let file = |name: &str| Choice::File(name.to_owned());
        let ggufs = &["README.md", "m-Q8_0.gguf", "m-q4_k_m.gguf", "m-Q2_K.gguf"][..];
        let checkpoint = &["README.md", "model.safetensors", "config.json", "tokenizer.json", "onnx/model.safetensors"];
        let kept = ["model.safetensors", "config.json", "tokenizer.json"].map(str::to_owned).to_vec();
        let cases: &[(&[&str], Option<&str>, Choice)] = &[
            (ggufs, None, file("m-q4_k_m.gguf")),
            (ggufs, Some("q8_0"), file("m-Q8_0.gguf")),
            (ggufs, Some("m-Q2_K.gguf"), file("m-Q2_K.gguf")),
            (checkpoint, None, Choice::Directory(kept)),
        ];
        for (files, wanted, expected) in cases {
            let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
            assert_eq!(choose(&files, *wanted).unwrap(), *expected, "{files:?} {wanted:?}");
        }
    }

    #[test]
    fn a_missing_quantization_is_named() {
        let error = choose(&["m-Q8_0.gguf".to_owned()], Some("Q3_K")).unwrap_err();
        assert!(error.to_string().contains("Q3_K"), "{error}");
    }
}
