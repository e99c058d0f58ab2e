//! The way of examples/train-your-own.sh, on a small part of the same text and with a tiny model, through the programs
//! themselves: from text to a served completion.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const SCONE: &str = env!("CARGO_BIN_EXE_scone");
const TRAIN: &str = env!("CARGO_BIN_EXE_scone-train");

/// `program` in `directory`, whatever the environment of the test says.
fn command(program: &str, directory: &Path, arguments: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).args(arguments.split_whitespace()).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    command
}

fn output(program: &str, directory: &Path, arguments: &str) -> Output {
    command(program, directory, arguments).output().expect("the program starts")
}

/// What it prints on standard output; it must succeed.
fn run(program: &str, directory: &Path, arguments: &str) -> String {
    let output = output(program, directory, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn run_json(program: &str, directory: &Path, arguments: &str) -> Value {
    let printed = run(program, directory, arguments);
    serde_json::from_str(&printed).unwrap_or_else(|why| panic!("{arguments}: {why} in\n{printed}"))
}

fn number(document: &Value, name: &str) -> f64 {
    document[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {document}"))
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sotu")
}

/// The first addresses of the examples, and the beginning of those that are held out.
fn write_text(directory: &Path) {
    let jsonl = std::fs::read_to_string(examples().join("sotu-small.jsonl")).expect("the example");
    let part: String = jsonl.split_inclusive('\n').take(8).collect();
    std::fs::write(directory.join("train.jsonl"), part).expect("a writable directory");
    let held_out = std::fs::read_to_string(examples().join("held-out.txt")).expect("the example");
    let part: String = held_out.chars().take(8_000).collect();
    std::fs::write(directory.join("held-out.txt"), part).expect("a writable directory");
}

/// The example's run, shrunk.
fn write_config(directory: &Path) {
    let mut config = read_toml("scone.toml");
    for (section, name, value) in [
        ("model", "hidden_size", 32),
        ("model", "intermediate_size", 64),
        ("model", "layers", 2),
        ("model", "heads", 4),
        ("model", "kv_heads", 2),
        ("model", "context", 64),
        ("train", "steps", 50),
        ("train", "batch", 8),
        ("train", "warmup_steps", 5),
        ("validation", "every", 25),
        ("validation", "tokens", 2_000),
        ("checkpoint", "every", 25),
    ] {
        config[section][name] = toml::Value::Integer(value);
    }
    config["checkpoint"]["dtype"] = "f32".into();
    std::fs::write(directory.join("scone.toml"), config.to_string()).expect("a writable directory");
}

fn read_toml(name: &str) -> toml::Table {
    let text = std::fs::read_to_string(examples().join(name)).expect("the example");
    text.parse().expect("TOML")
}

#[test]
fn from_text_to_completions() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = directory.path();
    write_text(at);
    write_config(at);

    run(TRAIN, at, "prepare train.jsonl --output dataset --vocab-size 512 --validation 0.2");
    run(TRAIN, at, "mine dataset --output fgrams.parquet --max-n 4 --size 3000");
    run(TRAIN, at, "tag dataset --fgrams fgrams.parquet");
    run(TRAIN, at, "fit --config scone.toml --output run");
    run(SCONE, at, "table build run/model --fgrams fgrams.parquet --dtype f32");

    let inspected = run_json(SCONE, at, "table inspect run/model --json");
    let verified = run_json(SCONE, at, "table verify run/model --all --json");
    assert_eq!(verified["ok"], true);
    assert_eq!(verified["recomputed"]["rows"], inspected["rows"], "not all rows were recomputed: {verified}");

    the_table_stands_in_for_the_fgram_model(at);
    matches_grow_by_one_token_at_most(at);
    greedy_text_is_the_same_alone_and_served(at);
    a_changed_byte_is_found(&at.join("run/model/table.safetensors"), at);
}

fn the_table_stands_in_for_the_fgram_model(at: &Path) {
    let table = run_json(SCONE, at, "eval run/model --text held-out.txt --json");
    let model = run_json(SCONE, at, "eval run/model --text held-out.txt --embeddings model --json");
    assert_eq!(table["predicted"], model["predicted"]);
    let (from_table, from_model) = (number(&table, "nll"), number(&model, "nll"));
    assert!(
        (from_table - from_model).abs() < 1e-5,
        "mean loss: table {from_table}, f-gram model {from_model}"
    );
    assert!(number(&table, "hit_rate") > 0.3, "hardly an f-gram was looked up: {table}");
    assert!(from_table < 512f64.ln() - 0.5, "nothing was learned: {table}");
}

/// By closure a match is at most one token longer than the one before it.
fn matches_grow_by_one_token_at_most(at: &Path) {
    let mut explain = command(SCONE, at, "explain run/model --json --text -");
    explain.stdin(std::fs::File::open(at.join("held-out.txt")).expect("held-out text"));
    let printed = explain.output().expect("the program starts").stdout;
    let document: Value = serde_json::from_slice(&printed).expect("JSON");
    let tokens = document["tokens"].as_array().expect("tokens");
    let lengths: Vec<_> = tokens.iter().map(|token| token["match"].as_u64().expect("a length")).collect();
    assert_eq!(lengths.first(), Some(&1), "nothing lies before the first token");
    assert!(lengths.contains(&3), "no f-gram of three tokens in {} tokens", lengths.len());
    assert!(
        lengths.windows(2).all(|pair| pair[1] <= pair[0] + 1),
        "a match grew by more than one: {lengths:?}"
    );
}

/// The server's child process, ended when the test is.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended by itself where this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn greedy_text_is_the_same_alone_and_served(at: &Path) {
    let alone = run(SCONE, at, "generate run/model --prompt Government --max-tokens 20 --temperature 0");
    let mut serve = command(SCONE, at, "serve run/model --listen 127.0.0.1:0");
    let mut server =
        Server(serve.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the server starts"));
    let printed = BufReader::new(server.0.stdout.take().expect("piped"));
    let address = printed
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            line.split_once("listening on http://").map(|(_, address)| address.trim().to_owned())
        })
        .expect("the server says where it listens");
    let body = r#"{"prompt": "Government", "max_tokens": 20, "temperature": 0}"#;
    let mut connection = TcpStream::connect(&address).expect("the server listens");
    write!(
        connection,
        "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("the server reads");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("the server answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    let answer: Value = serde_json::from_str(body).expect("JSON");
    let served = answer["choices"][0]["text"].as_str().expect("a text");
    assert!(!served.is_empty());
    assert!(alone.trim_end().ends_with(served.trim_end()), "alone {alone:?}, served {served:?}");
}

fn a_changed_byte_is_found(table: &Path, at: &Path) {
    let good = std::fs::read(table).expect("the table");
    // In the header, the rows, and what lies at the end.
    for place in [20, good.len() / 2, good.len() - 1] {
        let mut damaged = good.clone();
        damaged[place] ^= 1;
        std::fs::write(table, damaged).expect("a writable table");
        let output = output(SCONE, at, "table verify run/model --rows 0");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "byte {place} of {} was changed: {errors}", good.len());
        assert!(
            errors.contains("table.safetensors") && !errors.contains("panicked"),
            "byte {place}: {errors}"
        );
    }
    std::fs::write(table, good).expect("a writable table");
    run(SCONE, at, "table verify run/model --rows 0");
}

#[test]
fn the_examples_runs_differ_only_in_their_fgrams() {
    let mut scone = read_toml("scone.toml");
    assert!(scone.remove("fgram").is_some(), "scone.toml has no [fgram] section");
    assert_eq!(scone, read_toml("baseline.toml"));
}
