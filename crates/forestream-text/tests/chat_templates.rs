//! Rendered chats equal Hugging Face's, and a model's template is found wherever it may be written.

#![expect(clippy::unwrap_used, reason = "a broken fixture is a failed test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use forestream_text::{ChatInputs, ChatTemplate, GgufVocabulary, Message, TextError, Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value, json};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/text");

#[derive(Deserialize)]
struct Chat {
    templates: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    inputs: Inputs,
    text: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Inputs {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    tools: Option<Value>,
    documents: Option<Value>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// `<s>` and `</s>` as special tokens.
fn tokenizer(chat_template: Option<&str>) -> Tokenizer {
    let file = std::fs::read(Path::new(DATA).join("llama/vocabulary.json")).unwrap();
    let vocabulary: GgufVocabulary = serde_json::from_slice(&file).unwrap();
    Tokenizer::from_gguf(GgufVocabulary { chat_template: chat_template.map(str::to_owned), ..vocabulary }).unwrap()
}

fn hello() -> [Message; 1] {
    [Message::new("user", "Hello")]
}

fn cause(error: &TextError) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

#[test]
fn texts_are_those_of_hugging_face() {
    let chat: Chat = serde_json::from_slice(&std::fs::read(Path::new(DATA).join("chat.json")).unwrap()).unwrap();
    let tokenizer = tokenizer(None);
    for Case { template, inputs, text, error } in chat.cases {
        let compiled = tokenizer.chat_template_from(&chat.templates[&template], "a test").unwrap();
        let rendered = compiled.render(&ChatInputs {
            add_generation_prompt: inputs.add_generation_prompt,
            tools: inputs.tools.as_ref(),
            documents: inputs.documents.as_ref(),
            extra: Some(&inputs.extra),
            ..ChatInputs::new(&inputs.messages)
        });
        match (rendered, text, error) {
            (Ok(rendered), Some(text), _) => assert_eq!(rendered, text, "{template}"),
            (Err(error), _, Some(message)) => assert!(cause(&error).contains(&message), "{error}"),
            (rendered, text, error) => panic!("{template}: {rendered:?}, expected {text:?} or {error:?}"),
        }
    }
}

#[test]
fn templates_are_found_in_a_directory() {
    let config = |template: Value| json!({ "bos_token": "<s>", "chat_template": template }).to_string();
    let named = json!([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]);
    let cases = [
        (config(json!("from the config")), None, false, "from the config"),
        (config(json!("from the config")), Some("from the file"), false, "from the file"),
        (config(named.clone()), None, false, "plain"),
        (config(named), None, true, "with tools"),
    ];
    for (config, file, with_tools, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(Path::new(DATA).join("llama/tokenizer.json"), directory.path().join("tokenizer.json")).unwrap();
        std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
        if let Some(file) = file {
            std::fs::write(directory.path().join("chat_template.jinja"), file).unwrap();
        }
        let template = Tokenizer::from_directory(directory.path()).unwrap().chat_template().unwrap();
        let (tools, messages) = (json!([]), hello());
        let inputs = ChatInputs { tools: with_tools.then_some(&tools), ..ChatInputs::new(&messages) };
        assert_eq!(template.render(&inputs).unwrap(), expected);
    }
}

/// The template of a directory with this `tokenizer_config.json`.
fn template_of_config(config: &str) -> Result<ChatTemplate, TextError> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(Path::new(DATA).join("llama/tokenizer.json"), directory.path().join("tokenizer.json")).unwrap();
    std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::from_directory(directory.path()).unwrap().chat_template()
}

#[test]
fn a_named_template_matters_where_it_is_chosen() {
    let named = |name: &str, template: &str| json!({ "name": name, "template": template });
    let template = |list: &[Value]| template_of_config(&json!({ "chat_template": list }).to_string()).unwrap();
    let (tools, messages) = (json!([]), hello());
    let plain = ChatInputs::new(&messages);
    let with_tools = ChatInputs { tools: Some(&tools), ..plain };

    let unused = template(&[named("default", "plain"), named("bad", "{% if")]);
    assert_eq!(unused.render(&plain).unwrap(), "plain");
    assert_eq!(unused.render(&with_tools).unwrap(), "plain");

    let broken = template(&[named("default", "plain"), named("tool_use", "a\n{% if %}")]);
    assert_eq!(broken.render(&plain).unwrap(), "plain");
    let error = broken.render(&with_tools).unwrap_err();
    assert!(matches!(&error, TextError::BrokenChatTemplate { name, .. } if name == "tool_use"), "{error}");
    assert!(cause(&error).contains("tool_use:2"), "{}", cause(&error));

    let without_default = template(&[named("tool_use", "with tools"), named("rag", "with documents")]);
    assert_eq!(without_default.render(&with_tools).unwrap(), "with tools");
    let error = without_default.render(&plain).unwrap_err().to_string();
    for part in ["tokenizer_config.json", "rag, tool_use", "`default`", "--chat-template"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let directory = tempfile::tempdir().unwrap();
    let marked = |file: &str, content: &str| {
        std::fs::write(directory.path().join(file), format!("\u{feff}{content}")).unwrap();
    };
    let render = || {
        let template = Tokenizer::from_directory(directory.path()).unwrap().chat_template().unwrap();
        template.render(&ChatInputs::new(&hello())).unwrap()
    };
    marked("tokenizer.json", &std::fs::read_to_string(Path::new(DATA).join("llama/tokenizer.json")).unwrap());
    marked("generation_config.json", r#"{"eos_token_id": 2}"#);
    marked("tokenizer_config.json", r#"{"bos_token": "<s>", "chat_template": "{{ bos_token }}of the config"}"#);
    assert_eq!(render(), "<s>of the config");
    marked("chat_template.jinja", "of the file");
    assert_eq!(render(), "of the file");
    let given = tokenizer(None).chat_template_from("\u{feff}given", "mine.jinja").unwrap();
    assert_eq!(given.render(&ChatInputs::new(&hello())).unwrap(), "given");
}

#[test]
fn templates_are_found_in_metadata_or_guessed_from_the_vocabulary() {
    let render = |tokenizer: Tokenizer| tokenizer.chat_template().unwrap().render(&ChatInputs::new(&hello())).unwrap();
    assert_eq!(render(tokenizer(Some("{{ bos_token }}{{ messages[0].content }}"))), "<s>Hello");
    let chat_ml = Tokenizer::from_directory(&Path::new(DATA).join("smollm")).unwrap();
    assert_eq!(render(chat_ml), "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
    let error = tokenizer(None).chat_template().unwrap_err();
    assert_eq!(error.to_string(), "the model has no chat template; give one, or send a plain prompt");
}

#[test]
fn broken_templates_say_where() {
    let error = tokenizer(Some("a\n{% if %}")).chat_template().unwrap_err();
    let origin = "the chat template `default` of the GGUF metadata `tokenizer.chat_template` is broken; mend it";
    assert!(error.to_string().starts_with(origin), "{error}");
    assert!(matches!(error, TextError::BrokenChatTemplate { .. }));
    assert!(cause(&error).contains("syntax error") && cause(&error).contains("default:2"), "{}", cause(&error));
    let template = tokenizer(Some("{{ messages[0].nothing.at_all }}")).chat_template().unwrap();
    let error = template.render(&ChatInputs::new(&hello())).unwrap_err();
    assert!(cause(&error).contains("undefined value"), "{}", cause(&error));
    assert!(matches!(error, TextError::ChatTemplateFailed { .. }));
    let error = tokenizer(None).chat_template_from("{% if %}", "mine.jinja").unwrap_err();
    assert!(error.to_string().starts_with("the chat template `default` of mine.jinja is broken"), "{error}");
}

#[test]
fn broken_templates_of_a_directory_name_their_file() {
    for (file, content) in
        [("tokenizer_config.json", r#"{"chat_template": "{% if %}"}"#), ("chat_template.jinja", "{% if %}")]
    {
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(Path::new(DATA).join("llama/tokenizer.json"), directory.path().join("tokenizer.json")).unwrap();
        let path = directory.path().join(file);
        std::fs::write(&path, content).unwrap();
        let message = Tokenizer::from_directory(directory.path()).unwrap().chat_template().unwrap_err().to_string();
        assert!(message.contains(&path.display().to_string()), "{message}");
    }
}

#[test]
fn the_date_is_the_given_one() {
    let template = tokenizer(Some("{{ strftime_now('%d %b %Y') }}")).chat_template().unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(1_795_411_425);
    assert_eq!(template.render(&ChatInputs { now, ..ChatInputs::new(&hello()) }).unwrap(), "23 Nov 2026");
}

/// What a template makes of `hello`.
fn rendered(template: &str) -> Result<String, TextError> {
    tokenizer(Some(template)).chat_template()?.render(&ChatInputs::new(&hello()))
}

#[test]
fn json_is_spelled_as_by_python() {
    // json.dumps(value, ensure_ascii=False, ...) in Python 3.11.
    let value = "{'b': [1, {}, []], 'a': {'d': 'é', 'c': none}}";
    let cases = [
        ("", r#"{"b": [1, {}, []], "a": {"d": "é", "c": null}}"#),
        ("separators=(',', ':')", r#"{"b":[1,{},[]],"a":{"d":"é","c":null}}"#),
        ("separators=none, sort_keys=true", r#"{"a": {"c": null, "d": "é"}, "b": [1, {}, []]}"#),
        ("sort_keys=false, ensure_ascii=true", r#"{"b": [1, {}, []], "a": {"d": "\u00e9", "c": null}}"#),
        (
            "indent=2, sort_keys=true",
            "{\n  \"a\": {\n    \"c\": null,\n    \"d\": \"é\"\n  },\n  \"b\": [\n    1,\n    {},\n    []\n  ]\n}",
        ),
        ("indent=0", "{\n\"b\": [\n1,\n{},\n[]\n],\n\"a\": {\n\"d\": \"é\",\n\"c\": null\n}\n}"),
        (
            "indent='-', separators=('; ', '=')",
            "{\n-\"b\"=[\n--1; \n--{}; \n--[]\n-]; \n-\"a\"={\n--\"d\"=\"é\"; \n--\"c\"=null\n-}\n}",
        ),
    ];
    for (options, expected) in cases {
        assert_eq!(rendered(&format!("{{{{ {value} | tojson({options}) }}}}")).unwrap(), expected, "{options}");
    }
}

#[test]
fn a_template_that_asks_for_too_much_is_an_error() {
    let cases = [
        ("{{ {'a': 1} | tojson(indent=99999999999) }}", "indent must not be longer than 64"),
        ("{{ {'a': 1} | tojson(indent='-' * 65) }}", "indent must not be longer than 64"),
        ("{{ [1, 2] | tojson(separators=(':' * 65, ':')) }}", "a separator must not be longer than 64"),
        ("{{ [1, 2] | tojson(separators=[':'] * 3) }}", "separators must be two texts"),
        ("{{ ([[0] * 99999] * 99999) | tojson(sort_keys=true) }}", "the template makes too much"),
        ("{{ 'a' | indent(99999999999) }}", "out of fuel"),
        ("{{ '{:>99999999999}'.format('a') }}", "out of fuel"),
        ("{{ ('{0}' * 100000).format('a' * 10000000) }}", "out of fuel"),
        ("{{ '{0}'.format([[0] * 99999] * 99999) }}", "the template makes too much"),
        ("{% set text = 'a' * 10000000 %}{{ text.replace('a', text) }}", "out of fuel"),
        ("{% set text = 'a' * 10000000 %}{{ text.join(range(99999)) }}", "out of fuel"),
        ("{% set list = range(99999) | list %}{% for i in list %}{{ list.count(-1) }}{% endfor %}", "out of fuel"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "out of fuel"),
    ];
    for (template, expected) in cases {
        let error = rendered(template).unwrap_err();
        assert!(cause(&error).contains(expected), "{template}: {}", cause(&error));
        let is_refused = expected.starts_with("out") || expected.starts_with("the template");
        assert_eq!(matches!(error, TextError::EndlessChatTemplate { .. }), is_refused, "{template}");
    }
    let nested =
        "{% set n = namespace(x=1) %}{% for i in range(300) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x | tojson }}";
    assert!(std::error::Error::source(&rendered(nested).unwrap_err()).is_some());
    assert_eq!(rendered("{{ 'b-b-b'.replace('b', 'a', 2) }} {{ ', '.join(['x', 1]) }}").unwrap(), "a-a-b x, 1");
    assert_eq!(
        rendered("{{ '{0} {n:>3}'.format('x', n=7) }} {{ 'a\nb' | indent(100) | length }}").unwrap(),
        "x   7 103"
    );
}

#[test]
fn a_long_conversation_is_not_too_much() {
    let chat: Chat = serde_json::from_slice(&std::fs::read(Path::new(DATA).join("chat.json")).unwrap()).unwrap();
    let case = |template: &str| {
        let fits = |case: &&Case| case.template == template && case.text.is_some() && case.inputs.tools.is_none();
        chat.cases.iter().find(fits)
    };
    let words = "Tides turn twice a day. ".repeat(100);
    for (name, source) in &chat.templates {
        let Some(case) = case(name) else { continue };
        let turns = ["user", "assistant"].map(|role| Message::new(role, &words));
        let messages: Vec<Message> = turns.into_iter().cycle().take(2001).collect();
        let inputs = ChatInputs { extra: Some(&case.inputs.extra), ..ChatInputs::new(&messages) };
        tokenizer(Some(source)).chat_template().unwrap().render(&inputs).unwrap();
    }
}

#[test]
fn variables_that_the_program_sets_are_not_replaced() {
    let source = "{{ messages[0].content }}{{ thinks }}{{ tools | length if tools is not none }}";
    let template = tokenizer(Some(source)).chat_template().unwrap();
    let render = |variables: Value| {
        let extra = variables.as_object().unwrap();
        template.render(&ChatInputs { extra: Some(extra), ..ChatInputs::new(&hello()) })
    };
    assert_eq!(render(json!({ "thinks": "!" })).unwrap(), "Hello!");
    assert_eq!(render(json!({ "tools": [1, 2] })).unwrap(), "Hello2", "nobody else gives any");
    for name in ["messages", "add_generation_prompt", "strftime_now", "raise_exception", "bos_token"] {
        let error = render(json!({ name: [] })).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
}
