//! Both programs as someone at a terminal meets them: help that teaches, and errors that say what was wrong.

use std::path::Path;
use std::process::{Command, Output, Stdio};

const SCONE: &str = env!("CARGO_BIN_EXE_scone");
const TRAIN: &str = env!("CARGO_BIN_EXE_scone-train");

/// Every sub-command, with the arguments its help must speak of, and a call with a file that is not there; `table plan`
/// reads no file.
const COMMANDS: [(&str, &str, &str, &str); 21] = [
    (
        SCONE,
        "serve",
        "MODEL_DIR --listen --table --table-mode --table-cache --max-sequences --kv-memory --speculate",
        "serve missing",
    ),
    (
        SCONE,
        "generate",
        "MODEL_DIR --prompt --max-tokens --temperature --seed",
        "generate missing --prompt a",
    ),
    (SCONE, "explain", "MODEL_DIR --text --json", "explain missing --text a"),
    (SCONE, "eval", "MODEL_DIR --text --embeddings --json", "eval --text missing"),
    (SCONE, "table build", "MODEL_DIR --fgrams --dtype --row-align --shard --output", "table build missing"),
    (SCONE, "table merge", "PART --output", "table merge missing --output out"),
    (
        SCONE,
        "table extend",
        "MODEL_DIR --fgrams --dtype --output",
        "table extend missing --fgrams a --output out",
    ),
    (SCONE, "table quantize", "MODEL_DIR --dtype --output", "table quantize missing --output out"),
    (SCONE, "table plan", "--rows --dim --dtype --fgram-params", ""),
    (SCONE, "table verify", "MODEL_DIR --table --json", "table verify missing"),
    (SCONE, "table inspect", "MODEL_DIR --json", "table inspect --table missing"),
    (SCONE, "table export", "MODEL_DIR --output --format --dtype", "table export missing --output out"),
    (SCONE, "bench", "--target --spawn --concurrency --rate --quality --json", "bench --spawn a=missing"),
    (TRAIN, "prepare", "INPUT --output --tokenizer --vocab-size --validation", PREPARE),
    (TRAIN, "mine", "DATASET --output --max-n --size --min-count", "mine missing --output out"),
    (TRAIN, "tag", "DATASET --fgrams", "tag missing --fgrams missing"),
    (
        TRAIN,
        "fit",
        "--config --output --resume --init-from --freeze --print-config",
        "fit --config missing --output out",
    ),
    (
        TRAIN,
        "measure",
        "RUN_DIR --text --table --row-dtype --discard-table --dataset --fgrams --json",
        "measure missing",
    ),
    (TRAIN, "card", "RUN_DIR --against --title --license --output", "card missing"),
    (TRAIN, "compare", "RUN_DIR --output --by --of --series --show --json", "compare missing"),
    (TRAIN, "synthesize", "--config --output --row-dtype", "synthesize --config missing --output out"),
];
const PREPARE: &str = "prepare missing --output out --vocab-size 300";

/// Runs in an empty directory, whatever the environment of the test says.
fn run(program: &str, arguments: &str) -> Output {
    let empty = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(program);
    command.current_dir(empty.path()).args(arguments.split_whitespace()).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    let output = command.output().expect("the program starts");
    let left = std::fs::read_dir(empty.path()).expect("it is still there").count();
    assert_eq!(left, 0, "`{}` left files behind", shown(program, arguments));
    output
}

fn shown(program: &str, arguments: &str) -> String {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    format!("{name} {arguments}")
}

/// Checks the exit code and that nothing panicked; returns standard output and standard error.
fn expect(code: i32, program: &str, arguments: &str) -> (String, String) {
    let output = run(program, arguments);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    let shown = shown(program, arguments);
    assert_eq!(output.status.code(), Some(code), "`{shown}`\n{out}{err}");
    assert!(!err.contains("panicked") && !err.contains("RUST_BACKTRACE"), "`{shown}` panicked:\n{err}");
    (out, err)
}

/// The sub-commands that a help text lists, `help` itself left out.
fn listed(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// The sub-commands of `program`, those of sub-commands included: `table build`, not `table`.
fn sub_commands(program: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in listed(&expect(0, program, "--help").0) {
        let below = listed(&expect(0, program, &format!("{name} --help")).0);
        if below.is_empty() {
            found.push(name);
        } else {
            found.extend(below.iter().map(|below| format!("{name} {below}")));
        }
    }
    found
}

#[test]
fn this_test_knows_every_sub_command() {
    for program in [SCONE, TRAIN] {
        let known: Vec<_> =
            COMMANDS.iter().filter(|command| command.0 == program).map(|command| command.1).collect();
        assert_eq!(sub_commands(program), known, "`{}`: bring COMMANDS up to date", shown(program, "--help"));
    }
}

#[test]
fn help_speaks_of_every_argument_that_matters() {
    for (program, name, arguments, _) in COMMANDS {
        let (help, _) = expect(0, program, &format!("{name} --help"));
        for argument in arguments.split_whitespace() {
            assert!(
                help.contains(argument),
                "`{}` does not mention {argument}:\n{help}",
                shown(program, name)
            );
        }
    }
}

#[test]
fn wrong_usage_exits_with_2_and_shows_the_usage() {
    for (program, name, ..) in COMMANDS {
        let (_, err) = expect(2, program, &format!("{name} --no-such-flag"));
        assert!(
            err.contains("--no-such-flag") && err.contains("--help"),
            "`{}`:\n{err}",
            shown(program, name)
        );
    }
    for program in [SCONE, TRAIN] {
        expect(2, program, "no-such-command");
        let (_, err) = expect(2, program, "");
        assert!(err.contains("Usage:"), "`{}` alone:\n{err}", shown(program, ""));
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    for (program, _, _, arguments) in COMMANDS.into_iter().filter(|(_, _, _, call)| !call.is_empty()) {
        let (out, err) = expect(1, program, arguments);
        let shown = shown(program, arguments);
        let (_, error) =
            err.split_once("error: ").unwrap_or_else(|| panic!("`{shown}` says no `error: `:\n{err}"));
        assert!(error.contains("missing"), "`{shown}` does not name the file: {error}");
        assert_eq!(out, "", "`{shown}` printed on standard output, though it failed");
    }
}

#[test]
fn versions_are_the_packages() {
    for program in [SCONE, TRAIN] {
        let (out, _) = expect(0, program, "--version");
        assert!(out.trim_end().ends_with(env!("CARGO_PKG_VERSION")), "{out}");
    }
}
