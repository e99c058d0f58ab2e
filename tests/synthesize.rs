//! `scone-train synthesize`: every identity fits, rows are the f-gram model's, and the main model is the baseline's.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const RUN: &str = r#"
[data]
dataset = "data"
[model]
hidden_size = 32
intermediate_size = 48
layers = 2
heads = 4
kv_heads = 2
context = 64
[checkpoint]
dtype = "f32"
[fgram]
set = "fgrams.parquet"
layers = 1
"#;

fn run(program: &str, directory: &Path, arguments: &str) -> String {
    let mut command = Command::new(program);
    command.current_dir(directory).args(arguments.split_whitespace());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_model_is_its_baseline_with_a_table_that_fits() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (scone, train) = (env!("CARGO_BIN_EXE_scone"), env!("CARGO_BIN_EXE_scone-train"));
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sotu/held-out.txt");
    let text: String = std::fs::read_to_string(text).unwrap().chars().take(20_000).collect();
    std::fs::write(directory.join("text.txt"), &text).unwrap();
    std::fs::write(directory.join("run.toml"), RUN).unwrap();
    run(train, directory, "prepare text.txt --output data --vocab-size 400 --validation 0");
    run(train, directory, "mine data --output fgrams.parquet --size 500 --min-count 2");
    let made =
        run(train, directory, "synthesize --config run.toml --output synthetic --row-dtype f32 --threads 1");
    assert_eq!(made, "synthetic/baseline\nsynthetic/scone\n");

    // Recomputes rows through the f-gram model.
    run(scone, directory, "table verify synthetic/scone");
    let eval = |model: &str| -> Value {
        let line = format!("eval synthetic/{model} --text text.txt --json");
        serde_json::from_str(&run(scone, directory, &line)).unwrap()
    };
    let (scone, baseline) = (eval("scone"), eval("baseline"));
    assert!(scone["hit_rate"].as_f64().unwrap() > 0.3, "{scone}");
    let difference = scone["nll"].as_f64().unwrap() - baseline["nll"].as_f64().unwrap();
    assert!(difference.abs() < 1e-5, "{scone} {baseline}");
}
