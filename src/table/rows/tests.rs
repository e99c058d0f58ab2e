//! Every place for rows gives what the plain mapping gives.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use crate::table::{DirectReads, Placement, RowFormat, RowType, Table, TableError, testing};

const ROWS: usize = 400;
const DIM: usize = 37;

fn open(path: &Path, placement: Placement) -> Table {
    let (mut last, mut told) = (0, 0);
    let table = Table::open_with(path, placement, &mut |done, total| {
        assert!(last < done && done <= total);
        (last, told) = (done, total);
    });
    assert_eq!(last, told, "{placement:?}");
    table.unwrap()
}

fn direct(cache: u64, queue_depth: usize, reads: DirectReads) -> Placement {
    Placement::Direct { cache, queue_depth, reads }
}

/// Every mode, with budgets of nothing, of a row, of a few and of more than all.
fn placements() -> Vec<Placement> {
    let mut placements = vec![
        Placement::Ram { lock: false, huge_pages: false },
        Placement::Ram { lock: true, huge_pages: false },
        Placement::Ram { lock: false, huge_pages: true },
        Placement::Mmap { prefault: 0 },
        Placement::Mmap { prefault: 5000 },
        Placement::Mmap { prefault: u64::MAX },
    ];
    for reads in [DirectReads::Ring, DirectReads::Threads] {
        for (cache, depth) in [(0, 1), (200, 3), (5000, 64), (1 << 30, 128)] {
            placements.push(direct(cache, depth, reads));
        }
    }
    placements
}

fn gather(table: &Table, ranks: &[u32]) -> Result<Vec<f32>, TableError> {
    let mut out = vec![f32::NAN; ranks.len() * table.dim()];
    table.gather(ranks, &mut out).map(|()| out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Several threads at a time, duplicates, any order, nothing at all, rows read ahead or not.
    #[test]
    fn every_placement_gives_the_same_rows(
        row_type in prop::sample::select(RowType::ALL.to_vec()),
        align in prop::sample::select(vec![1, 8, 512]),
        batches in prop::collection::vec(prop::collection::vec(0..ROWS as u32, 0..90), 1..12),
        threads in 1_usize..5,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let format = RowFormat { align, ..RowFormat::packed(row_type, DIM) };
        testing::write_as(&path, format, &testing::set(ROWS, 2));
        let plain = Table::open(&path).unwrap();
        let rows = plain.len() as u32;
        let batches: Vec<Vec<u32>> =
            batches.into_iter().map(|batch| batch.into_iter().map(|rank| rank % rows).collect()).collect();
        for placement in placements() {
            let table = open(&path, placement);
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (table, plain, batches) = (&table, &plain, &batches);
                    scope.spawn(move || {
                        for (i, batch) in batches.iter().enumerate() {
                            if (i + thread) % 3 == 0 {
                                table.prefetch(batch);
                            }
                            assert_eq!(gather(table, batch).unwrap(), gather(plain, batch).unwrap(), "{placement:?}");
                        }
                    });
                }
            });
            let wrong = [3, rows, u32::MAX];
            let error = gather(&table, &wrong).unwrap_err().to_string();
            prop_assert_eq!(error, gather(&plain, &wrong).unwrap_err().to_string());
            let asked = batches.iter().map(Vec::len).sum::<usize>() * threads;
            let metrics = table.metrics().snapshot();
            prop_assert_eq!(metrics.rows_cache + metrics.rows_memory + metrics.rows_disk, asked as u64);
        }
    }
}

#[test]
fn large_rows_and_large_batches() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table.safetensors");
    // Rows of a size that ends in the middle of a block, longer than what is merged, more than a reader takes at once.
    let dim = 40_001;
    testing::write(&path, RowType::Bf16, dim, &testing::set(60, 2));
    let plain = Table::open(&path).unwrap();
    let ranks: Vec<u32> = (0..500).map(|i| (i * 7919) % plain.len() as u32).collect();
    let expected = gather(&plain, &ranks).unwrap();
    for placement in placements() {
        assert!(gather(&open(&path, placement), &ranks).unwrap() == expected, "{placement:?}");
    }
}

#[test]
fn a_cache_is_read_from() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table.safetensors");
    testing::write(&path, RowType::Int8, DIM, &testing::set(ROWS, 2));
    for reads in [DirectReads::Ring, DirectReads::Threads] {
        let table = open(&path, direct(1 << 20, 8, reads));
        table.prefetch(&[5, 6, 5, 7, u32::MAX]);
        gather(&table, &[5, 6, 9, 9]).unwrap();
        gather(&table, &[9, 7]).unwrap();
        let metrics = table.metrics().snapshot();
        // Row 9 was wanted twice before it was there: one read, two rows from the disk.
        assert_eq!((metrics.rows_prefetched, metrics.rows_cache, metrics.rows_disk), (3, 4, 2));
        assert!(metrics.disk_bytes >= 4 * 37 && metrics.row_bytes == 6 * 37);
    }
}

#[test]
fn a_file_that_is_cut_fails_the_batch_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table.safetensors");
    for placement in placements() {
        testing::write(&path, RowType::F32, 1000, &testing::set(300, 2));
        let (plain, table) = (Table::open(&path).unwrap(), open(&path, placement));
        let whole = fs::read(&path).unwrap();
        let ranks: Vec<u32> = (0..table.len() as u32).rev().collect();
        gather(&table, &[299]).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(9000).unwrap();
        for table in [&plain, &table, &plain, &table] {
            let error = gather(table, &ranks).unwrap_err().to_string();
            assert!(
                error.contains("table.safetensors") && error.contains("reload"),
                "{placement:?}: {error}"
            );
            // The index is gone too; whatever it says, the check says not to believe it.
            let _ = table.index().matches(&[5, 9, 5, 9], 0);
            assert!(table.check().is_err());
        }
        // As it was, but not to be trusted: pages were replaced, or at least it was written.
        fs::write(&path, whole).unwrap();
        assert!(plain.check().is_err() && gather(&table, &ranks).is_err());
        assert!(!table.is_replaced());
        gather(&open(&path, placement), &ranks).unwrap();
    }
}

#[test]
fn a_file_that_was_written_to_is_noticed_and_one_that_was_replaced_is_not_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table.safetensors");
    testing::write(&path, RowType::F32, 4, &testing::set(30, 2));
    for placement in placements() {
        let table = open(&path, placement);
        testing::write(&path, RowType::F32, 4, &testing::set(30, 2));
        assert!(table.is_replaced());
        gather(&table, &[1, 2, 3]).unwrap();
        let table = open(&path, placement);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let error = gather(&table, &[1]).unwrap_err().to_string();
        assert!(!table.is_replaced() && error.contains("written to"), "{error}");
    }
}
