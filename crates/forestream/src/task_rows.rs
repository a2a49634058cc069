//! Rows of a task as prompts with completions: the prompts that `compare` asks, and what the model should answer.

use forestream_train::RowTexts;
use serde_json::{Map, Value};

use crate::dataset::{DatasetError, Piece, Task, fill, pieces, text_of};

/// How rows of a task are read for training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRows {
    template: String,
    pieces: Vec<Piece>,
    completion_field: String,
}

impl TaskRows {
    /// Rows of a built-in task; `completion_field` names another field for the answer. `None` where no field is known.
    ///
    /// # Panics
    /// If a built-in template is malformed.
    pub fn of_task(task: &Task, completion_field: Option<&str>) -> Option<Self> {
        let completion_field = completion_field.or(task.completion)?;
        Some(Self::new(task.template, completion_field).expect("built-in templates are valid"))
    }

    /// Rows whose prompts follow a template.
    ///
    /// # Errors
    /// A template with a brace without its partner.
    pub fn new(template: &str, completion_field: &str) -> Result<Self, DatasetError> {
        let pieces = pieces(template)?;
        Ok(Self { template: template.to_owned(), pieces, completion_field: completion_field.to_owned() })
    }
}

impl RowTexts for TaskRows {
    fn prompt_and_completion(&self, row: &Map<String, Value>) -> Result<[String; 2], String> {
        let missing = |field: &str| {
            let present: Vec<&str> = row.keys().map(String::as_str).collect();
            format!(
                "the field `{field}` is missing, or neither text nor a number (an integer of more than 64 bits is written in quotation marks); the row has {}",
                present.join(", ")
            )
        };
        let prompt = fill(&self.pieces, row).map_err(missing)?;
        let completion = text_of(row, &self.completion_field).ok_or_else(|| missing(&self.completion_field))?;
        Ok([prompt, completion.into_owned()])
    }

    fn description(&self) -> String {
        format!("prompt {:?}, completion {{{}}}", self.template, self.completion_field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::task;

    fn read(rows: &TaskRows, row: &str) -> Result<[String; 2], String> {
        rows.prompt_and_completion(&serde_json::from_str(row).unwrap())
    }

    #[test]
    fn rows_of_tasks_have_prompts_and_completions() {
        let cases = [
            ("e2e", r#"{"meaning_representation": "name[A]", "reference": "A."}"#, "restaurant:\nname[A]", "A."),
            ("sql", r#"{"question": "Q?", "context": "C", "answer": "S"}"#, "C\n\nQuestion: Q?", "S"),
            ("dialogsum", r#"{"dialogue": "A: hi", "summary": "s"}"#, "A: hi", "s"),
        ];
        for (name, row, ending, expected) in cases {
            let rows = TaskRows::of_task(task(name).unwrap(), None).unwrap();
            let [prompt, completion] = read(&rows, row).unwrap();
            assert!(prompt.ends_with(ending) && completion == expected, "{name}: {prompt:?} {completion:?}");
        }
        let numbers = TaskRows::new("{id}. {x}", "sum").unwrap();
        assert_eq!(read(&numbers, r#"{"id": 7, "x": [0.5], "sum": -12}"#).unwrap(), ["7. 0.5", "-12"]);
        assert_eq!(TaskRows::of_task(task("prompts").unwrap(), None), None);
        let rows = TaskRows::of_task(task("prompts").unwrap(), Some("answer")).unwrap();
        assert_eq!(read(&rows, r#"{"prompt": "p", "answer": "a"}"#).unwrap(), ["p", "a"]);
    }

    #[test]
    fn what_a_row_has_not_is_named() {
        let rows = TaskRows::new("{a}: {b}", "c").unwrap();
        for (row, field) in [(r#"{"a": "1"}"#, "`b`"), (r#"{"a": "1", "b": "2"}"#, "`c`")] {
            let problem = read(&rows, row).unwrap_err();
            assert!(problem.contains(field) && problem.contains("the row has a"), "{problem}");
        }
        assert!(TaskRows::new("{a", "c").unwrap_err().to_string().contains("brace"));
    }
}
