use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::format::{BLOCK, Dimensions, Part};
use super::verify::check_bytes;
use super::writer::TableWriter;
use super::{Contents, Identity, Table, TableError};
use crate::fgram::{self, Key, build_buckets};

/// Joins the parts of a table, as [`TableWriter::open_part`] wrote them, into the table: the same file, byte for byte,
/// that one writer would have made. Every part is checked against its checksums first. It goes on where a killed one
/// left off. `progress` is told of every so many rows more.
///
/// # Errors
/// If a part is missing, damaged, there twice, or of another table; or if the file cannot be written.
pub fn merge(paths: &[PathBuf], output: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), TableError> {
    let mut parts = Vec::with_capacity(paths.len());
    for path in paths {
        let table = Table::open_part(path)?;
        check_bytes(&table, &|_| ())?;
        parts.push(table);
    }
    parts.sort_by_key(first);
    check_fit(&parts)?;
    let Some(one) = parts.first() else { return Err(TableError::Unfit("no parts were given".to_owned())) };
    let contents = contents(&parts)?;
    let mut writer = TableWriter::open(output, one.row_format(), contents, one.identity())?;
    let stride = one.dimensions().stride;
    let at_once = (8 * BLOCK / stride).max(1);
    progress(writer.rows() as u64);
    for part in &parts {
        while writer.rows() < first(part) + part.len() {
            let from = writer.rows() - first(part);
            let end = part.len().min(from + at_once);
            let rows = &part.data()[from * stride..end * stride];
            writer.push_encoded(rows, part.scales().get(from..end).unwrap_or(&[]))?;
            progress((end - from) as u64);
        }
    }
    writer.finish()
}

/// The first rank of a part.
fn first(part: &Table) -> usize {
    part.dimensions().part.map_or(0, |part| part.first)
}

/// Whether the parts, in order, are one table.
fn check_fit(parts: &[Table]) -> Result<(), TableError> {
    let mut next = 0;
    for pair in parts.windows(2) {
        let whole = |table: &Table| {
            let Dimensions { row_type, dim, stride, part, .. } = table.dimensions();
            (row_type, dim, stride, part.map(|Part { of, .. }| of))
        };
        let (a, b) = (&pair[0], &pair[1]);
        if whole(a) != whole(b) || a.identity() != b.identity() || a.policy() != b.policy() {
            let why =
                format!("{} and {} are parts of different tables", a.path().display(), b.path().display());
            return Err(TableError::Unfit(why));
        }
    }
    for part in parts {
        if first(part) != next {
            let (found, path) = (first(part), part.path().display());
            let why = match found > next {
                true => format!("rows {next} to {} are in none of the parts", found - 1),
                false => format!("{path} begins with row {found}, which another part has too"),
            };
            return Err(TableError::Unfit(why));
        }
        next += part.len();
    }
    let of = parts.first().and_then(|one| one.dimensions().part).map_or(0, |part| part.of);
    match next < of {
        true => Err(TableError::Unfit(format!("rows {next} to {} are in none of the parts", of - 1))),
        false => Ok(()),
    }
}

/// The f-grams of all parts, and their index.
fn contents(parts: &[Table]) -> Result<Contents<'_>, TableError> {
    let keys: Vec<Key> = parts.iter().flat_map(|part| part.keys()).copied().collect();
    let (mut values, mut starts) = (Vec::new(), Vec::new());
    for part in parts {
        for (&value, &start) in part.count_values().iter().zip(part.count_starts()) {
            // A run may go on from one part to the next.
            if values.last() != Some(&value) {
                values.push(value);
                starts.push(first(part) as u32 + start);
            }
        }
    }
    let one = &parts[0];
    let Identity { fgrams, .. } = one.identity();
    if fgram::identity(one.policy(), &keys) != *fgrams {
        return Err(TableError::Unfit("the parts' f-grams are not the set they were made for".to_owned()));
    }
    Ok(Contents {
        policy: one.policy(),
        buckets: Cow::Owned(build_buckets(&keys)),
        keys: Cow::Owned(keys),
        count_values: values,
        count_starts: starts,
        sha256: fgrams.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{RowFormat, RowType, testing};
    use super::*;
    use crate::fgram::FgramSet;

    fn write_part(path: &Path, format: RowFormat, set: &FgramSet, ranks: std::ops::Range<usize>) {
        let contents = Contents::of_set(set);
        let identity = testing::identity(set);
        let mut writer = TableWriter::open_part(path, format, &contents, &identity, ranks.clone()).unwrap();
        let rows = testing::rows(set.len(), format.dim);
        writer.push(&rows[ranks.start * format.dim..ranks.end * format.dim]).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn parts_make_the_file_that_one_writer_makes() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let set = testing::set(900, 3);
        for (row_type, align, cuts) in [
            (RowType::Int8, 1, vec![0, 1, 450, 900]),
            (RowType::Int4, 8, vec![0, 899, 900]),
            (RowType::F16, 1, vec![0, 900]),
        ] {
            let format = RowFormat { align, ..RowFormat::packed(row_type, 21) };
            testing::write_as(&at("whole"), format, &set);
            let mut paths = Vec::new();
            for (i, cut) in cuts.windows(2).enumerate() {
                paths.push(at(&format!("part-{i}")));
                write_part(&paths[i], format, &set, cut[0]..cut[1]);
            }
            paths.reverse();
            let mut told = 0;
            merge(&paths, &at("merged"), &mut |rows| told += rows).unwrap();
            assert_eq!(told, 900);
            assert!(fs::read(at("merged")).unwrap() == fs::read(at("whole")).unwrap(), "{row_type}");
        }
    }

    #[test]
    fn what_is_not_one_table_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let set = testing::set(300, 3);
        let format = RowFormat::packed(RowType::Int8, 9);
        for (name, ranks) in [("a", 0..100), ("b", 100..200), ("c", 200..300), ("overlap", 150..300)] {
            write_part(&at(name), format, &set, ranks);
        }
        write_part(&at("other type"), RowFormat::packed(RowType::F16, 9), &set, 200..300);
        write_part(&at("other set"), format, &testing::set(300, 4), 200..300);
        testing::write_as(&at("whole"), format, &set);
        let refused = |names: &[&str], words: &str| {
            let paths: Vec<PathBuf> = names.iter().map(|name| at(name)).collect();
            let error = merge(&paths, &at("merged"), &mut |_| ()).unwrap_err().to_string();
            assert!(error.contains(words), "wanted {words:?}: {error}");
            assert!(!at("merged").exists());
        };
        refused(&[], "no parts");
        refused(&["a", "c"], "rows 100 to 199 are in none");
        refused(&["b", "c"], "rows 0 to 99 are in none");
        refused(&["a", "b"], "rows 200 to 299 are in none");
        refused(&["a", "b", "overlap"], "which another part has too");
        refused(&["a", "b", "b", "c"], "which another part has too");
        refused(&["a", "b", "other type"], "different tables");
        refused(&["a", "b", "other set"], "different tables");
        refused(&["whole"], "a whole table");
        let mut bytes = fs::read(at("b")).unwrap();
        bytes[5000] ^= 1;
        fs::write(at("b"), bytes).unwrap();
        refused(&["a", "b", "c"], "checksum");
        let error = Table::open(at("a")).unwrap_err().to_string();
        assert!(error.contains("table merge"), "{error}");
    }
}
