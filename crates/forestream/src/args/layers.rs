//! Puts variables and the configuration file under the flags.
//!
//! A value of a weaker layer becomes a flag that stands beside the typed ones, unless a stronger layer has that flag or one that
//! excludes it. So clap checks all of them alike, and no flag can be forgotten.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::config::Config;
use super::values::switch;

/// Flags without variable and key: they are what a single call is about, or belong to clap.
const WITHOUT_LAYERS: &[&str] =
    &["help", "version", "config", "list", "tensors", "shell", "path", "name", "output_file"];

/// What a switch takes, as help shows it.
const SWITCH_VALUES: &str = "true|false";

/// Whether a flag has a variable and a key.
pub(super) fn has_layers(id: &str) -> bool {
    !WITHOUT_LAYERS.contains(&id)
}

/// What is there besides the command line.
pub(super) struct Surroundings<'a> {
    /// The value of a variable.
    pub(super) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The user's own configuration file, if there is one.
    pub(super) config_file: Option<PathBuf>,
}

impl Surroundings<'_> {
    /// The name of a flag's variable and its value; an empty one counts as unset.
    fn variable(&self, id: &str) -> Option<(OsString, String)> {
        let name = format!("FORESTREAM_{}", id.to_ascii_uppercase());
        (self.variable)(&name).filter(|value| !value.is_empty()).map(|value| (value, name))
    }

    /// The configuration file that the command line, the variable or the user's directory names.
    fn config_path(&self, typed: &ArgMatches) -> Option<PathBuf> {
        let typed = typed.subcommand().map_or(typed, |(_, typed)| typed); // values go down to it, never up
        let typed = typed.try_get_one::<PathBuf>("config").ok().flatten().cloned();
        let named = typed.or_else(|| self.variable("config").map(|(path, _)| PathBuf::from(path)));
        named.or_else(|| self.config_file.clone())
    }
}

/// Where a value comes from, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    FileForAll,
    FileForCommand,
    Variable,
    Typed,
}

/// The values of a flag that was not typed.
struct Weak<'a> {
    argument: &'a Arg,
    layer: Layer,
    values: Vec<OsString>,
    /// How messages name the place that they come from.
    place: String,
}

/// Lets switches take `=true` or `=false`, so that a stronger layer can turn them off.
pub(super) fn with_switches(command: Command) -> Command {
    let command = command.mut_args(|argument| {
        if !matches!(argument.get_action(), ArgAction::SetTrue) {
            return argument;
        }
        let argument = argument.action(ArgAction::Set).num_args(0..=1).require_equals(true).value_parser(switch);
        let argument = argument.default_value("false").hide_default_value(true);
        argument.default_missing_value("true").value_name(SWITCH_VALUES)
    });
    command.mut_subcommands(with_switches)
}

/// The typed arguments with the values of weaker layers beside them.
pub(super) fn with_weaker_layers(
    definition: &Command,
    arguments: Vec<OsString>,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<Vec<OsString>, clap::Error> {
    let mut lenient = definition.clone().ignore_errors(true);
    let Ok(typed) = lenient.try_get_matches_from_mut(&arguments) else {
        return Ok(arguments); // help or the version is asked for
    };
    let config = around.config_path(&typed).map(|path| Config::read(&path, definition)).transpose();
    let config = config.map_err(|error| definition.clone().error(ErrorKind::InvalidValue, error))?;
    let Some((name, typed)) = typed.subcommand() else { return Ok(arguments) };
    let Some(command) = lenient.find_subcommand(name) else { return Ok(arguments) };

    let mut found = Vec::new();
    for argument in command.get_arguments().filter(|argument| has_layers(argument.get_id().as_str())) {
        if !is_typed(typed, argument) {
            let candidates = candidates(argument, name, around, config.as_ref());
            let strongest = strongest(definition, name, candidates, warnings)?;
            found.extend(strongest.filter(|weak| !weak.is_off())); // as without it, and so it excludes nothing
        }
    }
    let found = without_excluded(definition, command, typed, found)?;
    let arguments = without_off(command, arguments);
    let position = position_of(name, &arguments) + 1;
    let with = |weak: &mut dyn Iterator<Item = &Weak<'_>>| {
        let flags = weak.flat_map(|weak| flags(weak.argument, &weak.values));
        arguments[..position].iter().cloned().chain(flags).chain(arguments[position..].iter().cloned()).collect()
    };
    let all: Vec<OsString> = with(&mut found.iter());
    if !lacks_a_flag(definition, &all) {
        return Ok(all);
    }
    // A value for all commands may need a flag that only other commands are called with.
    for weak in found.iter().filter(|weak| weak.is_for_all()) {
        let fewer = with(&mut found.iter().filter(|other| other.argument != weak.argument));
        if !lacks_a_flag(definition, &fewer) {
            warnings.push(weak.left_out(name));
            return Ok(fewer);
        }
    }
    Ok(all)
}

/// The arguments without switches that are turned off: weaker layers have seen them, and they exclude nothing.
fn without_off(command: &Command, mut arguments: Vec<OsString>) -> Vec<OsString> {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let after = arguments.split_off(end);
    arguments.retain(|argument| !turns_off(command, argument));
    arguments.extend(after);
    arguments
}

/// Whether an argument as it was typed turns a switch off.
fn turns_off(command: &Command, argument: &OsStr) -> bool {
    let flag = argument.to_str().and_then(|text| text.strip_prefix("--")?.split_once('='));
    let Some((name, _)) = flag.filter(|(_, value)| switch(value) == Ok(false)) else { return false };
    command.get_arguments().filter(|argument| is_switch(argument)).any(|argument| {
        let is_alias = || argument.get_all_aliases().is_some_and(|aliases| aliases.contains(&name));
        argument.get_long() == Some(name) || is_alias()
    })
}

fn lacks_a_flag(definition: &Command, arguments: &[OsString]) -> bool {
    let result = definition.clone().try_get_matches_from(arguments);
    result.is_err_and(|error| error.kind() == ErrorKind::MissingRequiredArgument)
}

fn is_typed(typed: &ArgMatches, argument: &Arg) -> bool {
    typed.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
}

/// Where the name of the command stands.
fn position_of(name: &str, arguments: &[OsString]) -> usize {
    let is_path = |index: usize| arguments[index - 1] == "--config";
    (1..arguments.len()).find(|&index| arguments[index] == name && !is_path(index)).unwrap_or(arguments.len() - 1)
}

/// What weaker layers say of a flag, strongest first.
fn candidates<'a>(
    argument: &'a Arg,
    command: &str,
    around: &Surroundings<'_>,
    config: Option<&Config>,
) -> Vec<Weak<'a>> {
    let id = argument.get_id().as_str();
    let in_file = |command| config.and_then(|config| config.get(command, id));
    let variable = around.variable(id).map(|(value, name)| (vec![value], name));
    let layers = [
        (Layer::Variable, variable),
        (Layer::FileForCommand, in_file(Some(command))),
        (Layer::FileForAll, in_file(None)),
    ];
    let weak =
        |(layer, found): (Layer, Option<_>)| found.map(|(values, place)| Weak { argument, layer, values, place });
    layers.into_iter().filter_map(weak).collect()
}

/// The first candidate that the command takes. A value for all commands may be meant for others, if one of them takes it; any
/// other that is refused is an error.
fn strongest<'a>(
    definition: &Command,
    command: &str,
    candidates: Vec<Weak<'a>>,
    warnings: &mut Vec<String>,
) -> Result<Option<Weak<'a>>, clap::Error> {
    for weak in candidates {
        let Err(mut error) = check(weak.argument, &weak.values) else { return Ok(Some(weak)) };
        let is_for_others = weak.is_for_all()
            && definition.get_subcommands().filter(|other| other.get_name() != command).any(|other| {
                let mut arguments = other.get_arguments();
                let same = arguments.find(|argument| argument.get_id() == weak.argument.get_id());
                same.is_some_and(|argument| check(argument, &weak.values).is_ok())
            });
        if !is_for_others {
            let shown = format!("{} ({})", weak.place, weak.argument);
            if error.kind() == ErrorKind::ArgumentConflict {
                let message = format!("{shown} takes one value, and not a list");
                return Err(definition.clone().error(ErrorKind::InvalidValue, message));
            }
            error.insert(ContextKind::InvalidArg, ContextValue::String(shown));
            return Err(error);
        }
        warnings.push(weak.left_out(command));
    }
    Ok(None)
}

/// Whether a flag takes values, as clap sees it.
fn check(argument: &Arg, values: &[OsString]) -> Result<(), clap::Error> {
    let alone = Arg::new(argument.get_id().clone())
        .long(argument.get_long().unwrap_or_default().to_owned())
        .action(argument.get_action().clone())
        .value_parser(argument.get_value_parser().clone())
        .value_delimiter(argument.get_value_delimiter());
    let command = Command::new("check").no_binary_name(true).arg(alone);
    command.try_get_matches_from(flags(argument, values)).map(drop)
}

/// Values as they would be typed.
fn flags(argument: &Arg, values: &[OsString]) -> Vec<OsString> {
    let flag = |value: &OsString| {
        let mut flag = OsString::from(format!("--{}=", argument.get_long().unwrap_or_default()));
        flag.push(value);
        flag
    };
    values.iter().map(flag).collect()
}

/// Leaves out what a stronger layer excludes.
fn without_excluded<'a>(
    definition: &Command,
    command: &Command,
    typed: &ArgMatches,
    found: Vec<Weak<'a>>,
) -> Result<Vec<Weak<'a>>, clap::Error> {
    let mut present: Vec<(&Arg, Layer, &str)> = Vec::new();
    for argument in command.get_arguments().filter(|argument| is_typed(typed, argument)) {
        if !(is_switch(argument) && typed.get_one(argument.get_id().as_str()) == Some(&false)) {
            present.push((argument, Layer::Typed, ""));
        }
    }
    present.extend(found.iter().map(|weak| (weak.argument, weak.layer, &*weak.place)));
    let mut is_kept = Vec::new();
    for weak in &found {
        let excludes = |other: &&(&Arg, Layer, &str)| are_exclusive(command, weak.argument, other.0);
        let strongest = present.iter().filter(excludes).max_by_key(|(_, layer, _)| *layer);
        if let Some((other, layer, place)) = strongest
            && *layer == weak.layer
        {
            let message = format!(
                "{} ({}) and {place} ({other}) cannot be used together; take one of them out",
                weak.place, weak.argument
            );
            return Err(definition.clone().error(ErrorKind::ArgumentConflict, message));
        }
        is_kept.push(strongest.is_none_or(|(_, layer, _)| *layer < weak.layer));
    }
    Ok(found.into_iter().zip(is_kept).filter_map(|(weak, is_kept)| is_kept.then_some(weak)).collect())
}

impl Weak<'_> {
    fn is_for_all(&self) -> bool {
        matches!(self.layer, Layer::Variable | Layer::FileForAll)
    }

    fn left_out(&self, command: &str) -> String {
        let values = self.values.join(OsStr::new(","));
        format!("{command} cannot take {:?} from {}, and goes on without it", values.to_string_lossy(), self.place)
    }

    /// Whether it is a switch that is turned off.
    fn is_off(&self) -> bool {
        let is_off = |value: &OsString| value.to_str().is_some_and(|text| switch(text) == Ok(false));
        is_switch(self.argument) && self.values.iter().all(is_off)
    }
}

fn is_switch(argument: &Arg) -> bool {
    argument.get_value_names().is_some_and(|names| names.iter().any(|name| name == SWITCH_VALUES))
}

/// Whether clap allows only one of two flags of a command.
fn are_exclusive(command: &Command, one: &Arg, other: &Arg) -> bool {
    let excludes = |one: &Arg, other: &Arg| {
        command.get_arg_conflicts_with(one).iter().any(|argument| argument.get_id() == other.get_id())
    };
    let share_group = command.get_groups().any(|group| {
        let has = |argument: &Arg| group.get_args().any(|id| id == argument.get_id());
        !group.clone().is_multiple() && has(one) && has(other)
    });
    one.get_id() != other.get_id() && (share_group || excludes(one, other) || excludes(other, one))
}
