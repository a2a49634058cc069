//! What people type who know other tools: spellings that clap's definitions cannot express.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

/// Flags of llama.cpp with one dash and several letters, which clap takes for short flags in a row.
const ONE_DASH: &[(&str, &str)] = &[
    ("-hf", "--hf-repo"),
    ("-hfr", "--hf-repo"),
    ("-np", "--parallel"),
    ("-sys", "--system-prompt"),
    ("-tb", "--threads-batch"),
];

/// Spellings that llama.cpp has given up, and what they are called now.
const DEPRECATED: &[(&str, &str)] =
    &[("--draft", "--spec-draft-n-max"), ("--draft-n", "--spec-draft-n-max"), ("--draft-max", "--spec-draft-n-max")];

/// Adds what other tools need and this one does not.
pub(super) fn with_flags_without_effect(command: Command) -> Command {
    command.mut_subcommands(|command| {
        let has = |id: &str| command.get_arguments().any(|argument| argument.get_id() == id);
        if !(has("raw") || has("chat_template")) {
            return command;
        }
        let help = "Use the model's chat template, as is always done";
        command.arg(Arg::new("jinja").long("jinja").action(ArgAction::SetTrue).hide(true).help(help))
    })
}

/// The arguments in spellings that clap knows.
pub(super) fn known(mut arguments: Vec<OsString>, warnings: &mut Vec<String>) -> Vec<OsString> {
    for argument in arguments.iter_mut().skip(1) {
        let Some(text) = argument.to_str() else { continue };
        if text == "--" {
            break; // what follows is no flag
        }
        let flag = text.split('=').next().unwrap_or(text);
        if let Some((_, name)) = DEPRECATED.iter().find(|(spelling, _)| *spelling == flag) {
            warnings.push(format!("{flag} is deprecated; use {name}"));
        }
        if let Some((_, name)) = ONE_DASH.iter().find(|(spelling, _)| *spelling == flag) {
            *argument = format!("{name}{}", &text[flag.len()..]).into();
        }
    }
    arguments
}
