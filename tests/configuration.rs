//! `scone serve` as an operator configures it: flags, variables and a file, and what holds of them in the end.

use std::path::Path;
use std::process::{Command, Output};

const SCONE: &str = env!("CARGO_BIN_EXE_scone");

/// Runs `scone serve` with these variables and arguments and no others; it must end by itself.
fn serve(directory: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(SCONE);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    command.current_dir(directory).envs(variables.iter().copied()).arg("serve").args(arguments);
    command.output().expect("the program starts")
}

/// The configuration that it says holds.
fn printed(directory: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> toml::Table {
    let output = serve(directory, variables, &[arguments, &["--print-config"]].concat());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    toml::from_str(&text).expect("TOML")
}

/// What is said about a configuration that cannot be used.
fn refused(directory: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> String {
    let output = serve(directory, variables, arguments);
    assert!(!output.status.success() && output.stdout.is_empty());
    String::from_utf8(output.stderr).expect("UTF-8")
}

fn with_file(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("scone.toml"), text).expect("a writable directory");
    directory
}

#[test]
fn flags_before_variables_before_the_file_before_defaults() {
    let directory = with_file("max-queue = 10\nmax-sequences = 20\nlisten = \"0.0.0.0:1\"\nspeculate = 4\n");
    let variables =
        [("SCONE_CONFIG", "scone.toml"), ("SCONE_MAX_QUEUE", "11"), ("SCONE_LISTEN", "0.0.0.0:2")];
    let config = printed(directory.path(), &variables, &["--listen", "0.0.0.0:3"]);
    let number = |key: &str| config[key].as_integer();
    assert_eq!(config["listen"].as_str(), Some("0.0.0.0:3"));
    assert_eq!(number("max-queue"), Some(11));
    assert_eq!((number("max-sequences"), number("speculate")), (Some(20), Some(4)));
    assert_eq!(config["drain-timeout"].as_str(), Some("30s"));
    assert!(!config.contains_key("config") && !config.contains_key("table"), "{config}");
}

#[test]
fn what_is_printed_can_be_fed_back() {
    let directory = with_file("");
    let arguments = [
        "some/model",
        "--cors-origin=https://a.example,https://b.example",
        "--no-prefix-cache",
        "--table-mode=ram",
        "--model-name=007",
        "--api-keys-file=keys",
        "--queue-timeout=1.5m",
    ];
    let first = serve(directory.path(), &[], &[&arguments[..], &["--print-config"]].concat()).stdout;
    std::fs::write(directory.path().join("scone.toml"), &first).expect("a writable directory");
    let second = serve(directory.path(), &[], &["--config", "scone.toml", "--print-config"]).stdout;
    assert_eq!(String::from_utf8_lossy(&first), String::from_utf8_lossy(&second));
    let config = printed(directory.path(), &[], &["--config", "scone.toml"]);
    assert_eq!(config["cors-origin"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        (config["no-prefix-cache"].as_bool(), config["model-name"].as_str()),
        (Some(true), Some("007"))
    );
    assert_eq!(config["model-dir"].as_str(), Some("some/model"));
}

#[test]
fn mistakes_are_named_with_their_file() {
    for (text, word) in
        [("max-que = 1", "max-que"), ("max-queue = 0", "--max-queue"), ("drain-timeout = \"soon\"", "soon")]
    {
        let directory = with_file(text);
        let said = refused(directory.path(), &[], &["--config", "scone.toml"]);
        assert!(said.contains(word) && said.contains("scone.toml") && !said.contains("panicked"), "{said}");
    }
    let directory = with_file("");
    let said = refused(directory.path(), &[], &["--config", "other.toml"]);
    assert!(said.contains("other.toml"), "{said}");
    let said = refused(directory.path(), &[], &["--api-keys-file", "nowhere"]);
    assert!(said.contains("nowhere"), "{said}");
    let said = refused(directory.path(), &[], &["--tls-cert", "a.crt"]);
    assert!(said.contains("--tls-key"), "{said}");
    let said = refused(directory.path(), &[], &["--protect", "/metrics"]);
    assert!(said.contains("--api-keys-file"), "{said}");
    let said = refused(directory.path(), &[], &["--cors-origin", "example.org"]);
    assert!(said.contains("example.org"), "{said}");
}

#[test]
fn keys_are_never_shown() {
    let directory = with_file("api-keys-file = \"keys\"\n");
    std::fs::write(directory.path().join("keys"), "sk-secret\n").expect("a writable directory");
    let variables = [("SCONE_API_KEYS", "sk-hidden,bad one")];
    let output = serve(directory.path(), &variables, &["--config", "scone.toml", "--print-config"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && printed.contains("\"keys\""), "{printed}");
    // One that has both is told to keep one; one whose variable is wrong, which entry is.
    let both = refused(directory.path(), &variables, &["--config", "scone.toml"]);
    let wrong = refused(directory.path(), &variables, &[]);
    assert!(both.contains("SCONE_API_KEYS") && wrong.contains("SCONE_API_KEYS, key 2"), "{both} {wrong}");
    for said in [printed, both, wrong] {
        assert!(!["secret", "hidden", "bad one"].iter().any(|word| said.contains(word)), "{said}");
    }
}
