//! Rendered chats equal Hugging Face's, and a model's template is found wherever it may be written.

#![expect(clippy::unwrap_used, reason = "a broken fixture is a failed test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use forestream_text::{ChatInputs, GgufVocabulary, Message, TextError, Tokenizer};
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
        let rendered = tokenizer.chat_template_from(&chat.templates[&template]).unwrap().render(&ChatInputs {
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
    assert_eq!(error.to_string(), "chat template `default` failed");
    assert!(cause(&error).contains("syntax error") && cause(&error).contains("default:2"), "{}", cause(&error));
    let template = tokenizer(Some("{{ messages[0].nothing.at_all }}")).chat_template().unwrap();
    let error = template.render(&ChatInputs::new(&hello())).unwrap_err();
    assert!(cause(&error).contains("undefined value"), "{}", cause(&error));
}

#[test]
fn the_date_is_the_given_one() {
    let template = tokenizer(Some("{{ strftime_now('%d %b %Y') }}")).chat_template().unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(1_795_411_425);
    assert_eq!(template.render(&ChatInputs { now, ..ChatInputs::new(&hello()) }).unwrap(), "23 Nov 2026");
}
