use std::io::{BufWriter, Write};
use std::path::Path;

use super::checksum::BlockChecksums;
use super::format::{self, BLOCK, Dimensions, Layout};
use super::header;
use super::{Identity, RowType, TableError};
use crate::fgram::FgramSet;
use crate::new_file::NewFile;

/// Writes a table row by row, in order of rank.
///
/// Only a megabyte or so is held in memory, and four bytes a row for int8's scales. The file is made beside its final
/// name, which it gets in [`TableWriter::finish`]; a writer dropped before that leaves nothing behind.
pub struct TableWriter<'a> {
    set: &'a FgramSet,
    dimensions: Dimensions,
    layout: Layout,
    out: BufWriter<NewFile>,
    checksums: BlockChecksums,
    header_checksum: u32,
    /// Rows written.
    pushed: usize,
    /// A write went wrong: how much of it is in the file is unknown.
    failed: bool,
    scales: Vec<f32>,
    /// Encoded rows on their way out.
    encoded: Vec<u8>,
}

impl<'a> TableWriter<'a> {
    /// Starts the table of `set` at `path`, with rows of `dim` numbers, made of what `identity` says.
    ///
    /// # Errors
    /// For an empty set, a width of 0 or beyond 2^20, an identity whose tokenizer or set is not that of `set`, more
    /// special tokens than a header holds, or if the file cannot be written.
    pub fn create(
        path: &Path,
        row_type: RowType,
        dim: usize,
        set: &'a FgramSet,
        identity: &Identity,
    ) -> Result<Self, TableError> {
        let runs = set.counts().chunk_by(|a, b| a == b).count();
        let dimensions = Dimensions { row_type, rows: set.len(), dim, runs };
        if let Some(problem) = dimensions.problem() {
            return Err(TableError::Unfit(problem));
        }
        check_identity(set, identity)?;
        let layout = Layout::new(dimensions);
        let metadata = format::metadata(dimensions, set.policy(), identity);
        let header = header::encode(&layout.tensors, &metadata, format::PAGE).ok_or_else(|| {
            TableError::Unfit(format!("{} special tokens are too many", set.policy().special_tokens.len()))
        })?;
        let file = NewFile::create(path).map_err(TableError::io("create", path))?;
        let mut out = BufWriter::with_capacity(BLOCK, file);
        out.write_all(&header).map_err(TableError::io("write", path))?;
        Ok(Self {
            set,
            dimensions,
            layout,
            out,
            checksums: BlockChecksums::new(),
            header_checksum: crc32fast::hash(&header),
            pushed: 0,
            failed: false,
            scales: Vec::new(),
            encoded: Vec::new(),
        })
    }

    /// Writes the next rows, one after the other in `rows`: any whole number of them.
    ///
    /// # Errors
    /// For a NaN, an infinity or a number too large for the type, naming the f-gram; for part of a row or more rows
    /// than f-grams; and if the file cannot be written, after which the writer is of no more use.
    pub fn push(&mut self, rows: &[f32]) -> Result<(), TableError> {
        let Dimensions { row_type, rows: total, dim, .. } = self.dimensions;
        let given = rows.len() / dim;
        if !rows.len().is_multiple_of(dim) {
            return Err(TableError::Shape { values: rows.len(), rows: given, dim });
        }
        if self.pushed + given > total {
            return Err(TableError::RowCount { pushed: self.pushed + given, rows: total });
        }
        self.encoded.clear();
        for (i, row) in rows.chunks_exact(dim).enumerate() {
            let rank = self.pushed + i;
            let scale =
                row_type.encode(row, &mut self.encoded).map_err(|misfit| misfit.at(rank, row, row_type))?;
            if row_type == RowType::Int8 {
                // Cut first, should an earlier call have failed between here and the count of its rows.
                self.scales.truncate(rank);
                self.scales.push(scale);
            }
        }
        let encoded = std::mem::take(&mut self.encoded);
        self.put(&encoded)?;
        self.encoded = encoded;
        self.pushed += given;
        Ok(())
    }

    /// Writes the index and the checksums, makes the file durable and gives it its name.
    ///
    /// # Errors
    /// If rows are missing, or if the file cannot be written.
    pub fn finish(mut self) -> Result<(), TableError> {
        if self.pushed != self.dimensions.rows {
            return Err(TableError::RowCount { pushed: self.pushed, rows: self.dimensions.rows });
        }
        let set = self.set;
        let runs = || set.counts().chunk_by(|a, b| a == b);
        let count_values: Vec<u64> = runs().map(|run| run[0]).collect();
        let count_starts: Vec<u32> =
            runs().scan(0, |next, run| Some(std::mem::replace(next, *next + run.len() as u32))).collect();
        let scales = std::mem::take(&mut self.scales);
        self.put(&vec![0; self.layout.padding.len()])?;
        self.put(bytemuck::cast_slice(set.index().keys()))?;
        self.put(bytemuck::cast_slice(&count_values))?;
        self.put(bytemuck::cast_slice(&scales))?;
        self.put(bytemuck::cast_slice(set.index().slots()))?;
        self.put(bytemuck::cast_slice(&count_starts))?;

        let Self { checksums, header_checksum, mut out, .. } = self;
        let path = out.get_ref().path().to_owned();
        let mut all = vec![header_checksum];
        all.extend(checksums.finish());
        all.push(crc32fast::hash(bytemuck::cast_slice(&all)));
        out.write_all(bytemuck::cast_slice(&all)).map_err(TableError::io("write", &path))?;
        out.into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(NewFile::commit)
            .map_err(TableError::io("write", &path))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), TableError> {
        let result = match self.failed {
            false => self.out.write_all(bytes),
            true => Err(std::io::Error::other("an earlier write failed")),
        };
        self.failed = result.is_err();
        self.checksums.update(bytes);
        result.map_err(|e| TableError::io("write", self.out.get_ref().path())(e))
    }
}

fn check_identity(set: &FgramSet, identity: &Identity) -> Result<(), TableError> {
    if let Some(key) = identity.malformed() {
        return Err(TableError::Unfit(format!("{key} is not a SHA-256 in lower-case hexadecimal")));
    }
    if identity.tokenizer != set.policy().tokenizer_sha256 {
        return Err(TableError::Unfit("the f-gram set was mined with another tokenizer".to_owned()));
    }
    if identity.fgrams != set.sha256() {
        return Err(TableError::Unfit("the identity is that of another f-gram set".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use safetensors::SafeTensors;

    use super::super::{Table, testing};
    use super::*;

    const TYPES: [RowType; 4] = [RowType::F32, RowType::F16, RowType::Bf16, RowType::Int8];

    /// Nothing but `names` is in the directory.
    fn holds(directory: &Path, names: &[&str]) {
        let mut found: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        found.sort();
        assert_eq!(found, names);
    }

    #[test]
    fn a_table_holds_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        for (row_type, n, dim) in TYPES.into_iter().flat_map(|t| [(t, 1, 1), (t, 333, 13), (t, 2048, 64)]) {
            let set = testing::set(n, 11);
            testing::write(&path, row_type, dim, &set);
            let table = Table::open(&path).unwrap();
            assert_eq!((table.len(), table.dim(), table.row_type()), (set.len(), dim, row_type));
            assert_eq!(table.policy(), set.policy());
            assert_eq!(table.identity(), &testing::identity(&set));
            assert_eq!(table.index().keys(), set.index().keys());
            assert_eq!(table.index().slots(), set.index().slots());
            let given = testing::rows(set.len(), dim);
            for rank in 0..set.len() as u32 {
                assert_eq!(table.count(rank), set.counts()[rank as usize]);
                assert_eq!(usize::from(table.length(rank).unwrap()), set.tokens(rank).unwrap().len());
                let row = &given[rank as usize * dim..][..dim];
                // What is off by how much is codec's test; here it must be the right row.
                for (x, y) in row.iter().zip(table.row(rank).unwrap()) {
                    assert!((x - y).abs() <= 0.005, "{row_type} {rank}: {x} {y}");
                }
            }
        }
        holds(directory.path(), &["table.safetensors"]);
    }

    #[test]
    fn any_reader_of_safetensors_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        for row_type in TYPES {
            let set = testing::set(777, 5);
            testing::write(&path, row_type, 7, &set);
            let table = Table::open(&path).unwrap();
            let bytes = fs::read(&path).unwrap();
            let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(metadata.metadata().as_ref().unwrap()["version"], "1");
            let file = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!((header + 8) % 4096, 0);
            for (name, tensor) in file.iter() {
                let at = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
                assert_eq!(at % (tensor.dtype().bitsize() / 8), 0, "{name} is aligned in the file");
            }
            let rows = file.tensor("rows").unwrap();
            assert_eq!(rows.shape(), [777, 7]);
            assert_eq!(rows.data().as_ptr(), bytes[header + 8..].as_ptr());
            let last = rows.data().chunks(row_type.bytes_per_row(7)).next_back();
            assert_eq!(table.row_bytes(776), last);
            let keys = file.tensor("keys").unwrap();
            assert_eq!(keys.data(), bytemuck::cast_slice::<_, u8>(set.index().keys()));
            assert_eq!(file.tensor("scales").is_ok(), row_type == RowType::Int8);
        }
    }

    #[test]
    fn bad_rows_are_refused_by_rank() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(50, 5);
        let identity = testing::identity(&set);
        let mut writer = TableWriter::create(&path, RowType::F16, 3, &set, &identity).unwrap();
        writer.push(&[0.5; 6]).unwrap();
        let error = writer.push(&[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0]).unwrap_err().to_string();
        assert!(error.contains("f-gram 3 has NaN in column 1"), "{error}");
        let error = writer.push(&[0.0, 0.0, 1e6]).unwrap_err().to_string();
        assert!(error.contains("f-gram 2 has 1000000 in column 2, too large for f16"), "{error}");
        assert!(writer.push(&[0.0; 4]).unwrap_err().to_string().contains("not 1 rows of 3"));
        assert!(writer.push(&[0.0; 3 * 49]).unwrap_err().to_string().contains("51 rows"));
        // A refused push wrote nothing, so the writer goes on.
        writer.push(&[0.25; 3 * 48]).unwrap();
        writer.finish().unwrap();
        let table = Table::open(&path).unwrap();
        assert_eq!((table.row(1).unwrap(), table.row(2).unwrap()), (vec![0.5; 3], vec![0.25; 3]));
    }

    #[test]
    fn an_unfinished_table_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(50, 5);
        let identity = testing::identity(&set);
        let begun = || {
            let mut writer = TableWriter::create(&path, RowType::Int8, 3, &set, &identity).unwrap();
            writer.push(&[1.0; 60]).unwrap();
            writer
        };
        drop(begun());
        holds(directory.path(), &[]);
        assert!(begun().finish().unwrap_err().to_string().contains("20 rows were given for a table of 50"));
        holds(directory.path(), &[]);
        // Nor does it touch the table that was there before.
        testing::write(&path, RowType::F32, 2, &set);
        drop(begun());
        assert_eq!(Table::open(&path).unwrap().row_type(), RowType::F32);
        holds(directory.path(), &["table.safetensors"]);
    }

    #[test]
    fn what_does_not_fit_is_refused_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(50, 5);
        let identity = testing::identity(&set);
        let refused = |path: &Path, dim, set: &FgramSet, identity: &Identity, words: &str| {
            let error =
                TableWriter::create(path, RowType::F32, dim, set, identity).err().unwrap().to_string();
            assert!(error.contains(words), "wanted {words:?}: {error}");
        };
        refused(&path, 0, &set, &identity, "1 to 1048576 numbers, not 0");
        let other = Identity { fgrams: "0".repeat(64), ..identity.clone() };
        refused(&path, 4, &set, &other, "another f-gram set");
        let other = Identity { tokenizer: "0".repeat(64), ..identity.clone() };
        refused(&path, 4, &set, &other, "another tokenizer");
        let empty = FgramSet::from_ranked(set.policy().clone(), std::iter::empty()).unwrap();
        refused(&path, 4, &empty, &testing::identity(&empty), "not 0");
        refused(directory.path(), 4, &set, &identity, "directory");
        refused(&path.join("nowhere"), 4, &set, &identity, "cannot create");
        holds(directory.path(), &[]);
    }

    /// Runs itself again in a shell that allows files of a few kilobytes only, which fails as a full disk does.
    #[test]
    fn a_full_disk_is_an_error_that_leaves_nothing() {
        if let Some(path) = std::env::var_os("SCONE_TEST_FULL_DISK") {
            let path = Path::new(&path);
            let set = testing::set(50, 5);
            let identity = testing::identity(&set);
            let begin = |dim| TableWriter::create(path, RowType::F32, dim, &set, &identity).unwrap();
            let check = |error: TableError| {
                let error = error.to_string();
                assert!(error.contains("cannot write") && error.contains("table.safetensors"), "{error}");
            };
            // Little enough to be written at the end, then enough to be written at once.
            let mut writer = begin(1000);
            writer.push(&vec![0.5; 50 * 1000]).unwrap();
            check(writer.finish().unwrap_err());
            let mut writer = begin(10_000);
            check(writer.push(&vec![0.5; 50 * 10_000]).unwrap_err());
            check(writer.push(&[0.5; 10_000]).unwrap_err());
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let name = "table::writer::tests::a_full_disk_is_an_error_that_leaves_nothing";
        let child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact \"$1\" --nocapture"])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env("SCONE_TEST_FULL_DISK", directory.path().join("table.safetensors"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{child:?}");
        holds(directory.path(), &[]);
    }
}
