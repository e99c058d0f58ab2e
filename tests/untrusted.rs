//! A table is untrusted input: whatever the file holds, opening and using it never panics. The bounded twin of
//! `fuzz/fuzz_targets/open_table.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../fuzz/exercise.rs"]
mod exercise;

use std::path::Path;
use std::sync::OnceLock;

use exercise::exercise;
use proptest::prelude::*;
use scone::fgram::{FgramSet, Policy};
use scone::table::{Contents, Identity, RowFormat, RowType, TableWriter};

fn write(path: &Path, row_type: RowType) {
    let ranked: [(&[u32], u64); 6] =
        [(&[1, 4], 9), (&[4, 9], 8), (&[9, 3], 8), (&[1, 4, 9], 7), (&[4, 9, 3], 5), (&[1, 4, 9, 3], 5)];
    let policy = Policy { max_n: 4, special_tokens: vec![0], tokenizer_sha256: "ab".repeat(32) };
    let set = FgramSet::from_ranked(policy, ranked).unwrap();
    let hash = || "cd".repeat(32);
    let tokenizer = set.policy().tokenizer_sha256.clone();
    let identity = Identity { tokenizer, token_embedding: hash(), fgram_model: hash(), fgrams: set.sha256() };
    let format = RowFormat { align: 8, ..RowFormat::packed(row_type, 5) };
    let mut writer = TableWriter::open(path, format, Contents::of_set(&set), &identity).unwrap();
    writer.push(&[0.5; 30]).unwrap();
    writer.finish().unwrap();
}

/// A small table of each type.
fn tables() -> &'static [Vec<u8>] {
    static TABLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    TABLES.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table");
        [RowType::F32, RowType::Int8, RowType::Int4]
            .map(|row_type| {
                write(&path, row_type);
                assert!(exercise(&path));
                std::fs::read(&path).unwrap()
            })
            .to_vec()
    })
}

fn opens(bytes: &[u8]) -> bool {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    exercise(file.path())
}

/// A number as headers have them: small, a size, or absurd.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..40, 4000u64..5000, any::<u32>().prop_map(u64::from), any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn bytes_changed_anywhere(
        table in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = tables()[table].clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        opens(&bytes);
    }

    #[test]
    fn numbers_of_the_header_changed(
        table in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), number()), 1..4),
        length in prop_oneof![Just(None), number().prop_map(Some)],
    ) {
        let bytes = &tables()[table];
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header = String::from_utf8(bytes[8..end].to_vec()).unwrap();
        for (which, number) in changes {
            let digits: Vec<_> = header.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).collect();
            let start = digits[which.index(digits.len())];
            let rest = header[start..].find(|c: char| !c.is_ascii_digit()).unwrap();
            header.replace_range(start..start + rest, &number.to_string());
        }
        // The data stays where the header's length says, or the header becomes shorter or longer than it says.
        let padded = format!("{header:<width$}", width = end - 8);
        let length = length.unwrap_or(padded.len() as u64);
        let file = [&length.to_le_bytes()[..], padded.as_bytes(), &bytes[end..]].concat();
        opens(&file);
    }

    #[test]
    fn other_lengths(table in 0usize..3, len in any::<prop::sample::Index>(), more in 0usize..5000) {
        let bytes = &tables()[table];
        prop_assert!(!opens(&bytes[..len.index(bytes.len())]));
        if more > 0 {
            prop_assert!(!opens(&[&bytes[..], &vec![0; more]].concat()));
        }
    }

    #[test]
    fn anything(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(!opens(&bytes));
    }
}
