use std::sync::OnceLock;

use proptest::prelude::*;

use super::super::{ExportType, Format, describe, export, testing, verify};
use super::*;

#[test]
fn gathers_rows_in_the_order_asked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table.safetensors");
    for row_type in [RowType::F32, RowType::F16, RowType::Bf16, RowType::Int8] {
        let set = testing::set(300, 2);
        testing::write(&path, row_type, 9, &set);
        let table = Table::open(&path).unwrap();
        let ranks = [299, 0, 17, 17, 128];
        let mut out = vec![f32::NAN; ranks.len() * 9];
        table.gather(&ranks, &mut out).unwrap();
        let slow: Vec<f32> = ranks.iter().flat_map(|&rank| table.row(rank).unwrap()).collect();
        assert_eq!(out, slow);
        let error = table.gather(&[5, 300], &mut out[..18]).unwrap_err().to_string();
        assert!(error.contains("no row 300") && error.contains("it has 300"), "{error}");
        assert!(table.gather(&[5], &mut out).is_err());
        assert_eq!((table.count(300), table.length(300), table.row_bytes(300)), (0, None, None));
    }
}

#[test]
fn finds_what_the_set_finds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table.safetensors");
    let set = testing::set(800, 2);
    testing::write(&path, RowType::F32, 1, &set);
    let table = Table::open(&path).unwrap();
    let text: Vec<u32> = (0..set.len() as u32).flat_map(|rank| set.tokens(rank).unwrap()).collect();
    assert_eq!(table.index().matches(&text, 0), set.index().matches(&text, 0));
}

#[test]
fn any_truncation_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table.safetensors");
    testing::write(&path, RowType::Int8, 5, &testing::set(60, 2));
    let len = fs::metadata(&path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(len + 1).unwrap();
    assert!(matches!(Table::open(&path), Err(TableError::Length { .. })));
    for len in (0..len).rev() {
        file.set_len(len).unwrap();
        let error = Table::open(&path).unwrap_err().to_string();
        assert!(error.contains("table.safetensors") && error.contains(&format!("{len} bytes")), "{error}");
    }
}

#[test]
fn other_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let refused = |words: &str| {
        let error = Table::open(&path).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("model.safetensors"), "wanted {words:?}: {error}");
    };
    refused("No such file");
    fs::create_dir(&path).unwrap();
    refused("not a regular file");
    fs::remove_dir(&path).unwrap();
    let weights = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &[0; 8]).unwrap();
    safetensors::serialize_to_file([("rows", weights)], None, &path).unwrap();
    refused("a safetensors file with other contents");
    fs::write(&path, "# A text\n").unwrap();
    refused("is not a scone table");
    testing::write(&path, RowType::F32, 2, &testing::set(20, 2));
    let old = fs::read(&path).unwrap();
    let replaced = |from: &str, to: &str| {
        let mut file = old.clone();
        let at = file.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        file[at..at + from.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, file).unwrap();
    };
    replaced(r#""version":"2""#, r#""version":"1""#);
    refused("a table of version 1");
    replaced(r#""dim":"2""#, r#""dim":"3""#);
    refused("rows of 12 bytes cannot lie 8 bytes apart");
    replaced(r#""max_n":"5""#, r#""max_n":"1""#);
    refused("`max_n` is 1");
    replaced(r#""special_tokens":"[0,2]""#, r#""special_tokens":"[2,0]""#);
    refused("`special_tokens`");
}

/// A small table's bytes.
fn good() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        testing::write(&path, RowType::Int8, 3, &testing::set(80, 2));
        fs::read(&path).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever the bytes: an error or some answer, never a panic.
    #[test]
    fn damage_does_no_harm(
        in_header in prop::collection::vec((8..1300_usize, prop::sample::select(b"0123456789,\":[]{} U".to_vec())), 0..3),
        anywhere in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        // From where the index starts.
        in_index in prop::collection::vec((8192..10_000_usize, any::<u8>()), 0..40),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
        resealed in any::<bool>(),
    ) {
        let mut file = good().to_vec();
        for (at, byte) in in_header.into_iter().chain(in_index) {
            if let Some(old) = file.get_mut(at) { *old = byte }
        }
        for (at, byte) in anywhere {
            *at.get_mut(&mut file) = byte;
        }
        file.truncate(cut.map_or(file.len(), |cut| cut.index(file.len())));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        fs::write(&path, file).unwrap();
        if resealed && Table::open(&path).is_ok() {
            // With checksums that match, so that the checks behind them see the damage too.
            testing::tamper(&path, |_, _| ());
        }
        if let Ok(table) = Table::open(&path) {
            let _ = verify(&table, |_| ());
            let _ = describe(&table).to_string();
            let ranks: Vec<u32> = (0..table.len() as u32).collect();
            let mut rows = vec![0.0; ranks.len() * table.dim()];
            table.gather(&ranks, &mut rows).unwrap();
            let text: Vec<u32> = (0..200).map(|i| (i * i) % 70).collect();
            for found in table.index().matches(&text, 0).into_iter().flatten() {
                table.row(found.rank).unwrap();
            }
            for rank in ranks.into_iter().chain([u32::MAX, 81]) {
                let _ = (table.count(rank), table.length(rank), table.index().tokens(rank));
            }
            let exported = directory.path().join("export");
            let _ = export(&table, &exported, Format::Safetensors, ExportType::F16);
            let _ = export(&table, &exported, Format::Parquet, ExportType::F32);
        }
    }
}
