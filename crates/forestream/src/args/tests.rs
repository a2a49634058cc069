//! Command lines as users type them, with variables and configuration files under them.

use std::ffi::OsString;

use super::layers::Surroundings;
use super::{Command, GenerateArgs, LowArgs, definition, parse_in};

/// A command line with what is around it.
struct Call {
    arguments: &'static str,
    variables: &'static [(&'static str, &'static str)],
    config: &'static str,
}

impl Call {
    fn new(arguments: &'static str) -> Self {
        Self { arguments, variables: &[], config: "" }
    }

    fn with_variables(self, variables: &'static [(&'static str, &'static str)]) -> Self {
        Self { variables, ..self }
    }

    fn with_config(self, config: &'static str) -> Self {
        Self { config, ..self }
    }

    /// What is understood, or the message; and the warnings.
    fn parse(&self) -> (Result<LowArgs, String>, String) {
        let directory = tempfile::tempdir().unwrap();
        let config_file = directory.path().join("config.toml");
        std::fs::write(&config_file, self.config).unwrap();
        let variable = |name: &str| {
            let found = self.variables.iter().find(|(known, _)| format!("FORESTREAM_{known}") == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let mut warnings = Vec::new();
        let arguments =
            ["forestream"].into_iter().chain(self.arguments.split_whitespace()).map(OsString::from).collect();
        let around = Surroundings { variable: &variable, config_file: Some(config_file) };
        let parsed = parse_in(arguments, &around, &mut warnings).map_err(|error| error.to_string());
        (parsed, warnings.join("\n"))
    }

    #[track_caller]
    fn command(&self) -> Command {
        let (parsed, _) = self.parse();
        parsed.unwrap_or_else(|error| panic!("{}: {error}", self.arguments)).command
    }

    #[track_caller]
    fn generate(&self) -> GenerateArgs {
        let Command::Generate(args) = self.command() else { panic!("{} is not for generate", self.arguments) };
        args
    }

    #[track_caller]
    fn assert_error(&self, expected: &[&str]) {
        let error = self.parse().0.expect_err(self.arguments);
        for part in expected {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }
}

/// The help of a command, on one line.
fn help(command: &str) -> String {
    let help = parse_in(["forestream", command, "--help"].map(OsString::from).into(), &NOTHING, &mut Vec::new());
    help.expect_err(command).to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// No variables and no file.
const NOTHING: Surroundings<'_> = Surroundings { variable: &|_| None, config_file: None };

#[test]
fn help_says_what_is_true_of_its_command() {
    const INCLUDED: &str = "[default: the one that comes with the program";
    const ALONE: &str = "Directory of a trained adapter [default: none]";
    const LLAMA2C: &str = "llama2.c file";
    const GREEDY: &str = "most probable token [default: 0]";
    const MODELS: &str = "[default: the model's, else 0.8]";
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("generate", &[INCLUDED, LLAMA2C, MODELS, "takes a random one"], &[ALONE, GREEDY]),
        ("chat", &[INCLUDED, LLAMA2C, MODELS], &[ALONE, GREEDY]),
        ("bench", &[ALONE, LLAMA2C, "--merge-adapter"], &[INCLUDED]),
        ("compare", &[INCLUDED, LLAMA2C, GREEDY, "takes a random one"], &[ALONE, MODELS]),
        ("distill", &[ALONE, LLAMA2C, GREEDY, "Seed of the draws; each answer"], &[INCLUDED, MODELS, "random"]),
        (
            "train",
            &[
                LLAMA2C,
                "without --init-from they go on from its own [default: none]",
                "0 takes 2048, or what the model was trained for if that is less",
                "`input_ids` with `loss_mask`",
                "relative to the one before; 1 counts all alike",
            ],
            &[INCLUDED, "--merge-adapter", "Tokens of context"],
        ),
        ("merge", &[LLAMA2C], &[]),
        ("inspect", &[LLAMA2C, "known name"], &["that was pulled"]),
    ];
    for (command, said, unsaid) in cases {
        let help = help(command);
        for part in *said {
            assert!(help.contains(part), "{command}: {part:?} is not in: {help}");
        }
        for part in *unsaid {
            assert!(!help.contains(part), "{command}: {part:?} is in: {help}");
        }
    }
}

#[test]
fn help_lists_what_is_registered() {
    for command in ["generate", "chat", "compare"] {
        let help = help(command);
        for strategy in forestream::STRATEGIES {
            let line = format!("- {}: {}", strategy.name, strategy.summary);
            assert!(help.contains(&line), "{command}: {line:?} is not in: {help}");
        }
        for backend in forestream::BACKENDS {
            let line = format!("- {}: {}", backend.name, backend.summary);
            assert!(help.contains(&line), "{command}: {line:?} is not in: {help}");
        }
    }
}

#[test]
fn distill_has_no_random_seed() {
    let seed = |call: Call| match call.command() {
        Command::Distill(args) => (args.sampling.seed, args.sampling.temp),
        command => panic!("{command:?} is not distill"),
    };
    assert_eq!(seed(Call::new("distill --data x -o y")), (0, Some(0.0)));
    assert_eq!(seed(Call::new("distill --data x -o y -s 3 --temp 0.5")), (3, Some(0.5)));
    Call::new("distill --data x -o y -s -1").assert_error(&["-1", "--seed"]);
    let (parsed, warnings) = Call::new("distill --data x -o y").with_variables(&[("SEED", "-1")]).parse();
    assert!(matches!(parsed.unwrap().command, Command::Distill(args) if args.sampling.seed == 0));
    assert!(warnings.contains("distill cannot take \"-1\" from FORESTREAM_SEED"), "{warnings}");
}

#[test]
fn help_shows_no_token() {
    let config = "hf-token = \"secret-of-file\"\nthreads = 3\n";
    let call = Call::new("generate --help").with_config(config).with_variables(&[("HF_TOKEN", "secret-of-variable")]);
    let help = call.parse().0.unwrap_err();
    assert!(help.contains("--hf-token") && !help.contains("secret"), "{help}");
    let args = Call::new("generate").with_config(config).generate();
    assert_eq!((args.model.store.hf_token.as_deref(), args.model.threads), (Some("secret-of-file"), 3));
}

#[test]
fn a_flag_beats_weaker_layers_of_those_that_it_excludes() {
    const TYPED: &str = "generate -f p.txt --chat-template-file tpl.txt --spec-prune-nodes 4";
    const CONFIG: &str = "prompt = \"Hi\"\nspec-prune-threshold = 0.5\n[generate]\nchat-template = \"x\"\n";
    const VARIABLES: &[(&str, &str)] = &[("PROMPT", "Hi"), ("CHAT_TEMPLATE", "x"), ("SPEC_PRUNE_THRESHOLD", "0.5")];
    for call in [Call::new(TYPED).with_config(CONFIG), Call::new(TYPED).with_variables(VARIABLES)] {
        let args = call.generate();
        assert_eq!((args.prompt, args.file), (None, Some("p.txt".into())));
        assert_eq!((args.template.chat_template, args.spec.budget.spec_prune_threshold), (None, None));
        assert!(args.template.chat_template_file.is_some());
    }
    let Command::Compare(args) = Call::new("compare --data x --task e2e").with_config("template = \"{a}\"").command()
    else {
        panic!("it is compare");
    };
    assert!(args.data.task.is_some() && args.data.template.is_none());
    let train = Call::new("train --data x -o y --task e2e --epochs 2").with_variables(&[("TEMPLATE", "{a}")]);
    let Command::Train(args) = train.with_config("steps = 5\n").command() else { panic!("it is train") };
    assert!(args.rows.task.is_some() && args.rows.template.is_none());
    assert_eq!((args.run.epochs, args.run.steps), (Some(2), None));
}

#[test]
fn a_variable_beats_what_it_excludes_in_the_file_and_a_table_beats_the_top() {
    let args = Call::new("generate")
        .with_variables(&[("FILE", "p.txt")])
        .with_config("[generate]\nprompt = \"Hi\"")
        .generate();
    assert_eq!((args.prompt, args.file), (None, Some("p.txt".into())));
    let args = Call::new("generate").with_config("file = \"p.txt\"\n[generate]\nprompt = \"Hi\"").generate();
    assert_eq!((args.prompt.as_deref(), args.file), (Some("Hi"), None));
}

#[test]
fn what_excludes_each_other_in_one_layer_is_an_error_that_names_both_places() {
    Call::new("generate").with_variables(&[("PROMPT", "Hi"), ("FILE", "p.txt")]).assert_error(&[
        "FORESTREAM_PROMPT",
        "FORESTREAM_FILE",
        "cannot be used together",
    ]);
    Call::new("generate").with_config("prompt = \"Hi\"\nfile = \"p.txt\"\n").assert_error(&[
        "prompt in ",
        "file in ",
        "config.toml",
        "cannot be used together",
    ]);
    Call::new("generate -p a -f b").assert_error(&["cannot be used with"]);
}

#[test]
fn a_stronger_layer_turns_a_switch_off() {
    let raw = |call: Call| call.generate().raw;
    assert!(raw(Call::new("generate --raw")) && raw(Call::new("generate --raw=on")));
    assert!(raw(Call::new("generate").with_config("raw = true")));
    assert!(!raw(Call::new("generate --raw=false")));
    assert!(!raw(Call::new("generate --raw=false").with_config("raw = true")));
    assert!(!raw(Call::new("generate --no-chat-template=false").with_variables(&[("RAW", "1")])));
    assert!(!raw(Call::new("generate").with_variables(&[("RAW", "off")]).with_config("[generate]\nraw = true")));
    Call::new("generate --raw=perhaps").assert_error(&["perhaps", "--raw", "true, 1, on, yes", "false, 0, off, no"]);
    let train = Call::new("train --data x -o y --dry-run").with_config("resume = true").command();
    let Command::Train(args) = train else { panic!("it is train") };
    assert!(args.dry_run && !args.resume);
    let train = Call::new("train --data x -o y --resume").with_config("dry-run = false").command();
    assert!(matches!(train, Command::Train(args) if args.resume && !args.dry_run));
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let call = Call::new("generate").with_variables(&[("THREADS", ""), ("PROMPT", ""), ("FILE", "p.txt"), ("RAW", "")]);
    let args = call.with_config("threads = 3").generate();
    assert_eq!((args.model.threads, args.prompt, args.raw), (3, None, false));
}

#[test]
fn a_value_for_all_commands_may_be_meant_for_others() {
    const NEGATIVE: &[(&str, &str)] = &[("MAX_TOKENS", "-1")];
    assert_eq!(Call::new("generate").with_variables(NEGATIVE).generate().length.max_tokens, -1);
    for (call, place) in [
        (Call::new("compare --data x").with_variables(NEGATIVE), "FORESTREAM_MAX_TOKENS"),
        (Call::new("compare --data x").with_config("max-tokens = -1"), "max-tokens in "),
    ] {
        let (parsed, warnings) = call.parse();
        assert!(matches!(parsed.unwrap().command, Command::Compare(args) if args.max_tokens == 128));
        for part in ["compare cannot take \"-1\"", place] {
            assert!(warnings.contains(part), "{part:?} is not in: {warnings}");
        }
    }
    let weaker = Call::new("compare --data x").with_variables(NEGATIVE).with_config("max-tokens = 7").command();
    assert!(matches!(weaker, Command::Compare(args) if args.max_tokens == 7));
}

#[test]
fn a_value_for_all_commands_that_needs_another_flag_is_left_out() {
    let (parsed, warnings) = Call::new("train --data x -o y").with_config("template = \"{a}\"\nthreads = 3\n").parse();
    let Command::Train(args) = parsed.unwrap().command else { panic!("it is train") };
    assert_eq!((args.rows.template, args.model.threads), (None, 3));
    assert!(warnings.contains("train cannot take \"{a}\" from template in "), "{warnings}");
    let table = Call::new("train --data x -o y").with_config("[train]\ntemplate = \"{a}\"\n");
    table.assert_error(&["--completion-field"]);
}

#[test]
fn a_value_that_is_refused_is_named_by_its_place() {
    let variable = Call::new("generate").with_variables(&[("THREADS", "many")]);
    variable.assert_error(&["many", "FORESTREAM_THREADS", "--threads", "not a whole number"]);
    let table = Call::new("compare --data x").with_config("[compare]\nmax-tokens = -1\n");
    table.assert_error(&["-1", "compare.max-tokens in ", "config.toml"]);
    Call::new("generate").with_config("output = \"xml\"").assert_error(&["xml", "output in ", "config.toml", "json"]);
    Call::new("generate").with_config("seed = [1, 2]").assert_error(&["seed in ", "one value"]);
}

#[test]
fn a_number_out_of_range_is_named_by_its_place() {
    let cases: [(&'static [(&str, &str)], &str); 7] = [
        (&[("MIN_P", "1.5")], "1 at most"),
        (&[("REPEAT_PENALTY", "0")], "above 0"),
        (&[("PRESENCE_PENALTY", "inf")], "finite"),
        (&[("FREQUENCY_PENALTY", "nan")], "finite"),
        (&[("LOGIT_BIAS", "3=inf")], "-inf"),
        (&[("TOP_K", "-2")], "-1"),
        (&[("TOP_K", "many")], "whole number"),
    ];
    for (variables, expected) in cases {
        let name = format!("FORESTREAM_{}", variables[0].0);
        Call::new("generate").with_variables(variables).assert_error(&[&name, expected]);
    }
    Call::new("generate").with_config("stop = [\"a\", \"\"]").assert_error(&["stop in ", "empty"]);
}

#[test]
fn minus_one_keeps_all_tokens_as_in_other_tools() {
    assert_eq!(Call::new("generate --top-k -1").generate().sampling.top_k, Some(0));
    assert_eq!(Call::new("generate").with_config("top-k = -1").generate().sampling.top_k, Some(0));
    assert_eq!(Call::new("generate --top-k 7").generate().sampling.top_k, Some(7));
}

#[test]
fn more_tokens_at_least_than_at_most_are_an_error_that_names_both_flags() {
    for call in [
        Call::new("generate -n 4 --min-tokens 5"),
        Call::new("chat -n 4").with_variables(&[("MIN_TOKENS", "5")]),
        Call::new("generate").with_config("max-tokens = 4\nmin-tokens = 5"),
    ] {
        call.assert_error(&["--min-tokens 5", "--max-tokens 4"]);
    }
    assert_eq!(Call::new("generate --min-tokens 5").generate().length.min_tokens, 5);
    assert_eq!(Call::new("generate -n 5 --min-tokens 5").generate().length.min_tokens, 5);
}

#[test]
fn a_raw_prompt_has_no_chat_template() {
    for flag in ["--chat-template x", "--chat-template-file x", "--chat-template-kwargs {}"] {
        let call = Call::new(Box::leak(format!("generate --raw {flag}").into_boxed_str()));
        call.assert_error(&["--raw", "cannot be used with"]);
        let call = Call::new(Box::leak(format!("generate --raw=off {flag}").into_boxed_str()));
        assert!(!call.generate().raw, "a switch that is off excludes nothing");
    }
    let raw = Call::new("generate --raw").with_variables(&[("CHAT_TEMPLATE", "x")]).generate();
    assert!(raw.raw && raw.template.chat_template.is_none());
    let template = Call::new("generate --chat-template x").with_config("raw = true").generate();
    assert!(!template.raw && template.template.chat_template.is_some());
}

#[test]
fn a_typed_value_hides_a_weaker_one_that_is_wrong() {
    let call = Call::new("generate -t 2").with_variables(&[("THREADS", "many")]).with_config("threads = -5");
    assert_eq!(call.generate().model.threads, 2);
}

#[test]
fn lists_of_the_file_are_replaced_as_a_whole() {
    let config = "stop = [\"a\", \"-b\"]\nlogit-bias = [\"1=2\", \"3=-inf\"]\n";
    let args = Call::new("generate").with_config(config).generate();
    assert_eq!((args.length.stop, args.sampling.logit_bias.len()), (vec!["a".to_owned(), "-b".to_owned()], 2));
    assert_eq!(Call::new("generate --stop c").with_config(config).generate().length.stop, ["c"]);
}

#[test]
fn what_a_command_needs_may_come_from_any_layer() {
    let args = Call::new("--config /dev/null compare").with_variables(&[("DATA", "rows.jsonl")]).command();
    assert!(matches!(args, Command::Compare(args) if args.data.path().ends_with("rows.jsonl")));
    let train = Call::new("train -o y --completion-field b").with_config("data = \"x\"\n[train]\ntemplate = \"{a}\"\n");
    assert!(matches!(train.command(), Command::Train(args) if args.rows.template.is_some()));
}

#[test]
fn where_a_command_writes_is_only_typed() {
    for call in ["train --data x", "distill --data x", "merge --adapter x"] {
        let call = Call::new(call).with_variables(&[("OUTPUT", "json")]).with_config("output = \"json\"");
        call.assert_error(&["--output"]);
    }
}

#[test]
fn spellings_of_llama_cpp_are_understood() {
    let args = Call::new("generate -hf user/repo -tb 2 -sys Short. --jinja -p hi").generate();
    assert_eq!((&*args.model.model, args.model.threads), ("user/repo", 2));
    assert_eq!((args.template.system.as_deref(), args.raw), (Some("Short."), false));
    assert_eq!(Call::new("generate -hf=user/repo:Q8_0").generate().model.model, "user/repo:Q8_0");
    let distill = Call::new("distill --data x -o y -np 8 --jinja").command();
    assert!(matches!(distill, Command::Distill(args) if args.batch_size == 8));
    assert!(matches!(Call::new("chat --jinja").command(), Command::Chat(_)));
    Call::new("pull --jinja").assert_error(&["unexpected argument"]);
    assert!(matches!(Call::new("pull -- -hf").command(), Command::Pull(args) if args.name == "-hf"));
}

#[test]
fn deprecated_spellings_are_understood_with_a_warning() {
    for spelling in ["--draft-max 5", "--draft=5", "--draft-n 5"] {
        let (parsed, warnings) = Call::new(Box::leak(format!("generate {spelling}").into_boxed_str())).parse();
        let Command::Generate(args) = parsed.unwrap().command else { panic!("it is generate") };
        assert_eq!(args.spec.budget.spec_draft_n_max, Some(5), "{spelling}");
        assert!(warnings.contains("deprecated; use --spec-draft-n-max"), "{spelling}: {warnings}");
    }
    assert_eq!(Call::new("generate --spec-draft-n-max 5").parse().1, "");
}

#[test]
fn the_documents_have_every_flag() {
    let documents = ["cli.md", "training.md"].map(|name| {
        let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    });
    let is_of_name = |character: char| character.is_ascii_alphanumeric() || character == '-';
    let words: Vec<&str> = documents.iter().flat_map(|text| text.split(|character| !is_of_name(character))).collect();
    for command in definition().get_subcommands() {
        let name = command.get_name();
        assert!(documents[0].contains(&format!("forestream {name} ")), "{name}");
        for flag in command.get_arguments().filter(|argument| !argument.is_hide_set()).filter_map(clap::Arg::get_long) {
            assert!(words.contains(&&*format!("--{flag}")), "{name} --{flag}");
        }
    }
}
