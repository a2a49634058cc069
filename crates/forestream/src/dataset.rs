//! Prompts from data files: rows, built-in tasks, and templates with `{field}` placeholders.
//!
//! A row that cannot be used is an error with file and line; nothing is dropped silently. Must not know models or
//! chat templates.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use forestream_train::{Place, Row, RowError, RowFile};
use serde_json::{Map, Number, Value};

/// A prompt made of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetPrompt {
    /// What to ask.
    pub text: String,
    /// The kind of prompt, where rows say it.
    pub category: Option<String>,
    /// Where its row stands.
    pub place: Place,
}

/// Errors of reading prompts.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or a row that cannot be read.
    #[error(transparent)]
    Rows(#[from] RowError),
    /// A row has not the field that the template names.
    #[error(
        "{path}, {place}: the field {field:?} of the template is missing, or neither text nor a number (an integer of more \
         than 64 bits is written in quotation marks); the row has {present}"
    )]
    Field {
        /// The file.
        path: PathBuf,
        /// Which row.
        place: Place,
        /// The field.
        field: String,
        /// The fields of the row.
        present: String,
    },
    /// The fields of the first row belong to no built-in task.
    #[error("{path}, {place}: no built-in task has the fields {present}; name one with --task or give a --template")]
    UnknownTask {
        /// The file.
        path: PathBuf,
        /// Where the first row stands.
        place: Place,
        /// The fields of the first row.
        present: String,
    },
    /// There are no rows.
    #[error("{path} has no rows")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A brace without its partner.
    #[error("the template {template:?} has a brace without its partner; placeholders are written {{field}}")]
    Template {
        /// The template.
        template: String,
    },
}

/// A built-in task: how rows of a known dataset become prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its name, as given to `--task`.
    pub name: &'static str,
    /// The template; `{turns}` of a list is its first element.
    pub template: &'static str,
    /// The field that holds the answer to be learnt.
    pub completion: Option<&'static str>,
    /// The field that holds the category.
    pub category: Option<&'static str>,
}

/// Every built-in task. Where none is named, the first one whose fields a row has is taken.
pub const TASKS: &[Task] = &[
    Task {
        name: "e2e",
        template: "Write one sentence that says all of this about a restaurant:\n{meaning_representation}",
        completion: Some("reference"),
        category: None,
    },
    Task {
        name: "sql",
        template: "Write one SQL query that answers the question. Answer with the query alone.\n\n\
                   {context}\n\nQuestion: {question}",
        completion: Some("answer"),
        category: None,
    },
    Task {
        name: "dialogsum",
        template: "Summarize this dialogue in one or two sentences.\n\n{dialogue}",
        completion: Some("summary"),
        category: None,
    },
    Task { name: "mt_bench", template: "{turns}", completion: None, category: Some("category") },
    Task { name: "prompts", template: "{prompt}", completion: None, category: Some("source") },
];

/// The task of that name.
pub fn task(name: &str) -> Option<&'static Task> {
    TASKS.iter().find(|task| task.name == name)
}

/// How rows become prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Template {
    /// As the fields of the first row suggest.
    Inferred,
    /// A built-in task.
    Task(&'static Task),
    /// Text with `{field}` placeholders; `{{` and `}}` are braces.
    Text(String),
}

/// Reads the prompts of a data file: at most `limit` of them, or all. Equal prompts are taken once.
///
/// # Errors
/// A file that cannot be read, or a row that cannot be used, with its place.
pub fn read_prompts(
    path: &Path,
    template: &Template,
    limit: Option<usize>,
) -> Result<Vec<DatasetPrompt>, DatasetError> {
    let file = RowFile::open(path)?;
    let mut recipe = None;
    let (mut prompts, mut seen) = (Vec::new(), HashSet::new());
    for row in file.rows()? {
        if limit == Some(prompts.len()) {
            break;
        }
        let row = row?;
        let recipe = match &mut recipe {
            Some(recipe) => recipe,
            none => none.insert(Recipe::new(template, path, &row)?),
        };
        let prompt = recipe.prompt(path, row)?;
        if seen.insert(prompt.text.clone()) {
            prompts.push(prompt);
        }
    }
    if prompts.is_empty() { Err(DatasetError::Empty { path: path.to_owned() }) } else { Ok(prompts) }
}

/// The first task whose fields `row` fills, else the first whose fields it has: what is wrong with them is said later.
fn infer_task(path: &Path, row: &Row) -> Result<&'static Task, DatasetError> {
    let fields = &row.fields;
    let find = |has: &dyn Fn(&str) -> bool| TASKS.iter().find(|task| fields_of(task).iter().all(|field| has(field)));
    find(&|field| text_of(fields, field).is_some())
        .or_else(|| find(&|field| fields.contains_key(field)))
        .ok_or_else(|| DatasetError::UnknownTask { path: path.to_owned(), place: row.place, present: names(fields) })
}

/// The fields that the prompts of a task are made of.
fn fields_of(task: &Task) -> Vec<String> {
    let pieces = pieces(task.template).expect("built-in templates are valid");
    let field = |piece| if let Piece::Field(field) = piece { Some(field) } else { None };
    pieces.into_iter().filter_map(field).collect()
}

/// A template as rows are put into it.
struct Recipe {
    pieces: Vec<Piece>,
    /// The field that holds the category.
    category: Option<&'static str>,
}

impl Recipe {
    /// A task may be inferred from `row`, the first one.
    fn new(template: &Template, path: &Path, row: &Row) -> Result<Self, DatasetError> {
        let of_task = |task: &'static Task| (task.template, task.category);
        let (template, category) = match template {
            Template::Inferred => of_task(infer_task(path, row)?),
            Template::Task(task) => of_task(task),
            Template::Text(text) => (text.as_str(), Some("category")),
        };
        Ok(Self { pieces: pieces(template)?, category })
    }

    fn prompt(&self, path: &Path, Row { place, fields }: Row) -> Result<DatasetPrompt, DatasetError> {
        let text = fill(&self.pieces, &fields).map_err(|field| DatasetError::Field {
            path: path.to_owned(),
            place,
            field: field.to_owned(),
            present: names(&fields),
        })?;
        let category = self.category.and_then(|field| text_of(&fields, field)).map(Cow::into_owned);
        Ok(DatasetPrompt { text, category, place })
    }
}

fn names(fields: &Map<String, Value>) -> String {
    let names: Vec<String> = fields.keys().map(|name| format!("{name:?}")).collect();
    names.join(", ")
}

/// The text of a field: a text, or the value of a number, shortly written (`0.1` for `0.10`); of a list, its first element.
///
/// An integer of more than 64 bits, which a JSON value holds without its last digits, has none.
pub(crate) fn text_of<'a>(fields: &'a Map<String, Value>, field: &str) -> Option<Cow<'a, str>> {
    let value = match fields.get(field)? {
        Value::Array(elements) => elements.first()?,
        value => value,
    };
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) if keeps_its_digits(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}

/// Whether a number cannot stand for an integer that was too long for it.
fn keeps_its_digits(number: &Number) -> bool {
    const TOO_LARGE: f64 = (1_u64 << 63) as f64; // here integers of 64 bits end, the negative ones first
    !number.is_f64() || number.as_f64().is_some_and(|value| value.abs() < TOO_LARGE)
}

/// The text of a template for a row.
///
/// # Errors
/// The first field that the row has not, or not as text or number.
pub(crate) fn fill<'a>(pieces: &'a [Piece], fields: &Map<String, Value>) -> Result<String, &'a str> {
    pieces.iter().try_fold(String::new(), |text, piece| match piece {
        Piece::Text(literal) => Ok(text + literal),
        Piece::Field(field) => Ok(text + &text_of(fields, field).ok_or(field.as_str())?),
    })
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    Field(String),
}

/// The parts of a template.
///
/// # Errors
/// A brace without its partner.
pub(crate) fn pieces(template: &str) -> Result<Vec<Piece>, DatasetError> {
    let wrong = || DatasetError::Template { template: template.to_owned() };
    let (mut pieces, mut literal) = (Vec::new(), String::new());
    let mut rest = template;
    while let Some(index) = rest.find(['{', '}']) {
        literal.push_str(&rest[..index]);
        let (brace, after) = (&rest[index..=index], &rest[index + 1..]);
        if let Some(after) = after.strip_prefix(brace) {
            literal.push_str(brace);
            rest = after;
            continue;
        }
        let (field, after) =
            after.split_once('}').filter(|(field, _)| brace == "{" && !field.contains('{')).ok_or_else(wrong)?;
        pieces.push(Piece::Text(std::mem::take(&mut literal)));
        pieces.push(Piece::Field(field.trim().to_owned()));
        rest = after;
    }
    literal.push_str(rest);
    pieces.push(Piece::Text(literal));
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(content: &str, template: &Template, limit: Option<usize>) -> Result<Vec<DatasetPrompt>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.jsonl");
        fs::write(&path, content).unwrap();
        read_prompts(&path, template, limit).map_err(|error| error.to_string())
    }

    #[test]
    fn tasks_are_inferred_from_the_fields() {
        let cases = [
            (r#"{"meaning_representation": "name[A]", "reference": "A."}"#, "about a restaurant:\nname[A]"),
            (
                r#"{"question": "Q?", "context": "CREATE TABLE t (a)", "answer": "x"}"#,
                "CREATE TABLE t (a)\n\nQuestion: Q?",
            ),
            (r#"{"dialogue": "A: hi", "summary": "s", "topic": "t"}"#, "sentences.\n\nA: hi"),
            (r#"{"prompt": "Do it", "source": "gsm8k"}"#, "Do it"),
            (r#"{"question_id": 81, "category": "writing", "turns": ["First", "Second"]}"#, "First"),
        ];
        for (row, ending) in cases {
            let prompts = read(row, &Template::Inferred, None).unwrap();
            assert!(prompts[0].text.ends_with(ending), "{row} -> {prompts:?}");
        }
    }

    #[test]
    fn a_task_that_the_first_row_fills_goes_before_one_whose_fields_are_empty() {
        let prompts = read(r#"{"dialogue": null, "prompt": "Do it"}"#, &Template::Inferred, None).unwrap();
        assert_eq!(prompts[0].text, "Do it");
    }

    #[test]
    fn numbers_keep_their_digits_or_are_refused() {
        let template = Template::Text("{id}".to_owned());
        let text = |id: &str| {
            let prompts = read(&format!("{{\"id\": {id}}}"), &template, None)?;
            Ok::<String, String>(prompts[0].text.clone())
        };
        let kept = [
            ("7", "7"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("18446744073709551615", "18446744073709551615"),
            ("0.5", "0.5"),
            ("0.10", "0.1"),
            ("1e3", "1000.0"),
            ("[12, 13]", "12"),
            ("\"12345678901234567890123\"", "12345678901234567890123"),
        ];
        for (id, expected) in kept {
            assert_eq!(text(id).as_deref(), Ok(expected), "{id}");
        }
        for id in
            ["18446744073709551616", "-9223372036854775809", "12345678901234567890123", "[12345678901234567890123]"]
        {
            let error = text(id).unwrap_err();
            assert!(error.contains("line 1: the field \"id\"") && error.contains("in quotation marks"), "{error}");
        }
    }

    #[test]
    fn equal_prompts_count_once_and_the_limit_holds() {
        let content =
            "{\"prompt\": \"a\", \"source\": \"x\"}\n\n{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n{\"prompt\": \"c\"}\n";
        let texts = |limit| {
            let prompts = read(content, &Template::Inferred, limit).unwrap();
            prompts.into_iter().map(|prompt| prompt.text).collect::<Vec<_>>()
        };
        assert_eq!(texts(None), ["a", "b", "c"]);
        assert_eq!(texts(Some(2)), ["a", "b"]);
    }

    #[test]
    fn templates_take_fields_and_doubled_braces() {
        let template = Template::Text("{{json}} {a}: { b }".to_owned());
        let prompts = read(r#"{"a": "1", "b": "2", "category": "k"}"#, &template, None).unwrap();
        assert_eq!(
            prompts,
            [DatasetPrompt { text: "{json} 1: 2".to_owned(), category: Some("k".to_owned()), place: Place::Line(1) }]
        );
    }

    #[test]
    fn a_broken_row_is_named_with_its_line() {
        let good = r#"{"prompt": "a"}"#;
        let cases = [
            (format!("{good}\n{{\"prompt\": "), "line 2: not a JSON object"),
            (format!("{good}\n[1]"), "line 2: not a JSON object: it is a list"),
            (format!("{good}\n\n{{\"text\": \"b\"}}"), "line 3: the field \"prompt\""),
            (format!("\n{}", r#"{"number": 1}"#), "rows.jsonl, line 2: no built-in task has the fields \"number\""),
            (r#"{"prompt": null, "source": "x"}"#.to_owned(), "rows.jsonl, line 1: the field \"prompt\""),
            (r#"{"turns": []}"#.to_owned(), "rows.jsonl, line 1: the field \"turns\""),
            (String::new(), "has no rows"),
        ];
        for (content, expected) in cases {
            let error = read(&content, &Template::Inferred, None).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        for template in ["{a", "a}", "{a{b}}"] {
            let error = read(good, &Template::Text(template.to_owned()), None).unwrap_err();
            assert!(error.contains("brace"), "{template}: {error}");
        }
    }
}
