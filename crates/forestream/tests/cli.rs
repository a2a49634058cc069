//! The command line as users meet it: help, flags in all three layers, bad input, and what commands print.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/adapter.rs"]
mod adapter;
mod support;

use serde_json::Value;
use support::{Run, Sandbox, tiny_model};

const COMMANDS: &[&str] =
    &["generate", "chat", "bench", "compare", "distill", "train", "merge", "inspect", "pull", "completions"];

#[test]
fn help_lists_every_command_and_no_other() {
    let sandbox = Sandbox::new();
    let help = sandbox.run(&["--help"]);
    help.assert_success();
    let listed: Vec<&str> = help
        .stdout
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(listed, [COMMANDS, &["help"]].concat());
    for command in COMMANDS {
        let help = sandbox.run(&[command, "--help"]);
        assert!(help.assert_success().stdout.contains("Usage: forestream"), "{command}");
    }
    assert!(sandbox.run(&["--version"]).stdout.starts_with("forestream "));
}

#[test]
fn generate_has_the_flags_that_other_tools_have() {
    let help = Sandbox::new().run(&["generate", "--help"]).stdout;
    let flags = "--model --prompt --file --max-tokens --ctx-size --temp --top-k --top-p --min-p --typical --seed --stop \
                 --repeat-penalty --presence-penalty --frequency-penalty --repeat-last-n --logit-bias --threads \
                 --spec-type --spec-draft-n-max --spec-tree-max-tokens --chat-template --chat-template-file \
                 --chat-template-kwargs --quantize --offline --ignore-eos --min-tokens --verify-lossless --trace --output --raw --system";
    for flag in flags.split_whitespace() {
        assert!(help.contains(flag), "{flag} is not in the help");
    }
}

#[test]
fn aliases_of_other_tools_are_understood() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let aliases =
        "generate --temperature 0 --n-predict 3 --max-model-len 64 --num-speculative-tokens 2 --repetition-penalty 1.1";
    let mut arguments: Vec<&str> = aliases.split(' ').collect();
    arguments.extend(["--model-id", &model, "--input", "hi", "--output", "json"]);
    assert_eq!(sandbox.run(&arguments).json()["usage"]["completion_tokens"], 3);
}

#[test]
fn silly_values_are_usage_errors() {
    let sandbox = Sandbox::new();
    let cases: &[(&[&str], &str)] = &[
        (&["generate", "--spec-type", "magic"], "none, ngram"),
        (&["generate", "--output", "xml"], "text"),
        (&["generate", "--temp", "-1"], "0 or more"),
        (&["generate", "--temp", "warm"], "not a number"),
        (&["generate", "--top-p", "1.5"], "1 at most"),
        (&["generate", "-n", "-2"], "-2"),
        (&["generate", "--stop", ""], "must not be empty"),
        (&["generate", "-n", "4", "--min-tokens", "5"], "--min-tokens"),
        (&["generate", "-t", "100000"], "1024 at most"),
        (&["generate", "--logit-bias", "x"], "ID=BIAS"),
        (&["generate", "--chat-template-kwargs", "[1]"], "JSON object"),
        (&["generate", "--quantize", "q1"], "known are"),
        (&["generate", "--isa", "mmx"], "generic"),
        (&["generate", "--spec-tree-max-tokens", "0"], "1..=1024"),
        (&["generate", "-p", "a", "-f", "b"], "cannot be used with"),
        (&["bench", "-r", "0"], "1.."),
        (&["compare"], "--data"),
        (&["compare", "--data", "x", "--task", "poetry"], "dialogsum"),
        (&["distill", "--data", "x", "-o", "y", "--batch-size", "0"], "1..=512"),
        (&["generate", "--no-such-flag"], "unexpected argument"),
        (&["translate"], "unrecognized subcommand"),
    ];
    for (arguments, expected) in cases {
        sandbox.run(arguments).assert_error(2, &[expected]);
    }
}

#[test]
fn a_flag_beats_a_variable_and_a_variable_beats_the_file() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let config = format!("model = {model:?}\nmax-tokens = 2\ntemp = 0\n[generate]\noutput = \"json\"\n");
    let config = sandbox.file("config.toml", config);
    let arguments = ["generate", "-p", "hi", "--config", &config];
    let count = |variable: Option<&str>, flags: &[&str]| {
        let mut command = sandbox.command(&[&arguments, flags].concat());
        command.envs(variable.map(|value| ("FORESTREAM_MAX_TOKENS", value)));
        Run::of(command.output().unwrap()).json()["usage"]["completion_tokens"].clone()
    };
    assert_eq!(count(None, &[]), 2);
    assert_eq!(count(Some("3"), &[]), 3);
    assert_eq!(count(Some("3"), &["-n", "4"]), 4);
}

#[test]
fn the_users_own_configuration_file_counts() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    std::fs::create_dir_all(sandbox.path("config/forestream")).unwrap();
    sandbox.file("config/forestream/config.toml", "[generate]\nmax-tokens = 2\nignore-eos = true\noutput = \"json\"\n");
    let run = sandbox.run(&["generate", "-m", &model, "-p", "hi"]);
    assert_eq!(run.json()["usage"]["completion_tokens"], 2);
}

#[test]
fn switches_can_be_variables() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let prompt_tokens = |value: &str| {
        let mut command = sandbox.command(&["generate", "-m", &model, "-p", "hi", "-n", "1", "-o", "json"]);
        Run::of(command.env("FORESTREAM_RAW", value).output().unwrap())
    };
    let with_template = prompt_tokens("off").json()["usage"]["prompt_tokens"].as_u64().unwrap();
    let raw = prompt_tokens("enabled").json()["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(raw < with_template, "{raw} {with_template}");
    prompt_tokens("perhaps").assert_error(2, &["--raw", "true"]);
}

#[test]
fn a_broken_configuration_file_is_named() {
    let sandbox = Sandbox::new();
    let cases = [
        ("tmp = 1\n", "unknown key \"tmp\""),
        ("[generate]\nprompt-len = 1\n", "unknown key \"generate.prompt-len\""),
        ("[serve]\nport = 1\n", "unknown key \"serve\""),
        ("temp = \n", "not valid TOML"),
        ("temp = 1979-05-27\n", "temp must be"),
        ("temp = -3\n", "0 or more"),
    ];
    for (content, expected) in cases {
        let config = sandbox.file("config.toml", content);
        sandbox.run(&["generate", "-p", "x", "--config", &config]).assert_error(2, &[expected]);
    }
    sandbox.run(&["--config", "absent.toml", "pull", "--list"]).assert_error(2, &["absent.toml"]);
}

#[test]
fn models_that_cannot_be_used_are_clear_errors() {
    let sandbox = Sandbox::new();
    let absent = sandbox.path("absent.gguf");
    let hostile = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &u64::MAX.to_le_bytes(), &[0; 8]].concat();
    let empty_directory = sandbox.path("empty");
    std::fs::create_dir(&empty_directory).unwrap();
    let cases = [
        (absent.to_str().unwrap().to_owned(), "there is no model at"),
        (sandbox.file("text.gguf", "not a model"), "not a GGUF file"),
        (sandbox.file("short.gguf", b"GGUF\x03\0\0"), "short.gguf"),
        (sandbox.file("hostile.gguf", hostile), "hostile.gguf"),
        (sandbox.file("old.gguf", b"GGUF\x01\0\0\0\0\0\0\0"), "version 1"),
        (empty_directory.to_str().unwrap().to_owned(), "config.json"),
        ("no-such-name".to_owned(), "smollm2-135m-instruct"),
        ("no-such-directory/model.safetensors".to_owned(), "there is no model at"),
        ("/dev/null".to_owned(), "neither a file nor a directory; give a GGUF file"),
    ];
    for (model, expected) in &cases {
        for command in [&["generate", "-p", "x", "-m", model][..], &["inspect", model]] {
            sandbox.run(command).assert_error(1, &[expected]);
        }
    }
}

#[test]
fn a_model_that_is_not_here_is_not_fetched_offline() {
    let sandbox = Sandbox::new();
    sandbox.run(&["generate", "-p", "x", "--offline"]).assert_error(1, &["skipped: --offline", "without --offline"]);
    sandbox.run(&["pull", "--offline", "user/repository:Q4_0"]).assert_error(1, &["user/repository:Q4_0"]);
    let list = sandbox.run(&["pull", "--list"]);
    assert!(list.assert_success().stdout.contains("qwen2.5-coder-1.5b-instruct"));
}

#[test]
fn a_repository_in_the_shared_cache_is_used_offline() {
    let sandbox = Sandbox::new();
    let repository = sandbox.path("hugging-face/hub/models--somebody--tiny");
    let snapshot = repository.join("snapshots/0123abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), "0123abc").unwrap();
    for entry in std::fs::read_dir(tiny_model("tiny-llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, snapshot.join(path.file_name().unwrap())).unwrap();
    }
    let arguments =
        ["generate", "-m", "somebody/tiny", "--offline", "-p", "hi", "-n", "2", "--ignore-eos", "-o", "json"];
    let report = sandbox.run(&arguments).json();
    assert_eq!(report["usage"]["completion_tokens"], 2);
    assert_eq!(report["model"], "somebody/tiny");
}

#[test]
fn prompts_that_cannot_be_used_are_clear_errors() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let (long, too_long) = ("word ".repeat(20), "word ".repeat(600));
    let cases: &[(&[&str], &[u8], &str)] = &[
        (&["-c", "32", "-p", &long], b"", "--ctx-size"),
        (&["-c", "100000", "-p", "hi"], b"", "lower --ctx-size"),
        (&[], b"abc\xff", "byte 3 is 0xff"),
        (&[], b"", "standard input is empty"),
        (&["-f", "absent.txt"], b"", "absent.txt"),
        (&["-p", "x", "--chat-template", "{{ raise_exception('no systems here') }}"], b"", "no systems here"),
        (&["-p", "x", "--chat-template", "{% if"], b"", "template"),
        (&["-p", &too_long], b"", "the model was trained for no more than 512: shorten the prompt"),
        (&["-p", "x", "--logit-bias", "99999=1"], b"", "99999"),
    ];
    for (arguments, input, expected) in cases {
        let run = sandbox.run_with_input(&[&["generate", "-m", &model], *arguments].concat(), input);
        run.assert_error(1, &[expected]);
        assert_eq!(run.stderr.lines().count(), 1, "an error is printed once, on one line: {}", run.stderr);
    }
}

#[test]
fn a_prompt_is_the_same_from_flag_file_and_pipe() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-qwen2"));
    let file = sandbox.file("prompt.txt", "Hello, wörld\r\n");
    let common = ["generate", "-m", &model, "-n", "6", "--temp", "0", "-o", "json"];
    let ids = |flags: &[&str], input: &[u8]| {
        sandbox.run_with_input(&[&common, flags].concat(), input).json()["token_ids"].clone()
    };
    let from_flag = ids(&["-p", "Hello, wörld"], b"");
    assert_eq!(ids(&["-f", &file], b""), from_flag);
    assert_eq!(ids(&[], "Hello, wörld\n".as_bytes()), from_flag);
    assert_ne!(ids(&[], b"Goodbye"), from_flag);
}

#[test]
fn json_has_the_fields_that_tools_read() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let run = sandbox.run(&["generate", "-m", &model, "-p", "hi", "-n", "12", "-s", "7", "-o", "json"]);
    let report = run.json();
    assert_eq!(report["model"], "tiny-llama");
    assert_eq!(report["seed"], 7);
    assert_eq!(report["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(report["finish_reason"], "length");
    let usage = &report["usage"];
    let total = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], total);
    let timings = "cache_n prompt_n prompt_ms prompt_per_token_ms prompt_per_second predicted_n predicted_ms \
                   predicted_per_token_ms predicted_per_second draft_n draft_n_accepted";
    for field in timings.split_whitespace() {
        assert!(report["timings"][field].is_number(), "timings.{field}");
    }
    let speculative = &report["speculative"];
    assert_eq!(speculative["strategy"], "ngram");
    let rounds: u64 = speculative["acceptance_histogram"].as_array().unwrap().iter().filter_map(Value::as_u64).sum();
    assert_eq!(speculative["rounds"], rounds);
    assert!(speculative["mean_acceptance_length"].as_f64().unwrap() >= 1.0);
    assert!(run.stderr.is_empty(), "{}", run.stderr);
}

#[test]
fn text_goes_to_standard_output_and_the_summary_to_standard_error() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let arguments = ["generate", "-m", &model, "-p", "hi", "-n", "9", "-s", "4"];
    let text = sandbox.run(&arguments);
    let json = sandbox.run(&[&arguments[..], &["-o", "json"]].concat()).json();
    assert_eq!(text.assert_success().stdout.strip_suffix('\n'), json["text"].as_str());
    for part in ["answer 9 tokens", "rounds", "tokens each", "seed 4"] {
        assert!(text.stderr.contains(part), "{part} is not in {}", text.stderr);
    }
}

#[test]
fn an_answer_ends_before_a_stop_string() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-qwen2"));
    let common = ["generate", "-m", &model, "-p", "hi", "-n", "30", "--temp", "0", "-o", "json"];
    let whole = sandbox.run(&common).json()["text"].as_str().unwrap().to_owned();
    let stop: String = whole.chars().skip(5).take(2).collect();
    let stopped = sandbox.run(&[&common[..], &["--stop", "never said", "--stop", &stop]].concat()).json();
    assert_eq!(stopped["text"].as_str(), whole.split_once(&stop).map(|(before, _)| before));
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(stopped["usage"]["completion_tokens"].as_u64().unwrap() < 30);
}

#[test]
fn verify_lossless_says_identical() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-qwen3"));
    let arguments =
        ["generate", "-m", &model, "-p", "one two one two one", "-n", "60", "--ignore-eos", "--verify-lossless"];
    let text = sandbox.run(&arguments);
    assert!(
        text.assert_success().stderr.contains("lossless: plain decoding gives the same 60 tokens"),
        "{}",
        text.stderr
    );
    let json = sandbox.run(&[&arguments[..], &["-o", "json"]].concat()).json();
    assert_eq!(json["lossless"]["identical"], true);
}

#[test]
fn a_conversation_goes_on_with_its_cache() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let save = sandbox.path("chat.json");
    let input = format!("hello\n/stats\nand again\n/stats\n/save {}\n/what\n/reset\n/help\n", save.display());
    let run = sandbox.run_with_input(&["chat", "-m", &model, "-n", "8", "--system", "Be brief"], input.as_bytes());
    run.assert_success();
    let stats: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("prompt ")).collect();
    assert_eq!(stats.len(), 2, "{}", run.stderr);
    assert!(!stats[0].contains("cached") && stats[1].contains("cached"), "{stats:?}");
    for part in ["there is no command /what", "starts again", "/save FILE"] {
        assert!(run.stderr.contains(part), "{part} is not in {}", run.stderr);
    }
    let saved: Value = serde_json::from_slice(&std::fs::read(save).unwrap()).unwrap();
    let roles: Vec<&str> = saved["messages"].as_array().unwrap().iter().filter_map(|m| m["role"].as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
}

#[test]
fn a_message_that_is_too_long_does_not_end_the_conversation() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let input = format!("{}\nhi\n/stats\n", "word ".repeat(40));
    let run = sandbox.run_with_input(&["chat", "-m", &model, "-n", "4", "-c", "64", "--ignore-eos"], input.as_bytes());
    run.assert_error(1, &["--ctx-size", "taken back"]);
    let (refused, answer) = run.stdout.split_once('\n').unwrap();
    assert!(refused.is_empty() && answer.len() > 1, "a refused message has an empty line: {:?}", run.stdout);
    assert!(run.stderr.contains("answer 4 tokens"), "{}", run.stderr);
    assert!(run.stderr.contains("--max-tokens is 4"), "{}", run.stderr);
    let full = sandbox.run_with_input(&["chat", "-m", &model, "-c", "64", "--ignore-eos"], b"hi\n");
    assert!(full.assert_success().stderr.contains("the context of 64 tokens is full"), "{}", full.stderr);
    assert!(full.stderr.contains("--ctx-size allows more"), "{}", full.stderr);
    let full = sandbox.run_with_input(&["chat", "-m", &model, "--ignore-eos"], b"hi\n");
    assert!(full.stderr.contains("trained for no more") && !full.stderr.contains("--ctx-size"), "{}", full.stderr);
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_line() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let run = sandbox.run_with_input(&["chat", "-m", &model, "-n", "4"], "\u{feff}/help\n".as_bytes());
    assert!(run.assert_success().stderr.contains("/save FILE") && run.stdout.is_empty(), "{}", run.stdout);
}

#[test]
fn bench_measures_what_it_is_asked_for() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let arguments = ["bench", "-m", &model, "-p", "16", "-n", "4", "-b", "1,8", "-d", "8", "-r", "2", "-t", "1"];
    let json = sandbox.run(&[&arguments[..], &["-o", "json"]].concat()).json();
    let rows = json.as_array().unwrap();
    let tests: Vec<&str> = rows.iter().filter_map(|row| row["test"].as_str()).collect();
    assert_eq!(tests, ["pp16", "tg4", "verify1", "verify8"]);
    for row in rows {
        let is_positive = |field: &str| row[field].as_f64().unwrap() > 0.0;
        assert!(is_positive("tokens_per_second") && is_positive("ms_per_pass"), "{row}");
        assert!(row["stddev"].is_number() && row["threads"] == 1 && row["model"] == "tiny-llama", "{row}");
    }
    for (format, lines) in [("md", 6), ("csv", 5), ("jsonl", 4)] {
        let run = sandbox.run(&[&arguments[..], &["-o", format]].concat());
        assert_eq!(run.assert_success().stdout.lines().count(), lines, "{format}");
    }
    let shortest =
        sandbox.run(&["bench", "-m", &model, "-p", "1", "-n", "2", "-b", "0", "-d", "0", "-o", "json"]).json();
    for row in shortest.as_array().unwrap() {
        assert!(row["ms_per_pass"].as_f64().unwrap() > 0.0, "a prompt of one token is read by a round: {row}");
    }
    let huge = usize::MAX.to_string();
    let prompts_alone = ["bench", "-m", &model, "-p", "8", "-n", "0", "-b", "0", "-r", "1", "-d", &huge];
    sandbox.run(&prompts_alone).assert_success();
    for (more, expected) in [
        (&["-d", "8", "-p", "600", "-c", "512"][..], "pp600 needs 600"),
        (&["-d", "8", "-n", "60", "-p", "0", "-c", "64"], "tg60 needs 68"),
        (&["-d", "8", "-n", "60", "-p", "0", "-c", "64"], "or raise --ctx-size"),
        (&["-d", &huge, "-c", "512"], "and there are 512; the model was trained for no more"),
    ] {
        sandbox.run(&[&["bench", "-m", &model, "-b", "1"], more].concat()).assert_error(1, &[expected]);
    }
}

#[test]
fn compare_reports_each_arm_against_plain_decoding() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-qwen2"));
    let rows = "{\"prompt\": \"a b a b\", \"source\": \"x\"}\n{\"prompt\": \"c\", \"source\": \"y\"}\n";
    let data = sandbox.file("prompts.jsonl", rows);
    let arguments = ["compare", "-m", &model, "--data", &data, "-n", "24", "--spec-types", "ngram"];
    let json = sandbox.run(&[&arguments[..], &["-o", "json"]].concat()).json();
    let arms = json["arms"].as_array().unwrap();
    let names: Vec<&str> = arms.iter().filter_map(|arm| arm["spec_type"].as_str()).collect();
    assert_eq!(names, ["none", "ngram"], "plain decoding is measured in any case");
    for arm in arms {
        assert_eq!(arm["identical"], true, "{arm}");
        assert_eq!(arm["completion_tokens"], arms[0]["completion_tokens"]);
        assert_eq!(arm["extra_parameters"], 0);
        for field in ["tokens_per_second", "speedup", "call_reduction_ratio", "mean_acceptance_length", "speedup_p5"] {
            assert!(arm[field].as_f64().unwrap() > 0.0, "{field} of {arm}");
        }
        assert!(arm["categories"]["x"]["speedup"].is_number() && arm["categories"]["y"].is_object(), "{arm}");
    }
    let table = sandbox.run(&arguments);
    assert!(table.assert_success().stdout.contains("same tokens"), "{}", table.stdout);
    let control = ["--spec-types", "none,ngram,none", "-r", "3", "-o", "json"];
    let json = sandbox.run(&[&arguments[..7], &control].concat()).json();
    let names: Vec<&str> =
        json["arms"].as_array().unwrap().iter().filter_map(|arm| arm["spec_type"].as_str()).collect();
    assert_eq!(names, ["none", "ngram", "none"], "a second plain arm shows the noise");
    assert_eq!(json["arms"][0]["num_prompts"], 2, "repetitions are one answer");
}

#[test]
fn categories_control_neither_terminal_nor_table() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let rows = "{\"prompt\": \"a\", \"source\": \"\\u001b]0;X\\u0007red\\u009b\"}\n{\"prompt\": \"c\", \"source\": \"x\\n\\ty\"}\n";
    let data = sandbox.file("prompts.jsonl", rows);
    let compare = ["compare", "-m", &model, "--data", &data, "-n", "4", "--spec-types", "none"];
    let table = sandbox.run(&compare);
    let is_plain = |text: &str| text.chars().all(|letter| !letter.is_control() || letter == '\n');
    assert!(is_plain(&table.assert_success().stdout), "{:?}", table.stdout);
    for category in ["\n  \\u001b]0;X\\u0007red\\u009b ", "\n  x\\n\\ty "] {
        assert!(table.stdout.contains(category), "{category:?} is not in {:?}", table.stdout);
    }
    let json = sandbox.run(&[&compare[..], &["-o", "json"]].concat());
    assert!(is_plain(&json.stdout), "{:?}", json.stdout);
    let categories = &json.json()["arms"][0]["categories"];
    assert!(categories["\u{1b}]0;X\u{7}red\u{9b}"].is_object() && categories["x\n\ty"].is_object(), "{categories}");
}

#[test]
fn a_broken_row_is_named_with_file_and_line() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let cases = [
        ("{\"prompt\": \"a\"}\n{\"prompt\": \n", "rows.jsonl, line 2"),
        ("{\"prompt\": \"a\"}\n{\"promt\": \"b\"}\n", "line 2: the field \"prompt\""),
        ("{\"x\": 1}\n", "--template"),
        ("", "no rows"),
    ];
    for (content, expected) in cases {
        let data = sandbox.file("rows.jsonl", content);
        sandbox.run(&["compare", "-m", &model, "--data", &data]).assert_error(1, &[expected]);
    }
    let data = sandbox.file("rows.jsonl", format!("{{\"prompt\": \"a\"}}\n{{\"prompt\": \"{}\"}}\n", "b ".repeat(100)));
    sandbox
        .run(&["compare", "-m", &model, "--data", &data, "-c", "64", "-n", "4"])
        .assert_error(1, &["prompt 2", "--ctx-size"]);
}

#[test]
fn inspect_describes_what_runs_and_what_does_not() {
    let sandbox = Sandbox::new();
    let json = sandbox.run(&["inspect", &tiny_model("tiny-qwen3"), "-c", "100", "-o", "json"]).json();
    assert_eq!(json["problems"], serde_json::json!([]));
    assert_eq!(json["model"]["architecture"], "qwen3");
    assert_eq!(json["tokenizer"]["has_chat_template"], true);
    let cache = json["model"]["cache_bytes_per_position"].as_u64().unwrap();
    assert_eq!(cache, 2 * 2 * 32 * 2 * 2, "layers x heads x width x keys and values x bytes");
    let weights = json["formats"].as_array().unwrap().iter().filter_map(|group| group["bytes"].as_u64()).sum::<u64>();
    assert_eq!(json["model"]["memory_bytes"], weights + 100 * cache);
    let far = sandbox.run(&["inspect", &tiny_model("tiny-qwen3"), "-c", &u64::MAX.to_string()]);
    assert!(far.assert_success().stdout.contains("lower --ctx-size"), "{}", far.stdout);
    let text = sandbox.run(&["inspect", &tiny_model("tiny-mistral"), "--tensors"]);
    for part in ["lm_head.weight", "Mistral", "This build can run it"] {
        assert!(text.assert_success().stdout.contains(part), "{part} is not in {}", text.stdout);
    }
}

#[test]
fn completions_are_made_for_every_shell() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = sandbox.run(&["completions", shell]);
        assert!(script.assert_success().stdout.contains("verify-lossless"), "{shell}");
    }
}

#[test]
fn an_adapter_gives_streams_and_a_wrong_one_is_refused() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let directory = sandbox.path("adapter");
    adapter::write_random_adapter(model.as_ref(), &directory);
    let adapter = directory.to_str().unwrap();
    let generate = |model: &str, more: &[&str]| {
        sandbox.run(&[&["generate", "-m", model, "-p", "hi", "-n", "12", "-s", "7", "-o", "json"], more].concat())
    };
    let plain = generate(&model, &["--spec-type", "none"]).json();
    for list in ["auto,ngram", "streaming,streaming"] {
        let to_the_end = ["--spec-type", list, "--adapter", adapter, "-n", "-1", "-c", "60", "--ignore-eos"];
        let run = sandbox.run(&[&["generate", "-m", &model, "-p", "hi", "-o", "json"], &to_the_end[..]].concat());
        assert_eq!(run.json()["finish_reason"], "length", "{list}");
    }
    let report = generate(&model, &["--adapter", adapter]).json();
    assert_eq!(report["speculative"]["strategy"], "ngram,streaming");
    assert_eq!(report["token_ids"], plain["token_ids"]);
    let arms = ["none", "streaming", "streaming+ngram", "auto"].join(",");
    let data = sandbox.file("data.jsonl", "{\"prompt\": \"one two\"}\n");
    let compare = [
        "compare",
        "-m",
        &model,
        "--adapter",
        adapter,
        "--data",
        &data,
        "-n",
        "9",
        "-o",
        "json",
        "--spec-types",
        &arms,
    ];
    let comparison = sandbox.run(&compare).json();
    for (arm, has_streams) in comparison["arms"].as_array().unwrap().iter().zip([false, true, true, true]) {
        assert_eq!(arm["identical"], true, "{arm}");
        assert_eq!(arm["extra_parameters"].as_u64().unwrap() > 0, has_streams, "{arm}");
    }
    generate(&tiny_model("tiny-qwen2"), &["--adapter", adapter])
        .assert_error(1, &["adapter_config.json", "trained for"]);
    generate(&model, &["--adapter", adapter, "--merge-adapter"]).assert_error(1, &["nothing to merge", "joint"]);
    generate(&model, &["--adapter", "/nowhere"]).assert_error(1, &["/nowhere"]);
    generate(&model, &["--spec-type", "streaming"]).assert_error(1, &["needs a trained adapter", "--adapter"]);
}

#[test]
fn flags_of_streams_that_change_nothing_are_named() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let data = sandbox.file("data.jsonl", "{\"prompt\": \"one two\"}\n");
    let generate = ["generate", "-m", &model, "-p", "hi", "-n", "4", "--spec-tree-max-tokens", "4"];
    let chat = ["chat", "-m", &model, "-n", "4"];
    let compare = ["compare", "-m", &model, "--data", &data, "-n", "4", "--spec-tree-max-tokens", "4"];
    let warning = |run: Run| {
        run.assert_success();
        run.stderr.lines().find(|line| line.starts_with("warning: ")).map(str::to_owned)
    };
    let flags = [
        ["--spec-tree-topk", "3"],
        ["--spec-stream-pass", "fused"],
        ["--spec-prune-threshold", "0.5"],
        ["--spec-prune-nodes", "2"],
    ];
    for flag in flags {
        let warning = warning(sandbox.run(&[&generate[..], &flag].concat())).unwrap();
        for part in [flag[0], "`auto`", "changes nothing", "streaming", "--adapter"] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
    }
    let topk = flags[0];
    let is_named = |run: Run, part: &str| warning(run).is_some_and(|warning| warning.contains(part));
    assert!(is_named(sandbox.run(&[&generate[..], &topk, &["--spec-type", "ngram"]].concat()), "`ngram`"));
    assert!(is_named(sandbox.run_with_input(&[&chat[..], &topk].concat(), b"hi\n"), "--spec-tree-topk"));
    assert!(is_named(sandbox.run(&[&compare[..], &topk, &["--spec-types", "none,ngram"]].concat()), "`none,ngram`"));
    assert_eq!(warning(sandbox.run(&[&generate[..], &["--spec-stream-pass", "deferred"]].concat())), None);

    let directory = sandbox.path("adapter");
    adapter::write_random_adapter(model.as_ref(), &directory);
    let with_adapter = ["--adapter", directory.to_str().unwrap(), "--spec-tree-topk", "3"];
    assert_eq!(warning(sandbox.run(&[&generate[..], &with_adapter].concat())), None);
    assert!(is_named(
        sandbox.run(&[&generate[..], &with_adapter, &["--spec-type", "ngram"]].concat()),
        "--spec-tree-topk"
    ));
    let arms = sandbox.run(&[&compare[..], &with_adapter, &["--spec-types", "none,ngram+streaming"]].concat());
    assert_eq!(warning(arms), None);
}

/// The names of all fields of a report, but for names of categories.
fn fields(report: &Value, names: &mut Vec<String>) {
    match report {
        Value::Object(object) => object.iter().for_each(|(name, value)| {
            names.push(name.clone());
            if name != "categories" {
                fields(value, names);
            }
        }),
        Value::Array(values) => values.iter().for_each(|value| fields(value, names)),
        _ => {}
    }
}

#[test]
fn the_document_defines_every_field_of_every_report() {
    let (sandbox, model) = (Sandbox::new(), tiny_model("tiny-llama"));
    let data = sandbox.file("data.jsonl", "{\"prompt\": \"one two\", \"source\": \"x\"}\n");
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md")).unwrap();
    let calls: [(&str, &[&str]); 3] = [
        ("generate", &["-p", "hi", "-n", "3", "--verify-lossless"]),
        ("bench", &["-p", "4", "-n", "2", "-b", "2", "-d", "4", "-r", "1"]),
        ("compare", &["--data", &data, "-n", "3", "--spec-types", "ngram"]),
    ];
    for (command, arguments) in calls {
        let report = sandbox.run(&[&[command, "-m", &model, "-o", "json"], arguments].concat()).json();
        let (_, section) = document.split_once(&format!("\n## {command}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows: Vec<&str> = section.lines().filter(|line| line.starts_with('|')).collect();
        let mut names = Vec::new();
        fields(&report, &mut names);
        for name in names {
            let is_defined = |row: &&str| row.contains(&format!("`{name}`")) || row.contains(&format!(".{name}`"));
            assert!(rows.iter().any(is_defined) || section.contains(&format!("`{name}.")), "{command}: {name}");
        }
    }
}
