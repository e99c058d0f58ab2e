//! What there is to know about a table at a glance.

use std::fmt;

use serde::Serialize;

use super::{Identity, Table};
use crate::fgram::Policy;

/// A table described, for people (`Display`) and programs (`Serialize`).
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// The file.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// N.
    pub rows: usize,
    /// d.
    pub dim: usize,
    /// "f32", "f16", "bf16", "int8" or "int4".
    pub dtype: String,
    /// Bytes of a row in `rows`.
    pub bytes_per_row: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Bytes of all the rest of the file, per f-gram.
    pub index_bytes_per_fgram: f64,
    /// What may be an f-gram.
    pub policy: Policy,
    /// What the table was made of.
    pub identity: Identity,
    /// How many f-grams there are of each length.
    pub lengths: Vec<LengthCount>,
    /// How often f-grams occur in the corpus.
    pub counts: CountRange,
    /// The tensors of the file, in order.
    pub tensors: Vec<TensorSize>,
}

/// The f-grams of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LengthCount {
    /// Tokens.
    pub n: u8,
    /// How many f-grams have that many.
    pub fgrams: usize,
}

/// The range of the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CountRange {
    /// Of the first rank.
    pub max: u64,
    /// Of the middle rank.
    pub median: u64,
    /// Of the last rank: the cut-off.
    pub min: u64,
}

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorSize {
    /// Its name.
    pub name: &'static str,
    /// Its type, as safetensors names it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its size.
    pub bytes: usize,
}

/// Describes a table. Reads its keys, so it takes longer the more there are.
pub fn describe(table: &Table) -> Description {
    let mut by_length = [0_usize; u8::MAX as usize + 1];
    for n in (0..table.len()).filter_map(|rank| table.length(rank as u32)) {
        by_length[usize::from(n)] += 1;
    }
    let lengths =
        (2..=table.policy().max_n as u8).map(|n| LengthCount { n, fgrams: by_length[usize::from(n)] });
    let last = table.len() as u32 - 1;
    let tensors = table.layout().tensors.iter().map(|tensor| TensorSize {
        name: tensor.name,
        dtype: format!("{:?}", tensor.dtype),
        shape: tensor.shape.clone(),
        bytes: tensor.range.len(),
    });
    Description {
        path: table.path().display().to_string(),
        bytes: table.bytes(),
        rows: table.len(),
        dim: table.dim(),
        dtype: table.row_type().to_string(),
        bytes_per_row: table.row_type().bytes_per_row(table.dim()),
        stride: table.dimensions().stride,
        index_bytes_per_fgram: (table.bytes() as f64 - table.layout().rows.len() as f64) / table.len() as f64,
        policy: table.policy().clone(),
        identity: table.identity().clone(),
        lengths: lengths.collect(),
        counts: CountRange { max: table.count(0), median: table.count(last / 2), min: table.count(last) },
        tensors: tensors.collect(),
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path)?;
        writeln!(
            f,
            "  {} rows of {} {}, {} bytes each",
            self.rows, self.dim, self.dtype, self.bytes_per_row
        )?;
        let (bytes, index) = (self.bytes, self.index_bytes_per_fgram);
        writeln!(f, "  {bytes} bytes in all, {index:.1} an f-gram besides its row")?;
        let CountRange { max, median, min } = self.counts;
        writeln!(f, "  counts from {max} down to {min}, median {median}")?;
        for LengthCount { n, fgrams } in &self.lengths {
            let percent = *fgrams as f64 * 100.0 / self.rows as f64;
            writeln!(f, "  {n} tokens  {fgrams:>12} f-grams {percent:5.1} %")?;
        }
        writeln!(f, "  special tokens    {:?}", self.policy.special_tokens)?;
        for (_, name, hash) in self.identity.parts() {
            writeln!(f, "  {name:<17} {hash}")?;
        }
        for TensorSize { name, dtype, shape, bytes } in &self.tensors {
            writeln!(f, "  {name:<17} {bytes:>14} bytes  {dtype} {shape:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RowType, testing};
    use super::*;

    #[test]
    fn says_what_the_set_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(700, 1);
        testing::write(&path, RowType::Int8, 12, &set);
        let table = Table::open(&path).unwrap();
        let description = describe(&table);
        for (n, fgrams) in (2..).zip(description.lengths.iter()) {
            let slow = (0..set.len() as u32).filter(|&rank| set.tokens(rank).unwrap().len() == n).count();
            assert_eq!((usize::from(fgrams.n), fgrams.fgrams), (n, slow));
        }
        let counts = set.counts();
        assert_eq!((description.counts.max, description.counts.min), (counts[0], counts[counts.len() - 1]));
        let tensors: usize = description.tensors.iter().map(|tensor| tensor.bytes).sum();
        assert_eq!((tensors + 4096) as u64, description.bytes);
        assert!(description.to_string().contains("700 rows of 12 int8"), "{description}");
        let json = serde_json::to_value(&description).unwrap();
        assert_eq!(json["identity"]["fgrams"], set.sha256());
    }
}
