use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::codec::Misfit;
use super::format::{self, Dimensions, Layout, Part};
use super::partial::Partial;
use super::{Contents, Identity, RowType, TableError, header};

/// Writes a table: [`TableWriter::open`], then the rows in order of rank with [`TableWriter::push`], then
/// [`TableWriter::finish`].
///
/// The file grows beside its final name, with `.partial` after it, and gets that name only when it is complete. A
/// writer that is dropped or killed before leaves it, and the next writer of the same table takes it up:
/// [`TableWriter::rows`] says where. The finished file is the same, byte for byte.
#[derive(Debug)]
pub struct TableWriter<'a> {
    contents: Contents<'a>,
    dimensions: Dimensions,
    layout: Layout,
    out: Partial,
    /// Rows written.
    pushed: usize,
}

/// How a table's rows are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowFormat {
    /// The type of their numbers.
    pub row_type: RowType,
    /// d: the numbers of a row.
    pub dim: usize,
    /// Rows start at multiples of so many bytes; 1 packs them.
    pub align: usize,
}

impl RowFormat {
    /// Rows of `dim` numbers, packed.
    pub fn packed(row_type: RowType, dim: usize) -> Self {
        Self { row_type, dim, align: 1 }
    }

    /// Bytes from one row to the next.
    ///
    /// # Errors
    /// In words, where the alignment is none.
    pub fn stride(self) -> Result<usize, String> {
        let Self { row_type, dim, align } = self;
        if align == 0 || align > format::PAGE || !align.is_power_of_two() {
            return Err(format!(
                "rows are aligned to a power of two up to {} bytes, not to {align}",
                format::PAGE
            ));
        }
        Ok(row_type
            .bytes_per_row(dim.min(format::MAX_DIM + 1))
            .next_multiple_of(align.max(row_type.element())))
    }
}

impl<'a> TableWriter<'a> {
    /// Starts the table of `contents` at `path`, made of what `identity` says, or goes on with one that was begun.
    ///
    /// # Errors
    /// For an empty set, a width of 0 or beyond 2^20, an identity whose tokenizer or set is not that of `contents`,
    /// more special tokens than a header holds, or if the file cannot be written: there must be space for all of it.
    pub fn open(
        path: &Path,
        rows: RowFormat,
        contents: Contents<'a>,
        identity: &Identity,
    ) -> Result<Self, TableError> {
        Self::open_rows(path, rows, contents, identity, None)
    }

    /// As [`TableWriter::open`], for the part of the table that has the rows of `ranks`. The parts of a table are joined
    /// by [`merge`](super::merge).
    ///
    /// # Errors
    /// As [`TableWriter::open`], and for ranks that the table does not have.
    pub fn open_part(
        path: &Path,
        rows: RowFormat,
        contents: &'a Contents<'_>,
        identity: &Identity,
        ranks: Range<usize>,
    ) -> Result<Self, TableError> {
        let of = contents.keys.len();
        if ranks.is_empty() || ranks.end > of {
            return Err(TableError::Unfit(format!("rows {ranks:?} of a table of {of}")));
        }
        let part = Part { first: ranks.start, of };
        Self::open_rows(path, rows, contents.part(ranks), identity, Some(part))
    }

    fn open_rows(
        path: &Path,
        rows: RowFormat,
        contents: Contents<'a>,
        identity: &Identity,
        part: Option<Part>,
    ) -> Result<Self, TableError> {
        let RowFormat { row_type, dim, .. } = rows;
        let stride = rows.stride().map_err(TableError::Unfit)?;
        let (rows, runs) = (contents.keys.len(), contents.count_values.len());
        let dimensions = Dimensions { row_type, rows, dim, stride, runs, part };
        if let Some(problem) = dimensions.problem() {
            return Err(TableError::Unfit(problem));
        }
        check_identity(&contents, identity)?;
        let layout = Layout::new(dimensions);
        let metadata = format::metadata(dimensions, contents.policy, identity);
        let header = header::encode(&layout.tensors, &metadata, format::PAGE).ok_or_else(|| {
            TableError::Unfit(format!("{} special tokens are too many", contents.policy.special_tokens.len()))
        })?;
        let out = Partial::open(path, &header, layout.clone(), dimensions)
            .map_err(TableError::io("create", path))?;
        let pushed = out.rows();
        Ok(Self { contents, dimensions, layout, out, pushed })
    }

    /// How many rows are written: the rank, within the part, of the next.
    pub fn rows(&self) -> usize {
        self.pushed
    }

    /// Writes the next rows, one after the other in `rows`: any whole number of them.
    ///
    /// # Errors
    /// For a NaN, an infinity or a number too large for the type, naming the f-gram; for part of a row or more rows
    /// than f-grams; and if the file cannot be written, after which the writer is of no more use.
    pub fn push(&mut self, rows: &[f32]) -> Result<(), TableError> {
        let Dimensions { row_type, dim, stride, part, .. } = self.dimensions;
        if !rows.len().is_multiple_of(dim) {
            return Err(TableError::Shape { values: rows.len(), rows: rows.len() / dim, dim });
        }
        let first = part.map_or(0, |part| part.first) + self.pushed;
        let mut encoded = vec![0; rows.len() / dim * stride];
        let scales = rows
            .par_chunks_exact(dim)
            .zip(encoded.par_chunks_exact_mut(stride))
            .map(|(row, out)| row_type.encode(row, &mut out[..row_type.bytes_per_row(dim)]))
            .collect::<Vec<Result<f32, Misfit>>>();
        let scales = scales.into_iter().zip(rows.chunks_exact(dim)).enumerate();
        let scales = scales
            .map(|(i, (scale, row))| scale.map_err(|misfit| misfit.at(first + i, row, row_type)))
            .collect::<Result<Vec<f32>, _>>()?;
        self.push_encoded(&encoded, if row_type.has_scales() { &scales } else { &[] })
    }

    /// Writes the next rows as they lie in a table of the same format, and their scales if it has any.
    pub(super) fn push_encoded(&mut self, rows: &[u8], scales: &[f32]) -> Result<(), TableError> {
        let pushed = self.pushed + rows.len() / self.dimensions.stride;
        if pushed > self.dimensions.rows {
            return Err(TableError::RowCount { pushed, rows: self.dimensions.rows });
        }
        self.out.push(rows, scales).map_err(TableError::io("write", self.out.path()))?;
        self.pushed = pushed;
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
        let path = self.out.path().to_owned();
        self.index().and_then(|()| self.out.finish()).map_err(TableError::io("write", &path))
    }

    fn index(&mut self) -> std::io::Result<()> {
        let Self { contents, layout, out, .. } = self;
        out.put(&vec![0; layout.padding.len()])?;
        out.put(bytemuck::cast_slice(&contents.buckets))?;
        out.put(bytemuck::cast_slice(&contents.keys))?;
        out.put(bytemuck::cast_slice(&contents.count_values))?;
        out.put_scales()?;
        out.put(bytemuck::cast_slice(&contents.count_starts))
    }
}

fn check_identity(contents: &Contents<'_>, identity: &Identity) -> Result<(), TableError> {
    if let Some(key) = identity.malformed() {
        return Err(TableError::Unfit(format!("{key} is not a SHA-256 in lower-case hexadecimal")));
    }
    if identity.tokenizer != contents.policy.tokenizer_sha256 {
        return Err(TableError::Unfit("the f-gram set was mined with another tokenizer".to_owned()));
    }
    if identity.fgrams != contents.sha256 {
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
    use crate::fgram::FgramSet;

    fn open<'a>(
        path: &Path,
        row_type: RowType,
        dim: usize,
        set: &'a FgramSet,
        identity: &Identity,
    ) -> Result<TableWriter<'a>, TableError> {
        TableWriter::open(path, RowFormat::packed(row_type, dim), Contents::of_set(set), identity)
    }

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
        for (row_type, n, dim) in
            RowType::ALL.into_iter().flat_map(|t| [(t, 1, 1), (t, 333, 13), (t, 2048, 64)])
        {
            let set = testing::set(n, 11);
            testing::write(&path, row_type, dim, &set);
            let table = Table::open(&path).unwrap();
            assert_eq!((table.len(), table.dim(), table.row_type()), (set.len(), dim, row_type));
            assert_eq!(table.policy(), set.policy());
            assert_eq!(table.identity(), &testing::identity(&set));
            assert_eq!(table.index().keys(), set.index().keys());
            assert_eq!(table.index().buckets(), set.index().buckets());
            let given = testing::rows(set.len(), dim);
            for rank in 0..set.len() as u32 {
                assert_eq!(table.count(rank), set.counts()[rank as usize]);
                assert_eq!(usize::from(table.length(rank).unwrap()), set.tokens(rank).unwrap().len());
                let row = &given[rank as usize * dim..][..dim];
                // What is off by how much is codec's test; here it must be the right row.
                let tolerance = if row_type == RowType::Int4 { 0.2 } else { 0.005 };
                for (x, y) in row.iter().zip(table.row(rank).unwrap()) {
                    assert!((x - y).abs() <= tolerance, "{row_type} {rank}: {x} {y}");
                }
            }
        }
        holds(directory.path(), &["table.safetensors"]);
    }

    #[test]
    fn any_reader_of_safetensors_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        for row_type in RowType::ALL {
            let set = testing::set(777, 5);
            testing::write(&path, row_type, 7, &set);
            let table = Table::open(&path).unwrap();
            let bytes = fs::read(&path).unwrap();
            let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(metadata.metadata().as_ref().unwrap()["version"], "2");
            let file = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!((header + 8) % 4096, 0);
            for (name, tensor) in file.iter() {
                let at = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
                assert_eq!(at % (tensor.dtype().bitsize() / 8), 0, "{name} is aligned in the file");
            }
            let rows = file.tensor("rows").unwrap();
            assert_eq!(rows.shape(), [777, row_type.bytes_per_row(7) / row_type.element()]);
            assert_eq!(rows.data().as_ptr(), bytes[header + 8..].as_ptr());
            let last = rows.data().chunks(row_type.bytes_per_row(7)).next_back();
            assert_eq!(table.row_bytes(776), last);
            let keys = file.tensor("keys").unwrap();
            assert_eq!(keys.data(), bytemuck::cast_slice::<_, u8>(set.index().keys()));
            assert_eq!(file.tensor("scales").is_ok(), row_type.has_scales());
        }
    }

    #[test]
    fn bad_rows_are_refused_by_rank() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(50, 5);
        let identity = testing::identity(&set);
        let mut writer = open(&path, RowType::F16, 3, &set, &identity).unwrap();
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
    fn a_table_that_was_begun_is_taken_up() {
        let directory = tempfile::tempdir().unwrap();
        let (path, whole) = (directory.path().join("table.safetensors"), directory.path().join("whole"));
        let set = testing::set(3000, 5);
        let identity = testing::identity(&set);
        for (row_type, dim, align) in [
            (RowType::Int8, 3000, 1),
            (RowType::Int4, 6001, 1),
            (RowType::F16, 700, 64),
            (RowType::F32, 501, 4096),
        ] {
            let format = RowFormat { align, ..RowFormat::packed(row_type, dim) };
            let begin = || TableWriter::open(&path, format, Contents::of_set(&set), &identity).unwrap();
            testing::write_as(&whole, format, &set);
            let rows = testing::rows(set.len(), dim);
            // Killed after the last write, and with part of it lost.
            for lost in [0, 1, 3_000_000] {
                let mut writer = begin();
                writer.push(&rows[..2900 * dim]).unwrap();
                drop(writer);
                let partial = directory.path().join("table.safetensors.partial");
                let mut bytes = fs::read(&partial).unwrap();
                assert_eq!(bytes.len() as u64, whole.metadata().unwrap().len());
                let end = 4096 + 1000 * format.stride().unwrap();
                if lost > 0 {
                    bytes[end..(end + lost).min(4096 + 2900 * format.stride().unwrap())].fill(0xee);
                    fs::write(&partial, bytes).unwrap();
                }
                let mut writer = begin();
                let done = writer.rows();
                let expected = if lost > 0 { 0..=1000 } else { 400..=2900 };
                assert!(
                    expected.contains(&done) && (done > 0 || lost > 0),
                    "{row_type}: {done} rows after {lost} lost bytes"
                );
                writer.push(&rows[done * dim..]).unwrap();
                writer.finish().unwrap();
                assert!(fs::read(&path).unwrap() == fs::read(&whole).unwrap(), "{row_type} {lost}");
            }
            // That of another table is not taken up.
            let mut writer = begin();
            writer.push(&rows[..2900 * dim]).unwrap();
            drop(writer);
            let other = RowFormat::packed(RowType::Bf16, dim);
            assert_eq!(TableWriter::open(&path, other, Contents::of_set(&set), &identity).unwrap().rows(), 0);
            holds(directory.path(), &["table.safetensors", "whole"]);
        }
    }

    #[test]
    fn one_table_has_one_writer_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(50, 5);
        let identity = testing::identity(&set);
        let _first = open(&path, RowType::Int8, 3, &set, &identity).unwrap();
        let error = open(&path, RowType::Int8, 3, &set, &identity).unwrap_err().to_string();
        assert!(error.contains("another process is writing it"), "{error}");
    }

    #[test]
    fn an_unfinished_table_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(50, 5);
        let identity = testing::identity(&set);
        let begun = || {
            let mut writer = open(&path, RowType::Int8, 3, &set, &identity).unwrap();
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
            let error = open(path, RowType::F32, dim, set, identity).err().unwrap().to_string();
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
            let begin = |dim| open(path, RowType::F32, dim, &set, &identity);
            // Space for the whole file is asked for before a row is computed.
            let error = begin(1000).unwrap_err().to_string();
            assert!(error.contains("cannot create") && error.contains("table.safetensors"), "{error}");
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
