//! Rows of data files as examples: a prompt and the completion to be foreseen, in token ids.
//!
//! Understands what `forestream distill` writes, `prompt` with `completion`, `messages`, `conversations`, and token ids
//! with a mask. A row that cannot be used is an error with file, line and remedy. Must not know models or how examples
//! are trained on.

use std::path::{Path, PathBuf};

use forestream_model::TokenId;
use forestream_text::{
    AddSpecial, ChatInputs, ChatTemplate, Message, ParseSpecial, SpecialTokens, TextError, Tokenizer,
};
use serde_json::{Map, Value};

use crate::batch::shuffled;
use crate::rows::{Row, RowError, RowFile};

/// The field that marks the first line of a file of `forestream distill`.
const DISTILL_MARK: &str = "forestream_distill";

/// A text of which the second part is to be foreseen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Example {
    /// What the model reads.
    pub prompt: Vec<TokenId>,
    /// What it answers, its stop token included.
    pub completion: Vec<TokenId>,
}

impl Example {
    /// Positions with at least one target for a stream: all of prompt's end and completion but the last two.
    pub fn num_positions(&self) -> usize {
        self.completion.len().saturating_sub(1)
    }

    /// Prompt and completion.
    pub fn text(&self) -> Vec<TokenId> {
        [self.prompt.as_slice(), &self.completion].concat()
    }
}

/// The examples of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The file's name.
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Which rows were taken and how they were read, where that was asked for.
    pub selection: Option<String>,
    /// Every example that has positions, in the order of the file.
    pub examples: Vec<Example>,
    /// Examples whose completion is too short to have a position.
    pub num_too_short: usize,
    /// Examples that were cut to the longest text.
    pub num_cut: usize,
}

impl Dataset {
    /// Positions of all examples.
    pub fn num_positions(&self) -> usize {
        self.examples.iter().map(Example::num_positions).sum()
    }

    /// Splits the last examples off to be held out: about `fraction` of all, at least one.
    ///
    /// # Errors
    /// If there is but one example.
    pub fn split_off(&mut self, fraction: f64) -> Result<Self, DataError> {
        let len = self.examples.len();
        if len < 2 {
            return Err(DataError::TooFewToSplit { name: self.name.clone() });
        }
        let count = ((len as f64 * fraction).round() as usize).clamp(1, len - 1);
        let examples = self.examples.split_off(len - count);
        Ok(Self {
            examples,
            num_too_short: 0,
            num_cut: 0,
            name: self.name.clone(),
            sha256: self.sha256.clone(),
            selection: self.selection.clone(),
        })
    }
}

/// Errors of reading data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or a row that cannot be read, or a row that cannot be used.
    #[error(transparent)]
    Rows(#[from] RowError),
    /// One example cannot be trained on and held out.
    #[error("{name} has one example; add more, or give others to measure on with --eval-data")]
    TooFewToSplit {
        /// The file's name.
        name: String,
    },
    /// No example has a position.
    #[error(
        "{path} has nothing to train on: {}; write rows with `prompt` and `completion`",
        match num_too_short {
            0 => "it has no rows".to_owned(),
            count => format!("{count} rows, all with completions of fewer than two tokens"),
        }
    )]
    Empty {
        /// The file.
        path: PathBuf,
        /// Rows that were read.
        num_too_short: usize,
    },
}

/// How rows of another form become prompts and completions.
pub trait RowTexts: std::fmt::Debug {
    /// The prompt and the completion of a row.
    ///
    /// # Errors
    /// What is wrong with the row, and what to do.
    fn prompt_and_completion(&self, row: &Map<String, Value>) -> Result<[String; 2], String>;

    /// Says which form it is, for a card.
    fn description(&self) -> String;
}

/// Which rows of a file are taken: `count` of them, drawn by `seed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// How many.
    pub count: usize,
    /// What the choice depends on.
    pub seed: u64,
}

/// Whose answers a file of `forestream distill` may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer<'a> {
    /// The base's, or those of any adapter for it: a task is learnt from texts.
    Any,
    /// Those of the model that the streams are for: the base, or what the changes of this
    /// [`forestream_model::streams::Adapter::task_digest`] make of it.
    Target(Option<&'a str>),
}

/// Reads data for one model.
#[derive(Clone, Copy, Debug)]
pub struct DataReader<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The model's chat template; without it, texts are joined as they are.
    pub template: Option<&'a ChatTemplate>,
    /// [`forestream_model::Checkpoint::fingerprint`] of the model.
    pub fingerprint: &'a str,
    /// Who may have written the answers.
    pub writer: Writer<'a>,
    /// Tokens of the model's vocabulary.
    pub vocab_size: usize,
    /// The longest text; longer ones are cut.
    pub max_len: usize,
    /// How rows are read, if not by the names of their fields.
    pub rows: Option<&'a dyn RowTexts>,
}

impl DataReader<'_> {
    /// Reads a file, all of it or the rows of a draw.
    ///
    /// # Errors
    /// A file that cannot be read, a row that cannot be used, or no example at all.
    pub fn read(&self, path: &Path, draw: Option<Draw>) -> Result<Dataset, DataError> {
        let file = RowFile::open(path)?;
        let mut dataset = Dataset {
            name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            sha256: file.sha256(),
            selection: self.selection(draw),
            examples: Vec::new(),
            num_too_short: 0,
            num_cut: 0,
        };
        for row in drawn(file.rows()?.collect(), draw) {
            let row = row?;
            let row_error = |problem| file.row_error(row.place, problem);
            for example in self.examples(&row.fields).map_err(row_error)? {
                self.add(example, &mut dataset).map_err(row_error)?;
            }
        }
        if dataset.examples.is_empty() {
            return Err(DataError::Empty { path: path.to_owned(), num_too_short: dataset.num_too_short });
        }
        Ok(dataset)
    }

    fn selection(&self, draw: Option<Draw>) -> Option<String> {
        let draw = draw.map(|Draw { count, seed }| format!("{count} rows drawn with seed {seed}"));
        let parts: Vec<String> = self.rows.map(RowTexts::description).into_iter().chain(draw).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    fn add(&self, mut example: Example, dataset: &mut Dataset) -> Result<(), String> {
        if example.prompt.is_empty() {
            return Err("the prompt has no tokens; give the model something to read".to_owned());
        }
        if let Some(id) = example.text().into_iter().find(|&id| id as usize >= self.vocab_size) {
            return Err(format!(
                "token {id} is not in the model's vocabulary of {}; the row belongs to another model",
                self.vocab_size
            ));
        }
        if example.prompt.len() + 2 > self.max_len {
            return Err(format!(
                "the prompt has {} tokens, and a text may have {}; remove the row, or raise --ctx-size if the model was trained for \
                 more",
                example.prompt.len(),
                self.max_len
            ));
        }
        let room = self.max_len - example.prompt.len();
        if example.completion.len() > room {
            example.completion.truncate(room);
            dataset.num_cut += 1;
        }
        if example.num_positions() == 0 {
            dataset.num_too_short += 1;
        } else {
            dataset.examples.push(example);
        }
        Ok(())
    }

    /// The examples of a row: none for a header, one for each answer of a conversation.
    fn examples(&self, row: &Map<String, Value>) -> Result<Vec<Example>, String> {
        if row.contains_key(DISTILL_MARK) {
            return self.check_header(row).map(|()| Vec::new());
        }
        if let Some(rows) = self.rows {
            let [prompt, completion] = rows.prompt_and_completion(row)?;
            return Ok(vec![self.turn(&[Message::new("user", &prompt), Message::new("assistant", &completion)])?]);
        }
        if row.contains_key("prompt_token_ids") {
            let ids = |field| token_ids(row, field, "run `forestream distill` again");
            return Ok(vec![Example { prompt: ids("prompt_token_ids")?, completion: ids("completion_token_ids")? }]);
        }
        if row.contains_key("input_ids") {
            return masked(row);
        }
        if row.contains_key("prompt") {
            let messages =
                [Message::new("user", text(row, "prompt")?), Message::new("assistant", text(row, "completion")?)];
            return Ok(vec![self.turn(&messages)?]);
        }
        let messages = messages(row)?;
        let answers = (0..messages.len()).filter(|&index| index > 0 && messages[index].role == "assistant");
        let examples = answers.map(|index| self.turn(&messages[..=index])).collect::<Result<Vec<_>, _>>()?;
        if examples.is_empty() {
            return Err("no message of the assistant follows another message; add the answer to be learnt".to_owned());
        }
        Ok(examples)
    }

    fn check_header(&self, header: &Map<String, Value>) -> Result<(), String> {
        let text = |name| header.get(name).and_then(Value::as_str).unwrap_or_default();
        let (model, fingerprint) = (text("model"), text("fingerprint"));
        if fingerprint != self.fingerprint {
            return Err(format!(
                "these answers were written by `{model}` (fingerprint {fingerprint:.12}), but the model's fingerprint is \
                 {:.12}; run `forestream distill` with this model, or train with that one",
                self.fingerprint
            ));
        }
        let written_with = header.get("task_digest").and_then(Value::as_str);
        if let Writer::Target(adapter) = self.writer
            && adapter != written_with
        {
            let name = |adapter: Option<&str>| {
                adapter.map_or("no adapter that changes it".to_owned(), |digest| format!("the adapter {digest:.12}"))
            };
            return Err(format!(
                "these answers were written by `{model}` with {}, but the streams are for it with {}; name the same \
                 adapter with --adapter for `forestream distill` and `train`",
                name(written_with),
                name(adapter)
            ));
        }
        Ok(())
    }

    /// The last message as completion of those before it.
    fn turn(&self, messages: &[Message]) -> Result<Example, String> {
        let (answer, before) = messages.split_last().expect("a turn has messages");
        let content = answer.content.as_str().ok_or("the assistant's content is not text; write it as a string")?;
        let Some(template) = self.template else {
            let prompt: String = before.iter().filter_map(|message| message.content.as_str()).collect();
            return Ok(Example {
                prompt: self.encode(&prompt, AddSpecial::AsConfigured, ParseSpecial::No)?,
                completion: self.ended(self.encode(content, AddSpecial::Never, ParseSpecial::No)?)?,
            });
        };
        let render = |inputs: &ChatInputs<'_>| template.render(inputs).map_err(|error| describe(&error));
        let prompt = render(&ChatInputs::new(before))?;
        let whole = render(&ChatInputs { add_generation_prompt: false, ..ChatInputs::new(messages) })?;
        // The template may put more around an answer than its text; what it writes up to the end of turn is learnt.
        let completion = match whole.strip_prefix(prompt.as_str()) {
            Some(rest) => self.encode(rest, AddSpecial::Never, ParseSpecial::Yes)?,
            None => self.encode(content, AddSpecial::Never, ParseSpecial::No)?,
        };
        let prompt = self.encode(&prompt, AddSpecial::Never, ParseSpecial::Yes)?;
        Ok(Example { prompt, completion: self.ended(completion)? })
    }

    /// The tokens up to the first that ends a turn, which is added where there is none. What a template writes after it is
    /// white space; more belongs to an answer that would be cut.
    fn ended(&self, mut tokens: Vec<TokenId>) -> Result<Vec<TokenId>, String> {
        let ends = self.tokenizer.end_of_generation();
        let Some(index) = tokens.iter().position(|id| ends.contains(id)) else {
            tokens.extend(self.tokenizer.eos());
            return Ok(tokens);
        };
        let text =
            |tokens: &[TokenId], specials| self.tokenizer.decode(tokens, specials).map_err(|error| describe(&error));
        let after = text(&tokens[index + 1..], SpecialTokens::Skip)?;
        if !after.trim().is_empty() {
            let end = text(&tokens[index..=index], SpecialTokens::Keep)?;
            return Err(format!("the answer goes on after `{end}`, which ends a turn; remove that from its text"));
        }
        tokens.truncate(index + 1);
        Ok(tokens)
    }

    fn encode(&self, text: &str, add: AddSpecial, parse: ParseSpecial) -> Result<Vec<TokenId>, String> {
        self.tokenizer.encode(text, add, parse).map_err(|error| describe(&error))
    }
}

/// All rows, or those of a draw: the first row if it is a header, and as many others as it takes. A row that cannot be read is an
/// error, drawn or not: behind it may be rows that are missing.
fn drawn(mut rows: Vec<Result<Row, RowError>>, draw: Option<Draw>) -> Vec<Result<Row, RowError>> {
    let Some(Draw { count, seed }) = draw else { return rows };
    let is_header = |row: &Result<Row, RowError>| row.as_ref().is_ok_and(|row| row.fields.contains_key(DISTILL_MARK));
    let first = usize::from(rows.first().is_some_and(is_header));
    let mut is_taken = vec![false; rows.len()];
    is_taken[..first].fill(true);
    for index in shuffled(rows.len() - first, seed, 0).into_iter().take(count) {
        is_taken[first + index] = true;
    }
    let mut is_taken = is_taken.into_iter(); // errors come in the order of the file
    rows.retain(|row| is_taken.next() == Some(true) || row.is_err());
    rows
}

fn describe(error: &TextError) -> String {
    format!("the text cannot be tokenized: {error}; correct the row")
}

fn text<'a>(row: &'a Map<String, Value>, field: &str) -> Result<&'a str, String> {
    row.get(field).and_then(Value::as_str).ok_or_else(|| format!("the field `{field}` is missing or not text; add it"))
}

fn token_ids(row: &Map<String, Value>, field: &str, remedy: &str) -> Result<Vec<TokenId>, String> {
    let id = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
    list(row, field, id).ok_or_else(|| format!("the field `{field}` is missing or not a list of token ids; {remedy}"))
}

fn list<T>(row: &Map<String, Value>, field: &str, item: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    row.get(field)?.as_array()?.iter().map(item).collect()
}

/// `input_ids` with `loss_mask`, which marks answers: each of them with all tokens before it, as in a conversation.
fn masked(row: &Map<String, Value>) -> Result<Vec<Example>, String> {
    let ids = token_ids(row, "input_ids", "correct the row")?;
    let is_marked = |value: &Value| value.as_bool().or_else(|| Some(value.as_u64().filter(|&mark| mark < 2)? == 1));
    let mask = list(row, "loss_mask", is_marked).ok_or(
        "the field `loss_mask` is missing or not a list of 0 and 1; give each of `input_ids` a 1 if it is to be \
         learnt, else a 0",
    )?;
    if ids.len() != mask.len() {
        let (ids, mask) = (ids.len(), mask.len());
        return Err(format!("`input_ids` has {ids} tokens and `loss_mask` has {mask}; give each token its mark"));
    }
    let (mut examples, mut end) = (Vec::new(), 0);
    for run in mask.chunk_by(|before, after| before == after) {
        let start = end;
        end += run.len();
        if run[0] {
            examples.push(Example { prompt: ids[..start].to_vec(), completion: ids[start..end].to_vec() });
        }
    }
    if examples.is_empty() {
        return Err("`loss_mask` has no 1; mark the tokens of the answer to be learnt".to_owned());
    }
    Ok(examples)
}

/// `messages` with `role` and `content`, or `conversations` with `from` and `value`.
fn messages(row: &Map<String, Value>) -> Result<Vec<Message>, String> {
    const FIELDS: [&str; 2] = ["messages", "conversations"];
    let rows = FIELDS.iter().find_map(|field| row.get(*field)?.as_array());
    let rows = rows.ok_or_else(|| {
        let given = |field: &&'static str| Some((*field, row.get(*field).filter(|value| !value.is_null())?));
        if let Some((field, value)) = FIELDS.iter().find_map(given) {
            return format!(
                "`{field}` is {}, not a list; write it as a list of objects with `role` and `content`, in JSON or Parquet",
                kind_of(value)
            );
        }
        let fields: Vec<&str> = row.keys().map(String::as_str).collect();
        format!(
            "the row has none of `prompt` with `completion`, `messages`, `conversations`, `prompt_token_ids`, \
             `input_ids` with `loss_mask`, but {}; rename its fields, or say how they are read: with --task for a known \
             task, or with --template 'Text with {{{}}}' --completion-field FIELD",
            fields.join(", "),
            fields.first().unwrap_or(&"FIELD")
        )
    })?;
    rows.iter()
        .enumerate()
        .map(|(index, message)| read_message(message).map_err(|problem| format!("message {}: {problem}", index + 1)))
        .collect()
}

/// What a value is, in words.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn read_message(message: &Value) -> Result<Message, String> {
    let field = |name: &str| message.get(name).and_then(Value::as_str);
    let role = field("role").or_else(|| field("from")).ok_or("it has no `role` (or `from`); add it")?;
    let content =
        field("content").or_else(|| field("value")).ok_or("it has no text in `content` (or `value`); add it")?;
    let role = match role {
        "human" => "user",
        "gpt" | "bot" | "model" => "assistant",
        role => role,
    };
    Ok(Message::new(role, content))
}
