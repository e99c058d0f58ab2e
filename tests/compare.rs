//! `scone-train compare` as it is called: a table on standard output, a chart in a file, and errors that help.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

fn make(root: &Path, name: &str, fgrams: Option<u64>, losses: &[f64]) {
    let directory = root.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let section = if fgrams.is_some() { "[fgram]\nset = \"set.parquet\"\n" } else { "" };
    std::fs::write(directory.join("config.toml"), format!("seed = 3\n{section}")).unwrap();
    let line = |(i, loss): (usize, &f64)| {
        format!(
            "{{\"step\":{i},\"tokens\":{},\"loss\":6,\"validation_loss\":{loss},\"learning_rate\":0.1,\
             \"gradient_norm\":1,\"tokens_per_second\":5000}}\n",
            100 * i
        )
    };
    std::fs::write(directory.join("metrics.jsonl"), losses.iter().enumerate().map(line).collect::<String>())
        .unwrap();
    if let Some(fgrams) = fgrams {
        std::fs::write(directory.join("results.json"), format!("{{\"fgrams\":{fgrams}}}")).unwrap();
    }
}

fn compare(root: &Path, arguments: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scone-train"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    let output =
        command.current_dir(root).arg("compare").args(arguments.split_whitespace()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_table_and_a_chart() {
    let root = tempfile::tempdir().unwrap();
    make(root.path(), "base", None, &[6.0, 5.0, 4.6]);
    make(root.path(), "other/base", None, &[6.0, 5.1]);
    make(root.path(), "small", Some(10_000), &[6.0, 5.0, 4.5]);
    make(root.path(), "large", Some(100_000), &[6.0, 4.9, 4.4]);
    let (code, out, err) = compare(root.path(), "base small large --output loss.svg");
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(out.lines().count(), 5);
    assert!(out.contains("-9.52 %") && out.contains("-18.13 %"), "{out}");
    let svg = std::fs::read_to_string(root.path().join("loss.svg")).unwrap();
    assert!(svg.contains(">small 4.5000<") && svg.contains(">base 4.6000<"), "{svg}");

    let (code, out, _) = compare(root.path(), "base small large --by fgrams --output fgrams.svg");
    assert_eq!((code, out.lines().count()), (Some(0), 5), "{out}");
    let svg = std::fs::read_to_string(root.path().join("fgrams.svg")).unwrap();
    assert_eq!(svg.matches("<circle").count(), 2);

    // Where names do not tell runs apart, paths do.
    let (_, out, _) = compare(root.path(), "base other/base");
    assert!(out.contains("| other/base |") && out.contains("to base"), "{out}");
    let (_, out, _) = compare(root.path(), "base small --json");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["runs"][1]["figures"]["fgrams"], 10_000);
    let (_, out, _) = compare(root.path(), "base small large --by fgrams --json");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["points"][2]["at"], 100_000.0);
}

#[test]
fn errors_say_what_there_is_instead() {
    let root = tempfile::tempdir().unwrap();
    make(root.path(), "base", None, &[6.0, 5.0]);
    make(root.path(), "untrained", None, &[]);
    let error = |arguments: &str| {
        let (code, out, err) = compare(root.path(), arguments);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        err
    };
    assert!(error("base --by learning_rat").contains("There are: best.loss"));
    assert!(error("base gone").contains("gone"));
    assert!(error("untrained --output chart.svg").contains("no run has been validated"));
    assert!(error("base --output no/such/place.svg").contains("no/such/place.svg"));
}
