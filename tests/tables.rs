//! A table and the model it belongs to: what is stored is what the f-gram model computes, and nothing else is accepted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/tiny.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
mod tiny;

use scone::model::{ModelDirectory, check_rows, perplexity};
use scone::table::{RowType, Table};

fn nll(directory: &ModelDirectory, from_model: bool) -> f64 {
    let mut model = if from_model {
        directory.load_without_rows(None, &tiny::runtime(512)).unwrap()
    } else {
        directory.load(None, &tiny::runtime(512)).unwrap()
    };
    let text = tiny::text();
    let tokens = directory.tokenizer().encode(&text).unwrap();
    let special = directory.tokenizer().special_tokens();
    let result = perplexity(&mut model, special, &tokens, text.len(), (64, 32), &mut |_| {}).unwrap();
    assert!(result.hit_rate > 0.5 && result.mean_match > 1.5, "{result:?}");
    assert_eq!(result.predicted, tokens.len() - 1);
    result.nll
}

#[test]
fn loss_from_the_table_is_the_loss_from_the_model_within_the_precision_of_the_rows() {
    for (row_type, tolerance) in
        [(RowType::F32, 1e-5), (RowType::F16, 1e-3), (RowType::Bf16, 1e-2), (RowType::Int8, 5e-3)]
    {
        let temporary = tempfile::tempdir().unwrap();
        let directory = tiny::write(temporary.path(), 4, row_type);
        let (table, model) = (nll(&directory, false), nll(&directory, true));
        assert!(
            (table - model).abs() < tolerance,
            "{row_type}: {table} from the table, {model} from the model"
        );
        let table = directory.open_table(&directory.table_path().unwrap()).unwrap();
        let check = check_rows(&directory, &table, usize::MAX, &mut |_| {}).unwrap();
        assert_eq!(check.rows, table.len());
    }
}

#[test]
fn a_table_of_another_model_is_refused_and_the_difference_named() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let a = tiny::write(a.path(), 5, RowType::F16);
    let b = tiny::write(b.path(), 6, RowType::F16);
    let error = a.open_table(&b.table_path().unwrap()).unwrap_err().to_string();
    assert!(error.contains("token embedding") && error.contains("f-gram model"), "{error}");
    assert!(
        !error.contains("tokenizer,") && !error.contains("f-gram set"),
        "only what differs is named: {error}"
    );
    let foreign = Table::open(b.table_path().unwrap()).unwrap();
    let error = check_rows(&a, &foreign, 100, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("row 0"), "{error}");
}

#[test]
fn a_changed_weight_makes_the_table_unfit() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = tiny::write(temporary.path(), 7, RowType::F32);
    for (file, part) in
        [("model.safetensors", "token embedding"), ("fgram_model/model.safetensors", "f-gram model")]
    {
        let path = directory.path().join(file);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        let tensors = safetensors::SafeTensors::deserialize(&good).unwrap();
        let name = if part == "token embedding" { "model.embed_tokens.weight" } else { "output_gain" };
        let at = tensors.tensor(name).unwrap().data().as_ptr() as usize - good.as_ptr() as usize;
        bad[at + 2] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let changed = ModelDirectory::open(directory.path()).unwrap();
        let error = changed.load(None, &tiny::runtime(16)).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
        std::fs::write(&path, &good).unwrap();
    }
}
