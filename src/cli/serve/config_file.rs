//! `--config` and `--print-config`: every flag as a line of TOML, without a second list of them.
//!
//! The file is turned into the flags that it stands for, and only into those that neither the command line nor the
//! environment has: so flags come before variables, variables before the file, and the file before the defaults, and one
//! parser checks all of them.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::{Table, Value};

/// Flags that a file cannot have: those about files.
const NOT_IN_FILES: [&str; 2] = ["config", "print-config"];

/// What holds for `command`, whose name and arguments are `given`, if `file` is its file.
pub(super) fn effective(command: &Command, given: &[OsString], file: Option<&Path>) -> Result<ArgMatches> {
    let matches = command.clone().try_get_matches_from(given)?;
    let Some(file) = file else { return Ok(matches) };
    let in_file = || format!("the configuration {}", file.display());
    let text = std::fs::read_to_string(file).with_context(in_file)?;
    let table: Table = toml::from_str(&text).with_context(in_file)?;
    let mut all: Vec<OsString> = given.first().cloned().into_iter().collect();
    for (key, value) in &table {
        all.extend(flags(command, &matches, key, value).with_context(in_file)?);
    }
    all.extend(given.iter().skip(1).cloned());
    // Without the file all was well.
    command.clone().try_get_matches_from(all).map_err(|error| {
        let message = error.to_string();
        let line = message.lines().next().unwrap_or_default();
        anyhow!("{}: {}", in_file(), line.trim_start_matches("error: "))
    })
}

/// The configuration as a file. What has no value is a comment.
pub(super) fn to_toml(command: &Command, matches: &ArgMatches) -> String {
    let mut text = String::new();
    for arg in command.get_arguments() {
        let key = key(arg);
        if !NOT_IN_FILES.contains(&key.as_str()) {
            text += &match value(arg, matches) {
                Some(value) => format!("{key} = {value}\n"),
                None => format!("# {key} is not set\n"),
            };
        }
    }
    text
}

/// What a flag is called in a file: the same; a positional argument goes by its name in the help.
fn key(arg: &Arg) -> String {
    match (arg.get_long(), arg.get_value_names()) {
        (Some(long), _) => long.to_owned(),
        (None, Some([name, ..])) => name.to_lowercase().replace('_', "-"),
        (None, _) => arg.get_id().to_string(),
    }
}

/// The arguments that a line of the file stands for: none if something that comes before it has said so already.
fn flags(command: &Command, matches: &ArgMatches, key_found: &str, value: &Value) -> Result<Vec<OsString>> {
    let known = || command.get_arguments().filter(|arg| !NOT_IN_FILES.contains(&key(arg).as_str()));
    let Some(arg) = known().find(|arg| key(arg) == key_found) else {
        let known: Vec<_> = known().map(key).collect();
        bail!("there is no `{key_found}`; there are {}", known.join(", "));
    };
    let texts: Vec<String> = match value {
        Value::Array(values) => values.iter().map(text).collect::<Option<_>>(),
        value => text(value).map(|text| vec![text]),
    }
    .with_context(|| format!("`{key_found}` must be a text, a number, true or false, or a list of texts"))?;
    let is_said = matches!(
        matches.value_source(arg.get_id().as_str()),
        Some(ValueSource::CommandLine | ValueSource::EnvVariable)
    );
    if is_said {
        return Ok(Vec::new());
    }
    Ok(match arg.get_action() {
        ArgAction::SetTrue => match value {
            Value::Boolean(true) => vec![format!("--{key_found}").into()],
            Value::Boolean(false) => vec![],
            _ => bail!("`{key_found}` must be true or false"),
        },
        _ if arg.is_positional() => texts.into_iter().map(OsString::from).collect(),
        _ => texts.into_iter().map(|text| format!("--{key_found}={text}").into()).collect(),
    })
}

/// A single value as it would be written on the command line.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Some(value.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

/// What an argument is, however it came to be so.
fn value(arg: &Arg, matches: &ArgMatches) -> Option<Value> {
    let id = arg.get_id().as_str();
    if let ArgAction::SetTrue = arg.get_action() {
        return Some(Value::Boolean(matches.get_flag(id)));
    }
    let texts = matches.get_raw(id)?.map(|raw| raw.to_string_lossy().into_owned());
    let mut values: Vec<Value> = texts.map(as_value).collect();
    match arg.get_action() {
        ArgAction::Append => Some(Value::Array(values)),
        _ => values.pop(),
    }
}

/// A number where it is written as TOML would write it.
fn as_value(text: String) -> Value {
    match text.parse::<i64>() {
        Ok(number) if number.to_string() == text => Value::Integer(number),
        _ => Value::String(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let set = |name: &'static str| Arg::new(name).long(name);
        Command::new("serve").args([
            Arg::new("model").value_name("MODEL_DIR").default_value("here"),
            set("max-queue").default_value("5").value_parser(clap::value_parser!(u64)),
            set("lock").action(ArgAction::SetTrue),
            set("origin").action(ArgAction::Append).value_delimiter(','),
            set("config"),
        ])
    }

    fn with(file: &str, given: &[&str]) -> Result<String, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scone.toml");
        std::fs::write(&path, file).unwrap();
        let given: Vec<OsString> = ["serve"].iter().chain(given).map(OsString::from).collect();
        let matches = effective(&command(), &given, Some(&path)).map_err(|error| format!("{error:#}"))?;
        Ok(to_toml(&command(), &matches))
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_defaults() {
        let file = "model-dir = \"there\"\nmax-queue = 7\nlock = true\norigin = [\"a\", \"b\"]\n";
        assert_eq!(with(file, &[]).unwrap(), file);
        let printed = with(file, &["--max-queue", "9", "--origin=c", "else"]).unwrap();
        assert_eq!(printed, "model-dir = \"else\"\nmax-queue = 9\nlock = true\norigin = [\"c\"]\n");
        let nothing = with("", &[]).unwrap();
        assert_eq!(nothing, "model-dir = \"here\"\nmax-queue = 5\nlock = false\n# origin is not set\n");
        assert_eq!(with(&nothing, &[]).unwrap(), nothing, "it can be fed back");
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        for (file, word) in [
            ("max-que = 7", "max-que"),
            ("max-queue = \"many\"", "many"),
            ("max-queue = [[1]]", "max-queue"),
            ("lock = \"yes\"", "lock"),
            ("config = \"other.toml\"", "config"),
            ("[limits]\nmax-queue = 1", "limits"),
            ("max-queue", "scone.toml"),
        ] {
            let error = with(file, &[]).unwrap_err();
            assert!(error.contains(word) && error.contains("scone.toml"), "{error}");
        }
    }
}
