//! Chat messages to the text that a model was trained on, through the model's own Jinja template.
//!
//! Behaves like Hugging Face's `apply_chat_template`: block trimming, loop controls, Python methods, `tojson` in Python's
//! spelling, `raise_exception`, `strftime_now`; `{% generation %}` marks are passed over.

mod generation_marks;
mod python_json;
mod python_time;

use std::collections::BTreeMap;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::TextError;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or what the template knows.
    pub role: String,
    /// What is said: text for most models, a list of parts for some.
    pub content: serde_json::Value,
    /// Further fields that the template may read, such as `tool_calls`.
    #[serde(flatten)]
    pub extra: Map<String, serde_json::Value>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.into(), extra: Map::new() }
    }
}

/// What a template is rendered with.
#[derive(Debug, Clone, Copy)]
pub struct ChatInputs<'a> {
    /// The conversation so far.
    pub messages: &'a [Message],
    /// Whether the text ends with the start of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Tools as JSON schemas, for templates that know them.
    pub tools: Option<&'a serde_json::Value>,
    /// Documents, for templates that know them.
    pub documents: Option<&'a serde_json::Value>,
    /// Further variables, such as `enable_thinking`.
    pub extra: Option<&'a Map<String, serde_json::Value>>,
    /// The time that `strftime_now` tells (UTC).
    pub now: SystemTime,
}

impl<'a> ChatInputs<'a> {
    /// The conversation, asking for the assistant's next turn.
    pub fn new(messages: &'a [Message]) -> Self {
        Self {
            messages,
            add_generation_prompt: true,
            tools: None,
            documents: None,
            extra: None,
            now: SystemTime::now(),
        }
    }
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// Turns between `<|im_start|>` and `<|im_end|>`, for vocabularies that have these but no template.
    pub const CHAT_ML: &'static str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + \
                                       message.content + '<|im_end|>\n' }}{% endfor %}\
                                       {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    /// Compiles templates by name, with the special tokens that they may write.
    pub(crate) fn new(
        templates: Vec<(String, String)>,
        special_tokens: Vec<(&'static str, String)>,
    ) -> Result<Self, TextError> {
        let mut environment = environment();
        for (name, source) in templates {
            let source = generation_marks::neutralize(&source);
            environment
                .add_template_owned(name.clone(), source)
                .map_err(|source| TextError::ChatTemplate { name, source })?;
        }
        Ok(Self { environment, special_tokens })
    }

    /// The text of a conversation; encode it with [`crate::ParseSpecial::Yes`] and [`crate::AddSpecial::Never`].
    ///
    /// # Errors
    /// The template refuses the conversation (its own message is in the error) or fails.
    pub fn render(&self, inputs: &ChatInputs<'_>) -> Result<String, TextError> {
        let name = self.name(inputs);
        let render = || self.environment.get_template(name)?.render(self.context(inputs));
        render().map_err(|source| TextError::ChatTemplate { name: name.to_owned(), source })
    }

    /// Models with several templates keep one for conversations with tools.
    fn name(&self, inputs: &ChatInputs<'_>) -> &'static str {
        let has = |name| self.environment.get_template(name).is_ok();
        if inputs.tools.is_some() && has("tool_use") { "tool_use" } else { "default" }
    }

    fn context(&self, inputs: &ChatInputs<'_>) -> Value {
        let json = |value: Option<&serde_json::Value>| Value::from(Serde(value));
        let now = inputs.now;
        let mut context = BTreeMap::from([
            ("messages", Value::from(Serde(inputs.messages))),
            ("add_generation_prompt", Value::from(inputs.add_generation_prompt)),
            ("tools", json(inputs.tools)),
            ("documents", json(inputs.documents)),
            ("strftime_now", Value::from_function(move |format: &str| python_time::format(format, now))),
        ]);
        context.extend(self.special_tokens.iter().map(|(name, token)| (*name, Value::from(token.as_str()))));
        let extra = inputs.extra.into_iter().flatten().map(|(name, value)| (name.as_str(), Value::from(Serde(value))));
        context.extend(extra);
        Value::from_pairs(context)
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are distinct"));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", python_json::tojson);
    // In Python `none` cannot be iterated over, and whatever has a length and can be indexed is a sequence.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment
}
