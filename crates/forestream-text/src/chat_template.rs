//! Chat messages to the text that a model was trained on, through the model's own Jinja template.
//!
//! Behaves like Hugging Face's `apply_chat_template`: block trimming, loop controls, Python methods, `tojson` in Python's
//! spelling, `raise_exception`, `strftime_now`; `{% generation %}` marks are passed over.
//! What a template may cost is limited.

mod generation_marks;
mod limits;
mod python_json;
mod python_time;

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Template, Value};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::{TextError, without_byte_order_mark};

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

/// Templates by name, the usual one as `default`, and where they were found.
#[derive(Debug, Clone)]
pub(crate) struct TemplateSources {
    pub(crate) origin: String,
    pub(crate) by_name: Vec<(String, String)>,
}

impl TemplateSources {
    /// A source with a single template.
    pub(crate) fn one(origin: impl Into<String>, source: impl Into<String>) -> Self {
        Self { origin: origin.into(), by_name: vec![(DEFAULT.to_owned(), source.into())] }
    }
}

/// The template for conversations that no other is meant for.
const DEFAULT: &str = "default";

/// The template for conversations with tools, where a model has one.
const TOOL_USE: &str = "tool_use";

/// A chat template, or several of which each conversation gets the one that is meant for it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: BTreeSet<String>,
    origin: String,
    special_tokens: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// Turns between `<|im_start|>` and `<|im_end|>`, for vocabularies that have these but no template.
    pub const CHAT_ML: &'static str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + \
                                       message.content + '<|im_end|>\n' }}{% endfor %}\
                                       {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    /// Compiles the usual template, with the special tokens that it may write; others are compiled once they are chosen.
    pub(crate) fn new(
        templates: TemplateSources,
        special_tokens: Vec<(&'static str, String)>,
    ) -> Result<Self, TextError> {
        let TemplateSources { origin, by_name } = templates;
        let source = |text: &str| generation_marks::neutralize(without_byte_order_mark(text));
        let sources: BTreeMap<String, String> = by_name.into_iter().map(|(name, text)| (name, source(&text))).collect();
        let names = sources.keys().cloned().collect();
        let mut environment = environment();
        environment.set_loader(move |name| Ok(sources.get(name).cloned()));
        let template = Self { environment, names, origin, special_tokens };
        if template.names.contains(DEFAULT) {
            template.compiled(DEFAULT)?;
        }
        Ok(template)
    }

    /// The text of a conversation; encode it with [`crate::ParseSpecial::Yes`] and [`crate::AddSpecial::Never`].
    ///
    /// # Errors
    /// The template refuses the conversation (its own message is in the error) or fails; there is none for it, or it is not
    /// valid Jinja; a further variable has the name of one that is set here.
    pub fn render(&self, inputs: &ChatInputs<'_>) -> Result<String, TextError> {
        let (name, context) = (self.name(inputs)?, self.context(inputs)?);
        self.compiled(name)?.render(context).map_err(|source| {
            let (name, origin) = (name.to_owned(), self.origin.clone());
            match source.kind() {
                ErrorKind::OutOfFuel => TextError::EndlessChatTemplate { name, origin, source },
                _ => TextError::ChatTemplateFailed { name, origin, source },
            }
        })
    }

    fn compiled(&self, name: &str) -> Result<Template<'_, '_>, TextError> {
        self.environment.get_template(name).map_err(|source| TextError::BrokenChatTemplate {
            name: name.to_owned(),
            origin: self.origin.clone(),
            source,
        })
    }

    /// The name of the template for a conversation.
    fn name(&self, inputs: &ChatInputs<'_>) -> Result<&'static str, TextError> {
        let meant = if inputs.tools.is_some() { &[TOOL_USE, DEFAULT][..] } else { &[DEFAULT] };
        meant.iter().copied().find(|name| self.names.contains(*name)).ok_or_else(|| TextError::NoDefaultChatTemplate {
            origin: self.origin.clone(),
            names: self.names.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }

    fn context(&self, inputs: &ChatInputs<'_>) -> Result<Value, TextError> {
        let json = |value: Option<&serde_json::Value>| Value::from(Serde(value));
        let now = inputs.now;
        let mut context = BTreeMap::from([
            ("messages", Value::from(Serde(inputs.messages))),
            ("add_generation_prompt", Value::from(inputs.add_generation_prompt)),
            ("strftime_now", Value::from_function(move |format: &str| python_time::format(format, now))),
        ]);
        context.extend(self.special_tokens.iter().map(|(name, token)| (*name, Value::from(token.as_str()))));
        let lists = [("tools", inputs.tools), ("documents", inputs.documents)];
        context.extend(lists.into_iter().filter(|(_, list)| list.is_some()).map(|(name, list)| (name, json(list))));
        for (name, value) in inputs.extra.into_iter().flatten() {
            // A conversation that is replaced here would never be seen.
            if name == RAISE_EXCEPTION || context.contains_key(name.as_str()) {
                return Err(TextError::ReservedVariable { name: name.clone() });
            }
            context.insert(name.as_str(), Value::from(Serde(value)));
        }
        for (name, _) in lists {
            context.entry(name).or_insert_with(|| json(None)); // templates ask whether there are any
        }
        Ok(Value::from_pairs(context))
    }
}

/// With this function a template refuses a conversation.
const RAISE_EXCEPTION: &str = "raise_exception";

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are distinct"));
    environment.set_fuel(Some(limits::FUEL));
    environment.set_unknown_method_callback(limits::call_method);
    environment.add_filter("tojson", python_json::tojson);
    // In Python `none` cannot be iterated over, and whatever has a length and can be indexed is a sequence.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
    environment.add_function(RAISE_EXCEPTION, |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment
}
