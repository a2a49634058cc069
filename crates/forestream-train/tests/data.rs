//! Rows of every form become examples, and rows that cannot be used are named.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use forestream_text::{AddSpecial, ChatTemplate, ParseSpecial, SpecialTokens, Tokenizer};
use forestream_train::{DataError, DataReader, Dataset, Draw, RowError, RowTexts, Writer};
use serde_json::{Map, Value};

struct Fixture {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        let tokenizer = Tokenizer::from_directory(&model).unwrap();
        let template = tokenizer.chat_template().unwrap();
        Self { tokenizer, template, directory: tempfile::tempdir().unwrap() }
    }

    fn reader(&self) -> DataReader<'_> {
        DataReader {
            tokenizer: &self.tokenizer,
            template: Some(&self.template),
            fingerprint: "0123456789abcdef",
            writer: Writer::Target(None),
            vocab_size: 320,
            max_len: 200,
            rows: None,
        }
    }

    fn file(&self, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join("rows.jsonl");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn read(&self, text: &str) -> Result<Dataset, DataError> {
        self.reader().read(&self.file(text), None)
    }

    fn text(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, SpecialTokens::Keep).unwrap()
    }
}

const ASKED: &str = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";

#[test]
fn every_form_of_a_row_gives_the_same_example() {
    let fixture = Fixture::new();
    let rows = [
        r#"{"prompt": "Hi", "completion": "Hello there"}"#,
        r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello there"}], "id": 3}"#,
    ];
    for row in rows {
        let dataset = fixture.read(row).unwrap();
        let [example] = dataset.examples.as_slice() else { panic!("{row}") };
        assert_eq!(fixture.text(&example.prompt), ASKED, "{row}");
        assert_eq!(fixture.text(&example.completion), "Hello there<|im_end|>", "{row}");
        assert_eq!(dataset.num_positions(), example.completion.len() - 1);
    }
}

#[test]
fn tables_of_other_programs_give_the_same_examples() {
    let fixture = Fixture::new();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/data");
    let read = |name: &str| fixture.reader().read(&directory.join(name), None).unwrap();
    let expected = read("chat.jsonl").examples;
    assert_eq!(expected.len(), 5);
    for name in ["chat-snappy.parquet", "chat-zstd.parquet"] {
        assert_eq!(read(name).examples, expected, "{name}");
    }
    let draw = Some(Draw { count: 2, seed: 1 });
    let [lines, table] = ["chat.jsonl", "chat-zstd.parquet"]
        .map(|name| fixture.reader().read(&directory.join(name), draw).unwrap().examples);
    assert_eq!(lines, table);
}

#[test]
fn token_ids_are_taken_as_they_are_and_the_header_is_checked() {
    let fixture = Fixture::new();
    let row = r#"{"index": 0, "prompt": "x", "completion": "y", "prompt_token_ids": [5, 6], "completion_token_ids": [7, 8, 2]}"#;
    let header = r#"{"forestream_distill": 1, "model": "tiny", "fingerprint": "0123456789abcdef"}"#;
    let dataset = fixture.read(&format!("{header}\n{row}\n\n")).unwrap();
    assert_eq!(dataset.examples[0].text(), [5, 6, 7, 8, 2]);
    assert_eq!(dataset.sha256.len(), 64);

    let other = header.replace("0123456789abcdef", "fedcba9876543210ff");
    let error = fixture.read(&format!("{other}\n{row}\n")).unwrap_err().to_string();
    for part in ["rows.jsonl, line 1", "`tiny`", "fedcba987654", "0123456789ab", "forestream distill"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn answers_of_a_fitted_model_belong_to_its_streams() {
    let fixture = Fixture::new();
    let header =
        r#"{"forestream_distill":1,"model":"tiny","fingerprint":"0123456789abcdef","task_digest":"aabbccddeeff00"}"#;
    let row = r#"{"prompt_token_ids": [5, 6], "completion_token_ids": [7, 8, 9]}"#;
    let [fitted, of_base] = [header.to_owned(), header.replace(r#","task_digest":"aabbccddeeff00""#, "")]
        .map(|header| format!("{header}\n{row}\n"));
    let read = |text: &str, writer| DataReader { writer, ..fixture.reader() }.read(&fixture.file(text), None);
    let target = Writer::Target(Some("aabbccddeeff00"));
    for (text, writer) in
        [(&fitted, target), (&of_base, Writer::Target(None)), (&fitted, Writer::Any), (&of_base, Writer::Any)]
    {
        assert_eq!(read(text, writer).unwrap().examples.len(), 1, "{text}");
    }
    for (text, writer) in [(&fitted, Writer::Target(None)), (&of_base, target), (&fitted, Writer::Target(Some("0f")))] {
        let error = read(text, writer).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("--adapter"), "{error}");
    }
    assert!(read(&fitted, Writer::Target(None)).unwrap_err().to_string().contains("the adapter aabbccddeeff,"));
}

#[test]
fn masked_token_ids_are_one_example_for_each_run_of_answers() {
    let fixture = Fixture::new();
    let row = r#"{"input_ids": [5, 6, 7, 8, 9, 2], "loss_mask": [0, 0, 1, 1, 1, 1]}"#;
    let examples = fixture.read(row).unwrap().examples;
    assert_eq!((examples.len(), &*examples[0].prompt, &*examples[0].completion), (1, &[5, 6][..], &[7, 8, 9, 2][..]));
    let row = r#"{"input_ids": [5, 6, 7, 8, 9, 2, 3], "loss_mask": [false, true, true, false, true, true, false]}"#;
    let examples = fixture.read(row).unwrap().examples;
    let parts: Vec<(&[u32], &[u32])> = examples.iter().map(|e| (&*e.prompt, &*e.completion)).collect();
    assert_eq!(parts, [(&[5][..], &[6, 7][..]), (&[5, 6, 7, 8][..], &[9, 2][..])], "as turns of a conversation");
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_row() {
    let fixture = Fixture::new();
    let row = r#"{"prompt": "Hi", "completion": "Hello there"}"#;
    assert_eq!(fixture.read(&format!("\u{feff}{row}\n")).unwrap().examples, fixture.read(row).unwrap().examples);
}

#[test]
fn an_answer_may_bring_the_token_that_ends_its_turn() {
    let fixture = Fixture::new();
    let row = r#"{"prompt": "Hi", "completion": "Hello there"}"#;
    let ended = row.replace("there", r"there<|im_end|>\n");
    assert_eq!(fixture.read(&ended).unwrap().examples, fixture.read(row).unwrap().examples);
}

#[test]
fn every_answer_of_a_conversation_is_an_example() {
    let fixture = Fixture::new();
    let row = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "So long"}]}"#;
    let examples = fixture.read(&row.replace('\n', " ")).unwrap().examples;
    assert_eq!(examples.len(), 2);
    let second = fixture.text(&examples[1].prompt);
    assert!(second.starts_with(ASKED) && second.contains("Yes?<|im_end|>") && second.contains("Bye"), "{second}");
}

#[test]
fn texts_are_joined_as_they_are_without_a_template() {
    let fixture = Fixture::new();
    let path = fixture.file(r#"{"prompt": "Hi", "completion": " there"}"#);
    let dataset = DataReader { template: None, ..fixture.reader() }.read(&path, None).unwrap();
    let encode = |text| fixture.tokenizer.encode(text, AddSpecial::AsConfigured, ParseSpecial::No).unwrap();
    assert_eq!(dataset.examples[0].prompt, encode("Hi"));
    assert_eq!(fixture.text(&dataset.examples[0].completion), " there<|im_end|>");
}

#[test]
fn long_and_short_answers_are_counted() {
    let fixture = Fixture::new();
    let long = "word ".repeat(300);
    let rows = format!(
        "{{\"prompt\": \"Hi\", \"completion\": \"{long}\"}}\n{{\"prompt_token_ids\": [5], \"completion_token_ids\": [2]}}"
    );
    let dataset = fixture.read(&rows).unwrap();
    assert_eq!((dataset.num_cut, dataset.num_too_short), (1, 1));
    assert_eq!(dataset.examples[0].text().len(), 200);
}

#[test]
fn the_last_rows_are_held_out() {
    let fixture = Fixture::new();
    let rows = (0..10).map(|i| format!("{{\"prompt\": \"{i}\", \"completion\": \"abc\"}}"));
    let rows = rows.collect::<Vec<_>>().join("\n");
    for (fraction, expected) in [(0.02, 1), (0.3, 3), (1.0, 9)] {
        let mut dataset = fixture.read(&rows).unwrap();
        let all = dataset.examples.clone();
        let held_out = dataset.split_off(fraction).unwrap();
        assert_eq!(held_out.examples.len(), expected);
        assert_eq!([dataset.examples, held_out.examples].concat(), all);
    }
    let error = fixture.read(rows.lines().next().unwrap()).unwrap().split_off(0.1).unwrap_err();
    assert!(error.to_string().contains("--eval-data"), "{error}");
}

#[test]
fn a_draw_takes_rows_from_everywhere_and_keeps_the_header() {
    let fixture = Fixture::new();
    let header = "{\"forestream_distill\": 1, \"model\": \"m\", \"fingerprint\": \"0123456789abcdef\"}\n";
    let rows = (0..50).map(|i| format!("{{\"prompt\": \"{i}\", \"completion\": \"abc\"}}\n"));
    let rows = header.to_owned() + &rows.collect::<String>();
    let drawn = |count, seed| fixture.reader().read(&fixture.file(&rows), Some(Draw { count, seed })).unwrap();
    let all = fixture.read(&rows).unwrap().examples;
    let places = |dataset: &Dataset| -> Vec<usize> {
        dataset.examples.iter().map(|example| all.iter().position(|other| other == example).unwrap()).collect()
    };
    let (first, second) = (drawn(12, 1), drawn(12, 2));
    assert_eq!(first, drawn(12, 1));
    assert_eq!(places(&first).len(), 12);
    assert!(places(&first).is_sorted() && places(&first)[11] > 25, "{:?}", places(&first));
    assert_ne!(places(&first), places(&second));
    assert_eq!(drawn(99, 1).examples, all);
    assert_eq!(first.selection.as_deref(), Some("12 rows drawn with seed 1"));
    let other = rows.replace("0123456789abcdef", "ffff");
    fixture.reader().read(&fixture.file(other), Some(Draw { count: 1, seed: 1 })).unwrap_err();
    let broken = rows + "no row\n";
    for seed in 0..4 {
        let error = fixture.reader().read(&fixture.file(&broken), Some(Draw { count: 1, seed })).unwrap_err();
        assert!(error.to_string().contains("not a JSON object"), "drawn or not: {error}");
    }
}

/// Questions and answers under names of their own.
#[derive(Debug)]
struct Quiz;

impl RowTexts for Quiz {
    fn prompt_and_completion(&self, row: &Map<String, Value>) -> Result<[String; 2], String> {
        let text = |field: &str| row.get(field).and_then(Value::as_str).ok_or("no quiz").map(str::to_owned);
        Ok([text("question")?, text("answer")?])
    }

    fn description(&self) -> String {
        "quiz".to_owned()
    }
}

#[test]
fn rows_of_another_form_are_read_by_whoever_knows_it() {
    let fixture = Fixture::new();
    let reader = DataReader { rows: Some(&Quiz), ..fixture.reader() };
    let row = r#"{"question": "Hi", "answer": "Hello there"}"#;
    let dataset = reader.read(&fixture.file(row), None).unwrap();
    let plain = fixture.read(r#"{"prompt": "Hi", "completion": "Hello there"}"#).unwrap();
    assert_eq!(dataset.examples, plain.examples);
    assert_eq!(dataset.selection.as_deref(), Some("quiz"));
    let error = reader.read(&fixture.file("{}"), None).unwrap_err().to_string();
    assert!(error.contains("line 1: no quiz"), "{error}");
}

#[test]
fn a_row_that_cannot_be_used_is_named_with_its_remedy() {
    let fixture = Fixture::new();
    let good = "{\"prompt\": \"Hi\", \"completion\": \"there\"}\n";
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"x\"}}", "word ".repeat(300));
    let cases = [
        ("not json", "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        (r#"{"prompt": "Hi""#, "not a JSON object"),
        (r#"{"prompt": "Hi"}"#, "`completion` is missing"),
        (r#"{"prompt": 3, "completion": "x"}"#, "`prompt` is missing or not text"),
        (r#"{"text": "Hi", "label": 1}"#, "but text, label; rename"),
        (r#"{"question": "Hi", "answer": "x"}"#, "--task"),
        (r#"{"question": "Hi", "answer": "x"}"#, "--template 'Text with {question}' --completion-field"),
        (r#"{"messages": "Hi"}"#, "`messages` is text, not a list"),
        (r#"{"conversations": {"from": "human"}}"#, "`conversations` is an object, not a list"),
        (r#"{"messages": null, "conversations": 3}"#, "`conversations` is a number, not a list"),
        (r#"{"input_ids": [5, 6, 7]}"#, "`loss_mask` is missing or not a list of 0 and 1"),
        (r#"{"input_ids": [5, 6, 7], "loss_mask": [0, 1, 2]}"#, "`loss_mask` is missing or not a list of 0 and 1"),
        (r#"{"input_ids": [5, -6, 7], "loss_mask": [0, 1, 1]}"#, "`input_ids` is missing or not a list of token ids"),
        (r#"{"input_ids": [5, 6, 7], "loss_mask": [0, 1]}"#, "`input_ids` has 3 tokens and `loss_mask` has 2"),
        (r#"{"input_ids": [5, 6, 7], "loss_mask": [0, 0, 0]}"#, "`loss_mask` has no 1"),
        (r#"{"input_ids": [5, 6, 7], "loss_mask": [1, 1, 1]}"#, "the prompt has no tokens"),
        (r#"{"input_ids": [5, 6, 320], "loss_mask": [0, 1, 1]}"#, "token 320 is not in the model's vocabulary"),
        (r#"{"messages": [{"role": "user", "content": "Hi"}]}"#, "add the answer"),
        (r#"{"messages": [{"content": "Hi"}]}"#, "message 1: it has no `role`"),
        (r#"{"messages": [{"role": "user"}]}"#, "message 1: it has no text in `content`"),
        (r#"{"prompt_token_ids": [1], "completion_token_ids": [-2]}"#, "not a list of token ids"),
        (
            r#"{"prompt_token_ids": [1], "completion_token_ids": [2, 320]}"#,
            "token 320 is not in the model's vocabulary",
        ),
        (r#"{"prompt_token_ids": [], "completion_token_ids": [2, 3]}"#, "the prompt has no tokens"),
        (
            r#"{"prompt": "Hi", "completion": "The token <|im_end|> ends a turn."}"#,
            "goes on after `<|im_end|>`, which ends a turn",
        ),
        (long.as_str(), "raise --ctx-size"),
    ];
    for (row, expected) in cases {
        let error = fixture.read(&format!("{good}\n{row}\n{good}")).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl, line 3") && error.contains(expected), "{row}: {error}");
    }
    let path = fixture.file([good.as_bytes(), b"\xff\xfe\n"].concat());
    let error = fixture.reader().read(&path, None).unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("UTF-8"), "{error}");
    let said = |text: &str| match fixture.read(text) {
        Err(error @ DataError::Empty { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(said("\n").contains("nothing to train on: it has no rows;"), "{}", said("\n"));
    let short = said(r#"{"prompt_token_ids": [5], "completion_token_ids": [6]}"#);
    assert!(short.contains("1 rows, all with completions of fewer than two tokens"), "{short}");
    assert!(matches!(
        fixture.reader().read(Path::new("/no/such.jsonl"), None),
        Err(DataError::Rows(RowError::Read { .. }))
    ));
}
