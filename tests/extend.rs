//! `scone table extend`: the same model with the f-grams of a second corpus.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "common/tiny.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
mod tiny;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scone::fgram::{FgramSet, Policy, parquet, rank_order};
use scone::model::ModelDirectory;
use scone::table::RowType;
use scone::tokenizer::Tokenizer;

/// Runs `scone` with these arguments, paths among them relative to `directory`.
fn scone(directory: &Path, arguments: &str) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scone"));
    command.args(arguments.split_whitespace()).current_dir(directory).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// All n-grams that occur twice in a text of other phrases than the model's.
fn other_fgrams(tokenizer: &Tokenizer, max_n: usize) -> FgramSet {
    let text = "the wind and the sea, of the night and of the ship. ".repeat(3)
        + "held in the night. held in the sea.";
    let tokens = tokenizer.encode(&text).unwrap();
    let mut counts: HashMap<&[u32], u64> = HashMap::new();
    for n in 2..=max_n {
        for gram in tokens.windows(n) {
            *counts.entry(gram).or_default() += 1;
        }
    }
    let mut ranked: Vec<(&[u32], u64)> = counts.into_iter().filter(|&(_, count)| count > 1).collect();
    ranked.sort_by(|&a, &b| rank_order(a, b));
    let policy = Policy {
        max_n,
        special_tokens: tokenizer.special_tokens().to_vec(),
        tokenizer_sha256: tokenizer.sha256().to_owned(),
    };
    FgramSet::from_ranked(policy, ranked).unwrap()
}

fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_model_is_extended_by_the_f_grams_of_another_corpus() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let run = |arguments: &str| scone(temporary.path(), arguments).unwrap();
    let model = tiny::write(&at("model"), 4, RowType::F32);
    let new = other_fgrams(model.tokenizer(), 4);
    parquet::write(&new, at("new.parquet")).unwrap();
    let before = files(&at("model"));
    let extend = "table extend model --fgrams new.parquet --output larger";
    let said = run(extend);
    assert!(files(&at("model")) == before, "the model itself has changed");

    // Everything fits, and every row is what the f-gram model computes.
    run("table verify larger --all");
    let larger = ModelDirectory::open(&at("larger")).unwrap();
    let (old, table) =
        (tiny::fgrams(model.tokenizer()), larger.open_table(&at("larger/table.safetensors")).unwrap());
    assert!(said.contains(&format!("300 f-grams and {} more", table.len() - 300)), "{said}");
    for set in [&old, &new] {
        for rank in 0..set.len() as u32 {
            assert!(table.index().rank(&set.tokens(rank).unwrap()).is_some());
        }
    }
    assert!(
        table.len() > 320 && table.len() < 300 + new.len(),
        "the sets overlap, and neither holds the other"
    );
    assert_eq!(parquet::read(at("larger/fgrams.parquet")).unwrap().sha256(), table.identity().fgrams);

    // An f-gram that was there keeps its row, bit for bit, for the type of rows is the old table's; the model is the same, byte for byte.
    let own = model.open_table(&at("model/table.safetensors")).unwrap();
    let row = |table: &scone::table::Table, rank: u32| {
        let mut row = vec![0f32; table.dim()];
        table.gather(&[rank], &mut row).unwrap();
        row
    };
    for rank in 0..own.len() as u32 {
        let moved = table.index().rank(&own.index().tokens(rank).unwrap()).unwrap();
        assert_eq!(row(&own, rank), row(&table, moved), "f-gram {rank}, now {moved}");
    }
    for name in ["model.safetensors", "fgram_model/model.safetensors", "config.json", "tokenizer.json"] {
        assert!(
            std::fs::read(at("model").join(name)).unwrap() == std::fs::read(at("larger").join(name)).unwrap()
        );
    }

    // Served as it is, and made again over itself the same.
    run("generate larger --prompt the --max-tokens 3");
    let first = files(&at("larger"));
    run(extend);
    assert!(files(&at("larger")) == first);
}

#[test]
fn what_cannot_be_joined_is_refused_and_nothing_is_left() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let model = tiny::write(&at("model"), 4, RowType::F32);
    let own = tiny::fgrams(model.tokenizer());
    let write = |name: &str, set: &FgramSet| parquet::write(set, at(name)).unwrap();
    let new = other_fgrams(model.tokenizer(), 4);
    write("own.parquet", &own);
    write("new.parquet", &new);
    write("long.parquet", &other_fgrams(model.tokenizer(), 5));
    let policy = Policy { tokenizer_sha256: "0".repeat(64), ..new.policy().clone() };
    write(
        "foreign.parquet",
        &FgramSet::from_keys(policy, new.index().keys().to_vec(), new.counts().to_vec()),
    );
    let refused = |arguments: &str, what: &str| {
        let error = scone(temporary.path(), &format!("table extend {arguments}")).unwrap_err();
        assert!(error.contains(what), "{arguments}: {error}");
        assert!(!at("out").exists());
    };
    refused("model --fgrams own.parquet --output out", "in the table already");
    refused("model --fgrams long.parquet --output out", "--max-n 4");
    refused("model --fgrams foreign.parquet --output out", "different tokenizers");
    refused("model --fgrams new.parquet --output model", "choose another --output");
    std::fs::rename(at("model/scone.json"), at("scone.json")).unwrap();
    refused("model --fgrams new.parquet --output out", "is a baseline");
}
