//! The slow checks: everything that opening a table does not look at, short of computing its rows again.

use std::ops::Range;

use memmap2::Advice;
use rayon::prelude::*;
use serde::Serialize;

use super::format::BLOCK;
use super::{Table, TableError};
use crate::fgram::{self, Bucket, Index, Key, MAX_VOCABULARY};

/// What [`verify`] looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Bytes of the file, all of them under a checksum.
    pub bytes: u64,
    /// Checksums compared.
    pub checksums: usize,
    /// F-grams whose tokens, closure, order and place in the index were checked.
    pub fgrams: usize,
    /// Rows found to hold finite numbers only.
    pub rows: usize,
}

/// What is wrong, and where.
struct Fault {
    place: String,
    why: String,
}

impl Fault {
    fn of(self, table: &Table) -> TableError {
        let Self { place, why } = self;
        TableError::Damaged { path: table.path().to_owned(), place, why }
    }
}

fn fault<T>(place: impl Into<String>, why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { place: place.into(), why: why.into() })
}

/// Checks a table in full: the checksum of every byte; that the f-grams are allowed, in order of rank, closed under
/// prefix and suffix, all different and each found by the index; that they are the set of `fgrams_sha256`; that all
/// numbers are finite. Only [`Identity::fgram_model`](super::Identity) and what it computed is taken on trust.
///
/// `progress` is told, from any thread, how many more bytes have been checked; in the end they are all of the file's.
///
/// # Errors
/// For the first fault, with its place: a tensor and bytes of the file, or an f-gram.
pub fn verify(table: &Table, progress: impl Fn(u64) + Sync) -> Result<VerifyReport, TableError> {
    table.advise_rows(Advice::Sequential);
    let result = checksums(table, &progress).and_then(|checksums| {
        finite(table)?;
        counts(table)?;
        fgrams(table)?;
        Ok(VerifyReport { bytes: table.bytes(), checksums, fgrams: table.len(), rows: table.len() })
    });
    table.advise_rows(Advice::Random);
    result.map_err(|fault| fault.of(table))
}

/// Checks only that every byte is the one that was written.
pub(super) fn check_bytes(table: &Table, progress: &(impl Fn(u64) + Sync)) -> Result<(), TableError> {
    checksums(table, progress).map(|_| ()).map_err(|fault| fault.of(table))
}

fn checksums(table: &Table, progress: &(impl Fn(u64) + Sync)) -> Result<usize, Fault> {
    const WHY: &str = "its checksum does not match";
    let Some((last, before)) = table.checksums().split_last() else {
        return fault("`checksums`", "it is empty");
    };
    // First, since all others are judged by them.
    if crc32fast::hash(bytemuck::cast_slice(before)) != *last {
        return fault("`checksums`", "their own checksum does not match");
    }
    let Some((header, blocks)) = before.split_first() else { return fault("`checksums`", "it is too short") };
    if crc32fast::hash(table.header()) != *header {
        return fault(format!("the header (bytes 0 to {})", table.header().len()), WHY);
    }
    progress((table.header().len() + table.layout().checksums.len()) as u64);
    let covered = &table.data()[..table.layout().checksums.start];
    let bad = covered.par_chunks(BLOCK).zip(blocks).enumerate().find_map_first(|(i, (block, checksum))| {
        progress(block.len() as u64);
        (crc32fast::hash(block) != *checksum).then(|| i * BLOCK..i * BLOCK + block.len())
    });
    match bad {
        Some(range) => fault(place(table, &range), WHY),
        None => Ok(table.checksums().len()),
    }
}

/// A stretch of the file in words: its bytes and the tensors that reach into it.
fn place(table: &Table, range: &Range<usize>) -> String {
    let overlaps = |of: &Range<usize>| of.start < range.end && range.start < of.end;
    let names: Vec<String> = table
        .layout()
        .tensors
        .iter()
        .filter(|tensor| overlaps(&tensor.range))
        .map(|tensor| match tensor.name {
            "rows" => {
                let row = table.dimensions().stride;
                let last = (range.end.min(tensor.range.end) - 1) / row;
                format!("`rows` {} to {last}", range.start / row)
            }
            name => format!("`{name}`"),
        })
        .collect();
    let start = table.header().len();
    format!("bytes {} to {} of the file ({})", start + range.start, start + range.end, names.join(", "))
}

/// Scales and rows.
fn finite(table: &Table) -> Result<(), Fault> {
    if let Some(rank) = table.scales().iter().position(|scale| !(scale.is_finite() && *scale > 0.0)) {
        return fault(format!("`scales`, row {rank}"), format!("{} cannot be a scale", table.scales()[rank]));
    }
    const AT_ONCE: usize = 256;
    let bad = (0..table.len().div_ceil(AT_ONCE)).into_par_iter().find_map_first(|part| {
        let ranks = part * AT_ONCE..table.len().min((part + 1) * AT_ONCE);
        let ranks: Vec<u32> = ranks.map(|rank| rank as u32).collect();
        let mut rows = vec![0.0; ranks.len() * table.dim()];
        let in_bounds = table.gather(&ranks, &mut rows).is_ok();
        let at = rows.iter().position(|x| !x.is_finite()).map(|at| at / table.dim());
        at.or((!in_bounds).then_some(0)).map(|at| ranks[at])
    });
    match bad {
        Some(rank) => fault(format!("`rows`, row {rank}"), "it has a number that is not finite"),
        None => Ok(()),
    }
}

fn counts(table: &Table) -> Result<(), Fault> {
    let (starts, values) = (table.count_starts(), table.count_values());
    let starts_ok = starts.first() == Some(&0)
        && starts.is_sorted_by(|a, b| a < b)
        && starts.last().is_some_and(|&last| (last as usize) < table.len());
    if !starts_ok {
        return fault("`count_starts`", "it does not rise from 0 to a rank");
    }
    if !values.is_sorted_by(|a, b| a > b) {
        return fault("`count_values`", "counts do not fall from run to run");
    }
    Ok(())
}

fn fgrams(table: &Table) -> Result<(), Fault> {
    let (index, keys) = (table.index(), table.keys());
    // By rank: the length, and the rank of the prefix (all tokens but the last; none for a bigram).
    let mut lengths: Vec<u8> = Vec::with_capacity(keys.len());
    let mut prefixes: Vec<Option<u32>> = Vec::with_capacity(keys.len());
    let mut before: Option<(u64, Vec<u32>)> = None;
    for (rank, &key) in keys.iter().enumerate() {
        let bad = |why: String| fault(format!("`keys`, f-gram {rank}"), why);
        check_tokens(table, key).or_else(bad)?;
        let suffix = key.parent_rank().map(|suffix| suffix as usize);
        let length = match suffix {
            None => 2,
            Some(suffix) => match lengths.get(suffix) {
                Some(length) => length + 1,
                None => return bad(format!("its suffix is f-gram {suffix}, which does not come before it")),
            },
        };
        if usize::from(length) > table.policy().max_n {
            return bad(format!(
                "it has {length} tokens, and no f-gram has more than {}",
                table.policy().max_n
            ));
        }
        let prefix = match suffix {
            None => None,
            Some(suffix) => match find_prefix(index, key.token, keys[suffix], prefixes[suffix]) {
                Some(prefix) if (prefix as usize) < rank => Some(prefix),
                _ => return bad("its prefix is not among the f-grams before it".to_owned()),
            },
        };
        if index.find(key) != Some(rank as u32) {
            return bad("the index (`slots`) does not lead to it, or it is there twice".to_owned());
        }
        lengths.push(length);
        prefixes.push(prefix);
        let Some(tokens) = index.tokens(rank as u32) else { return bad("it has no tokens".to_owned()) };
        let count = table.count(rank as u32);
        if before.is_some_and(|(c, t)| fgram::rank_order((&t, c), (&tokens, count)).is_ge()) {
            return bad("it does not come after the one before by count, then length, then tokens".to_owned());
        }
        before = Some((count, tokens));
    }
    let filled: usize = index.buckets().iter().map(Bucket::len).sum();
    if filled != keys.len() {
        return fault("`slots`", format!("{filled} slots are filled for {} f-grams", keys.len()));
    }
    if fgram::identity(table.policy(), keys) != table.identity().fgrams {
        return fault("`keys` or the header", "the f-grams are not those of `fgrams_sha256`");
    }
    Ok(())
}

/// Both of a bigram's tokens, or the one that a longer f-gram adds to its suffix.
fn check_tokens(table: &Table, key: Key) -> Result<(), String> {
    let last = key.parent_rank().is_none().then_some(key.parent);
    for token in [Some(key.token), last].into_iter().flatten() {
        if token >= MAX_VOCABULARY {
            return Err(format!("token {token} is beyond the largest vocabulary"));
        }
        if table.policy().special_tokens.binary_search(&token).is_ok() {
            return Err(format!("token {token} is special"));
        }
    }
    Ok(())
}

/// The rank of `(t_1 .. t_n-1)`, given `t_1` and, of the suffix `(t_2 .. t_n)`, the key and its prefix's rank.
fn find_prefix(index: Index<'_>, first: u32, suffix: Key, suffix_prefix: Option<u32>) -> Option<u32> {
    index.find(match suffix_prefix {
        None => Key::of_bigram(first, suffix.token),
        Some(inner) => Key::of_longer(first, inner),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::{RowType, testing};
    use super::*;

    fn check(path: &std::path::Path) -> Result<VerifyReport, TableError> {
        verify(&Table::open(path)?, |_| ())
    }

    #[test]
    fn a_good_table_passes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        for (row_type, n, dim) in [(RowType::F32, 1, 1), (RowType::F16, 501, 7), (RowType::Int8, 3000, 1001)]
        {
            let set = testing::set(n, 3);
            testing::write(&path, row_type, dim, &set);
            let table = Table::open(&path).unwrap();
            let seen = AtomicU64::new(0);
            let report = verify(&table, |bytes| {
                seen.fetch_add(bytes, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(seen.into_inner(), fs::metadata(&path).unwrap().len());
            assert_eq!((report.fgrams, report.rows, report.bytes), (set.len(), set.len(), table.bytes()));
        }
    }

    #[test]
    fn any_changed_byte_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        testing::write(&path, RowType::Int8, 5, &testing::set(41, 9));
        let good = fs::read(&path).unwrap();
        let mut file = good.clone();
        for at in 0..good.len() {
            for mask in [0xff, 1 << (at % 8)] {
                file[at] = good[at] ^ mask;
                // Written in place: much quicker than a new file, and nothing has it mapped now.
                let on_disk = fs::OpenOptions::new().write(true).open(&path).unwrap();
                on_disk.write_all_at(&file[at..=at], at as u64).unwrap();
                let error = check(&path).expect_err(&format!("byte {at} ^ {mask:#x} was not found"));
                assert!(error.to_string().contains("table.safetensors"), "{error}");
                on_disk.write_all_at(&good[at..=at], at as u64).unwrap();
            }
            file[at] = good[at];
        }
        check(&path).unwrap();
    }

    #[test]
    fn a_bad_block_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(2001, 5);
        testing::write(&path, RowType::F32, 300, &set);
        let mut file = fs::read(&path).unwrap();
        file[4096 + BLOCK + 17] ^= 4;
        fs::write(&path, file).unwrap();
        let error = check(&path).unwrap_err().to_string();
        assert!(error.contains("bytes 1052672 to 2101248 of the file (`rows` 873 to 1747)"), "{error}");
    }

    #[test]
    fn what_checksums_cannot_see_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(500, 7);
        let trigram = set.index().keys().iter().position(|key| key.parent_rank().is_some()).unwrap();
        let expect = |words: &str, change: &dyn Fn(&mut [u8], &super::super::format::Layout)| {
            testing::write(&path, RowType::Int8, 3, &set);
            testing::tamper(&path, |data, layout| change(data, layout));
            let error = check(&path).expect_err(words).to_string();
            assert!(error.contains(words), "wanted {words:?}: {error}");
        };
        let key = |data: &mut [u8], keys: &Range<usize>, rank: usize, parent: u32, token: u32| {
            let at = keys.start + rank * 8;
            data[at..at + 4].copy_from_slice(&parent.to_le_bytes());
            data[at + 4..at + 8].copy_from_slice(&token.to_le_bytes());
        };
        expect("is special", &|data, layout| key(data, &layout.keys, 4, 2, 5));
        expect("largest vocabulary", &|data, layout| key(data, &layout.keys, 4, 5, MAX_VOCABULARY));
        expect("does not come before", &|data, layout| {
            key(data, &layout.keys, trigram, MAX_VOCABULARY + trigram as u32, 5);
        });
        expect("prefix", &|data, layout| key(data, &layout.keys, trigram, MAX_VOCABULARY, 99_999));
        expect("does not lead to it", &|data, layout| key(data, &layout.keys, 4, 99_999, 99_998));
        expect("does not lead to it", &|data, layout| data[layout.slots.clone()].fill(0xff));
        expect("slots are filled", &|data, layout| {
            let slots = &mut data[layout.slots.clone()];
            let empty = slots.chunks(4).position(|slot| slot == [0xff; 4]).unwrap();
            slots[empty * 4..empty * 4 + 4].copy_from_slice(&7_u32.to_le_bytes());
        });
        expect("cannot be a scale", &|data, layout| data[layout.scales.start + 4..][..4].fill(0xff));
        expect("fall from run to run", &|data, layout| data[layout.count_values.start] = 0);
        expect("rise from 0", &|data, layout| data[layout.count_starts.start] = 1);
    }

    #[test]
    fn numbers_that_are_not_finite_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        testing::write(&path, RowType::F16, 3, &testing::set(999, 7));
        testing::tamper(&path, |data, _| data[(700 * 3 + 1) * 2..][..2].copy_from_slice(&[0, 0x7c]));
        assert!(check(&path).unwrap_err().to_string().contains("row 700"));
    }

    #[test]
    fn another_sets_identity_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(60, 7);
        testing::write(&path, RowType::F32, 2, &set);
        let mut file = fs::read(&path).unwrap();
        let hash = set.sha256();
        let at = file.windows(64).position(|window| window == hash.as_bytes()).unwrap();
        file[at..at + 64].fill(b'0');
        fs::write(&path, file).unwrap();
        testing::tamper(&path, |_, _| ());
        assert!(check(&path).unwrap_err().to_string().contains("fgrams_sha256"));
    }
}
