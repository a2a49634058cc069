//! The file of answers: a header line with what made them, then one answer on each line, in the order of the prompts.
//!
//! Every line is written at once and whole, so that a file that a run left behind is continued after its last complete
//! line. A file made otherwise is refused, and never changed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use forestream_decode::SamplingSettings;
use forestream_model::streams::Adapter;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{DistillError, DistillOptions, DistillPrompt, DistilledAnswer};
use crate::{Engine, Error};

/// Counts up when the meaning of the file changes.
const VERSION: u32 = 1;
/// The field that tells a header from an answer.
const MARK: &str = "forestream_distill";
/// The one field that may differ: a file can be known under several names.
const NAME: &str = "model";

/// What a file's answers are to.
#[derive(Clone, Copy, Debug)]
pub enum Prompts<'a> {
    /// These, in their order.
    Given(&'a [DistillPrompt]),
    /// What the model wrote itself: no file says what they have to be, and there can always be more.
    Own,
}

/// What made the answers of a file: its first line.
#[derive(Clone, Debug, Serialize)]
pub struct Header {
    forestream_distill: u32,
    model: String,
    fingerprint: String,
    weight_format: String,
    /// What [`Adapter::task_digest`] says of an adapter that changes what the model says.
    #[serde(skip_serializing_if = "Option::is_none")]
    task_digest: Option<String>,
    prompt_format: &'static str,
    /// Whether the model wrote the prompts too.
    #[serde(skip_serializing_if = "is_false")]
    own_prompts: bool,
    max_tokens: usize,
    ctx_size: usize,
    temperature: f32,
    top_k: Option<usize>,
    top_p: f32,
    min_p: f32,
    typical_p: f32,
    repeat_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    penalty_last_n: Option<usize>,
    logit_bias: Vec<(u32, f32)>,
    seed: u64,
}

impl Header {
    /// The header of answers of this model; `prompt_format` says what is around prompts.
    pub fn new(engine: &Engine, options: &DistillOptions, prompt_format: &'static str) -> Self {
        let SamplingSettings { temperature, top_k, top_p, min_p, typical_p, repeat_penalty, .. } = options.sampling;
        let SamplingSettings { presence_penalty, frequency_penalty, penalty_last_n, seed, .. } = options.sampling;
        Self {
            forestream_distill: VERSION,
            model: engine.name().to_owned(),
            fingerprint: engine.fingerprint().to_owned(),
            weight_format: engine.weight_format().to_owned(),
            task_digest: None,
            prompt_format,
            own_prompts: false,
            max_tokens: options.max_tokens,
            ctx_size: engine.ctx_size(),
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            repeat_penalty,
            presence_penalty,
            frequency_penalty,
            penalty_last_n,
            logit_bias: options.sampling.logit_bias.clone(),
            seed,
        }
    }

    /// The same for `engine` with the adapter in `directory`, which counts as far as it changes what the model says.
    ///
    /// # Errors
    /// An adapter that cannot be read.
    pub fn with_adapter(mut self, engine: &Engine, directory: &Path) -> Result<Self, Error> {
        self.task_digest = Adapter::open(directory, engine.config(), engine.fingerprint())?.task_digest();
        Ok(self)
    }

    /// The same for answers to prompts that the model wrote itself.
    pub fn with_own_prompts(self) -> Self {
        Self { own_prompts: true, ..self }
    }

    fn line(&self) -> String {
        serde_json::to_string(self).expect("a header is made of text and numbers") + "\n"
    }
}

/// The file of answers, open at its end.
#[derive(Debug)]
pub struct AnswerFile {
    path: PathBuf,
    file: File,
    num_answers: usize,
    own_prompts: Vec<(String, usize)>,
}

impl AnswerFile {
    /// Creates the file, or opens the one of an earlier run and cuts off what follows its last complete line.
    ///
    /// # Errors
    /// A file that cannot be read or written, or that other settings, prompts or programs made.
    pub fn open(path: &Path, header: &Header, prompts: Prompts<'_>) -> Result<Self, DistillError> {
        let failed = |action| move |source| DistillError::Io { action, path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(failed("open"))?;
        if !file.metadata().map_err(failed("open"))?.is_file() {
            let source = std::io::Error::other("it is not a regular file, and could not be continued");
            return Err(failed("open")(source));
        }
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(DistillError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(_)) | Ok(()) => {} // not every file system has locks
        }
        let found = Existing::read(path, &file, header, prompts)?;
        let Existing { num_answers, own_prompts, .. } = found;
        let mut this = Self { path: path.to_owned(), file, num_answers, own_prompts };
        this.file.set_len(found.num_bytes).map_err(failed("write"))?;
        this.file.seek(SeekFrom::End(0)).map_err(failed("write"))?;
        if found.num_bytes == 0 {
            this.write(&header.line())?;
        }
        Ok(this)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers in the file.
    pub fn num_answers(&self) -> usize {
        self.num_answers
    }

    /// The model's own prompts that an earlier run left in the file, each with its draw.
    pub fn take_own_prompts(&mut self) -> Vec<(String, usize)> {
        std::mem::take(&mut self.own_prompts)
    }

    /// Adds an answer.
    ///
    /// # Errors
    /// A file that cannot be written.
    ///
    /// # Panics
    /// If the answer is not the next one.
    pub fn append(&mut self, answer: &DistilledAnswer) -> Result<(), DistillError> {
        assert_eq!(answer.index, self.num_answers, "answers are written in the order of their prompts");
        let line = serde_json::to_string(answer).expect("an answer is made of text and numbers") + "\n";
        self.write(&line)?;
        self.num_answers += 1;
        Ok(())
    }

    fn write(&mut self, line: &str) -> Result<(), DistillError> {
        let failed = |source| DistillError::Io { action: "write", path: self.path.clone(), source };
        self.file.write_all(line.as_bytes()).map_err(failed)
    }
}

/// What a file holds already.
struct Existing {
    num_answers: usize,
    own_prompts: Vec<(String, usize)>,
    /// Up to the end of the last complete line.
    num_bytes: u64,
}

impl Existing {
    fn read(path: &Path, file: &File, header: &Header, prompts: Prompts<'_>) -> Result<Self, DistillError> {
        let not_answers = || DistillError::NotAnswers { path: path.to_owned() };
        let mut lines = Lines { path, reader: BufReader::new(file), text: String::new(), number: 0 };
        let mut found = Self { num_answers: 0, own_prompts: Vec::new(), num_bytes: 0 };
        if !lines.begin_as(&header.line())? {
            return Err(not_answers()); // before a line is read: one of another file may be very long
        }
        if !lines.advance()? {
            let is_header = header.line().starts_with(&lines.text); // of a run that ended while it wrote this
            return if is_header { Ok(found) } else { Err(not_answers()) };
        }
        lines.check_header(header)?;
        found.num_bytes = lines.text.len() as u64;
        while lines.advance()? {
            let answer = lines.answer(found.num_answers)?;
            match (prompts, answer.draw) {
                (Prompts::Given(prompts), _) => lines.check_prompt(&answer, prompts)?,
                (Prompts::Own, Some(draw)) => found.own_prompts.push((answer.prompt, draw)),
                (Prompts::Own, None) => return Err(lines.broken(&"it has no number of a draw")),
            }
            found.num_answers += 1;
            found.num_bytes += lines.text.len() as u64;
        }
        match prompts {
            Prompts::Given(prompts) if found.num_answers > prompts.len() => {
                let (num_answers, num_prompts) = (found.num_answers, prompts.len());
                Err(DistillError::TooManyAnswers { path: path.to_owned(), num_answers, num_prompts })
            }
            _ => Ok(found),
        }
    }
}

/// The lines of a file.
struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<&'a File>,
    /// The line with its line break, or what follows the last line break.
    text: String,
    /// From 1.
    number: usize,
}

impl Lines<'_> {
    /// Whether the file's first bytes are those of a header, as far as there are any.
    fn begin_as(&mut self, header: &str) -> Result<bool, DistillError> {
        let failed = |source| DistillError::Io { action: "read", path: self.path.to_owned(), source };
        let bytes = self.reader.fill_buf().map_err(failed)?;
        let len = bytes.len().min("{\"".len() + MARK.len());
        Ok(bytes[..len] == header.as_bytes()[..len])
    }

    /// Reads the next line; `false` where it is not complete.
    fn advance(&mut self) -> Result<bool, DistillError> {
        let failed = |source| DistillError::Io { action: "read", path: self.path.to_owned(), source };
        let mut bytes = Vec::new();
        self.reader.read_until(b'\n', &mut bytes).map_err(failed)?;
        self.number += 1;
        let is_complete = bytes.ends_with(b"\n");
        self.text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(_) if self.number == 1 => return Err(DistillError::NotAnswers { path: self.path.to_owned() }),
            Err(_) if is_complete => return Err(self.broken(&"it is not UTF-8")),
            Err(_) => String::new(), // a line that ends within a character
        };
        Ok(is_complete)
    }

    fn broken(&self, problem: &dyn std::fmt::Display) -> DistillError {
        DistillError::Line { path: self.path.to_owned(), line: self.number, problem: problem.to_string() }
    }

    fn check_header(&self, header: &Header) -> Result<(), DistillError> {
        let parse = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap_or_default();
        let (in_file, asked) = (parse(&self.text), parse(&header.line()));
        if !in_file.contains_key(MARK) {
            return Err(DistillError::NotAnswers { path: self.path.to_owned() });
        }
        let differs = |name: &&String| name.as_str() != NAME && in_file.get(*name) != asked.get(*name);
        let Some(setting) = asked.keys().chain(in_file.keys()).find(differs) else { return Ok(()) };
        let show = |header: &Map<String, Value>| header.get(setting).unwrap_or(&Value::Null).to_string();
        Err(DistillError::OtherSettings {
            path: self.path.to_owned(),
            setting: setting.clone(),
            in_file: show(&in_file),
            asked: show(&asked),
        })
    }

    fn answer(&self, index: usize) -> Result<DistilledAnswer, DistillError> {
        let answer: DistilledAnswer = serde_json::from_str(&self.text).map_err(|error| self.broken(&error))?;
        if answer.index != index {
            return Err(self.broken(&format!("its index is {}, and {index} is next", answer.index)));
        }
        Ok(answer)
    }

    fn check_prompt(&self, answer: &DistilledAnswer, prompts: &[DistillPrompt]) -> Result<(), DistillError> {
        let prompt = prompts.get(answer.index).filter(|prompt| prompt.text != answer.prompt);
        let Some(prompt) = prompt else { return Ok(()) };
        Err(DistillError::OtherPrompt {
            path: self.path.to_owned(),
            line: self.number,
            in_file: beginning(&answer.prompt),
            number: answer.index + 1,
            asked: beginning(&prompt.text),
        })
    }
}

/// Serde hands over a reference.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_false(value: &bool) -> bool {
    !value
}

/// The beginning of a text, for messages.
fn beginning(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    if text.chars().nth(MAX_CHARS).is_none() {
        return text.to_owned();
    }
    text.chars().take(MAX_CHARS).chain(['…']).collect()
}
