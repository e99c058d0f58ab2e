//! Where everything lies in a table: worked out from its few free numbers, by writer and reader alike.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;

use super::header::{self, Header, Tensor};
use super::{Identity, RowType};
use crate::fgram::{Bucket, MAX_N, MAX_RANKS, Policy, bucket_count};

// Mapped numbers are used as they lie, and offsets are `usize`.
const _: () = assert!(cfg!(target_endian = "little") && usize::BITS == 64);

/// What `format` says in a table's metadata.
pub(super) const FORMAT: &str = "scone-table";
/// What it says in that of a part of a table.
pub(super) const PART_FORMAT: &str = "scone-table-part";
/// The version that is written and read.
pub(super) const VERSION: &str = "2";
/// Rows and index each start at a multiple of this in the file.
pub(super) const PAGE: usize = 4096;
/// Bytes under one checksum.
pub(super) const BLOCK: usize = 1 << 20;
/// The widest row. With [`MAX_RANKS`] it keeps every size far from overflow.
pub(super) const MAX_DIM: usize = 1 << 20;

/// The numbers that fix a table's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dimensions {
    pub(super) row_type: RowType,
    /// N.
    pub(super) rows: usize,
    /// d.
    pub(super) dim: usize,
    /// Bytes from one row to the next.
    pub(super) stride: usize,
    /// C.
    pub(super) runs: usize,
    /// Set if these are only some of a table's rows.
    pub(super) part: Option<Part>,
}

/// Which rows of a table a part holds: so many from `first` on, of `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) first: usize,
    pub(super) of: usize,
}

impl Dimensions {
    /// Why there can be no such table, if so.
    pub(super) fn problem(&self) -> Option<String> {
        let Self { row_type, rows, dim, stride, runs, part } = *self;
        if rows == 0 || rows > MAX_RANKS as usize {
            return Some(format!("a table has 1 to {MAX_RANKS} rows, not {rows}"));
        }
        if dim == 0 || dim > MAX_DIM {
            return Some(format!("rows have 1 to {MAX_DIM} numbers, not {dim}"));
        }
        let (least, most) = (row_type.bytes_per_row(dim), MAX_DIM * 8);
        if stride < least || stride > most || !stride.is_multiple_of(row_type.element()) {
            return Some(format!("rows of {least} bytes cannot lie {stride} bytes apart"));
        }
        if let Some(Part { first, of }) = part
            && (of > MAX_RANKS as usize || first.checked_add(rows).is_none_or(|end| end > of))
        {
            return Some(format!("{rows} rows from {first} on cannot be part of {of}"));
        }
        (runs == 0 || runs > rows).then(|| format!("{rows} counts cannot be {runs} runs"))
    }
}

/// The tensors of a table, in order, and the places of those that are used, in bytes from the start of `rows`.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) tensors: Vec<Tensor>,
    pub(super) rows: Range<usize>,
    pub(super) padding: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) count_values: Range<usize>,
    /// Empty unless rows have a scale.
    pub(super) scales: Range<usize>,
    pub(super) slots: Range<usize>,
    pub(super) count_starts: Range<usize>,
    pub(super) checksums: Range<usize>,
}

impl Layout {
    /// `dimensions` must have no [`Dimensions::problem`].
    pub(super) fn new(dimensions: Dimensions) -> Self {
        let Dimensions { row_type, rows: n, stride, runs, part, .. } = dimensions;
        let mut tensors = Vec::with_capacity(8);
        let mut append = |name, dtype, shape: &[usize]| header::append(&mut tensors, name, dtype, shape);
        let rows = append("rows", row_type.dtype(), &[n, stride / row_type.element()]);
        let padding = append("padding", Dtype::U8, &[rows.end.next_multiple_of(PAGE) - rows.end]);
        // Only the whole can be searched. The buckets come first, so that each is a cache line.
        let buckets = if part.is_some() { 0 } else { bucket_count(n) };
        let slots = append("slots", Dtype::U32, &[buckets, size_of::<Bucket>() / 4]);
        let keys = append("keys", Dtype::U32, &[n, 2]);
        let count_values = append("count_values", Dtype::U64, &[runs]);
        let scales = match row_type.has_scales() {
            true => append("scales", Dtype::F32, &[n]),
            false => count_values.end..count_values.end,
        };
        let count_starts = append("count_starts", Dtype::U32, &[runs]);
        let checksums = append("checksums", Dtype::U32, &[count_starts.end.div_ceil(BLOCK) + 2]);
        Self { tensors, rows, padding, keys, count_values, scales, slots, count_starts, checksums }
    }

    /// Why `header` is not the header of a table laid out like this, if so.
    pub(super) fn mismatch(&self, header: &Header) -> Option<String> {
        if !header.len.is_multiple_of(PAGE) {
            return Some(format!("`rows` starts at byte {}, which is not the start of a page", header.len));
        }
        if header.tensors.len() != self.tensors.len() {
            let names: Vec<_> = header.tensors.keys().collect();
            return Some(format!("its tensors are {names:?}"));
        }
        self.tensors.iter().find_map(|expected| {
            let Some(found) = header.tensors.get(expected.name) else {
                return Some(format!("tensor `{}` is missing", expected.name));
            };
            let place = (expected.range.start, expected.range.end);
            let same =
                (found.dtype, &found.shape, found.data_offsets) == (expected.dtype, &expected.shape, place);
            (!same).then(|| {
                format!(
                    "tensor `{}` is {:?} {:?} at {:?} and must be {:?} {:?} at {place:?}",
                    expected.name,
                    found.dtype,
                    found.shape,
                    found.data_offsets,
                    expected.dtype,
                    expected.shape
                )
            })
        })
    }
}

/// The `__metadata__` of a table.
pub(super) fn metadata(
    dimensions: Dimensions,
    policy: &Policy,
    identity: &Identity,
) -> BTreeMap<&'static str, String> {
    let format = if dimensions.part.is_some() { PART_FORMAT } else { FORMAT };
    let mut metadata = BTreeMap::from([
        ("format", format.to_owned()),
        ("version", VERSION.to_owned()),
        ("rows", dimensions.rows.to_string()),
        ("dim", dimensions.dim.to_string()),
        ("quantization", dimensions.row_type.quantization().to_owned()),
        ("max_n", policy.max_n.to_string()),
        ("special_tokens", serde_json::json!(policy.special_tokens).to_string()),
    ]);
    metadata.extend(identity.parts().map(|(key, _, hash)| (key, hash.to_owned())));
    if let Some(Part { first, of }) = dimensions.part {
        metadata.extend([("first_row", first.to_string()), ("table_rows", of.to_string())]);
    }
    metadata
}

/// What [`metadata`] was made of, with the type of rows and the number of runs from the tensors; the error says which
/// field is missing or wrong.
pub(super) fn parse(header: &Header) -> Result<(Dimensions, Policy, Identity), String> {
    let text =
        |key: &str| header.metadata.get(key).ok_or_else(|| format!("`{key}` is missing from its metadata"));
    let number = |key: &str| {
        let text = text(key)?;
        text.parse::<usize>().map_err(|_| format!("`{key}` is {text:?}, not a number"))
    };
    let tensor = |name: &str| header.tensors.get(name).ok_or_else(|| format!("tensor `{name}` is missing"));
    let rows = tensor("rows")?;
    let dtype = rows.dtype;
    let row_type = RowType::of_dtype(dtype).ok_or_else(|| format!("rows cannot be of type {dtype:?}"))?;
    if text("quantization")? != row_type.quantization() {
        return Err(format!("`quantization` is {:?}, but rows are {row_type}", text("quantization")?));
    }
    let runs = tensor("count_values")?.shape.iter().copied().max().unwrap_or_default();
    let part = match text("format")? == PART_FORMAT {
        true => Some(Part { first: number("first_row")?, of: number("table_rows")? }),
        false => None,
    };
    let width = rows.shape.get(1).copied().unwrap_or_default();
    let stride = width.checked_mul(row_type.element()).ok_or("`rows` is too wide")?;
    let dimensions = Dimensions { row_type, rows: number("rows")?, dim: number("dim")?, stride, runs, part };
    if let Some(problem) = dimensions.problem() {
        return Err(problem);
    }
    let identity = Identity {
        tokenizer: text("tokenizer_sha256")?.clone(),
        token_embedding: text("token_embedding_sha256")?.clone(),
        fgram_model: text("fgram_model_sha256")?.clone(),
        fgrams: text("fgrams_sha256")?.clone(),
    };
    if let Some(key) = identity.malformed() {
        return Err(format!("`{key}` is not a SHA-256 in hexadecimal"));
    }
    let max_n = number("max_n")?;
    if !(2..=MAX_N).contains(&max_n) {
        return Err(format!("`max_n` is {max_n}, which is not 2 to {MAX_N}"));
    }
    let special_tokens: Vec<u32> = serde_json::from_str(text("special_tokens")?)
        .map_err(|e| format!("`special_tokens` is not a list of token ids: {e}"))?;
    if !special_tokens.is_sorted_by(|a, b| a < b) {
        return Err("`special_tokens` is not in ascending order".to_owned());
    }
    let policy = Policy { max_n, special_tokens, tokenizer_sha256: identity.tokenizer.clone() };
    Ok((dimensions, policy, identity))
}
