//! The one place where the table meets the model: token ids become input embeddings.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};

use super::{FgramModel, Grams, LiveTable, ModelError, Piece};
use crate::kernels::{Matrix, Pool, Shared};
use crate::table::Table;
#[cfg(any(feature = "cuda", test))]
use crate::table::{GpuPlace, Placement};

/// Where the embeddings of f-grams come from.
pub enum Fgrams {
    /// Nowhere: a baseline.
    None,
    /// From the table, as in serving.
    Table(Arc<LiveTable>),
    /// From the f-gram model on the spot, given `T`; the table only says what is an f-gram. For checking the table.
    Model(Arc<Table>, FgramModel, Tensor),
}

/// The input embedding: `T`, and the embeddings of f-grams that replace its rows.
pub struct Embedding {
    fgrams: Fgrams,
    /// Rows of the table on their way into a step: kept for its memory.
    staging: Vec<f32>,
}

/// Tokens whose rows of `T` are read by one task.
const TOKENS: usize = 16;

impl Embedding {
    /// With f-grams from there.
    pub fn new(fgrams: Fgrams) -> Self {
        Self { fgrams, staging: Vec::new() }
    }

    /// The table as it is now, where there is one.
    pub fn table(&self) -> Option<Arc<Table>> {
        match &self.fgrams {
            Fgrams::None => None,
            Fgrams::Table(live) => Some(live.get()),
            Fgrams::Model(table, ..) => Some(Arc::clone(table)),
        }
    }

    /// The table that is read from, where there is one and it may be exchanged.
    pub fn live_table(&self) -> Option<&Arc<LiveTable>> {
        match &self.fgrams {
            Fgrams::Table(live) => Some(live),
            Fgrams::None | Fgrams::Model(..) => None,
        }
    }

    /// Puts the input embeddings of the new tokens of a ragged batch, `F(longest match)`, else `T(token)`, into `x`
    /// `[tokens, d]`; `tokens` is `T` `[vocabulary, d]`.
    ///
    /// # Errors
    /// Where the table is damaged or was changed while in use.
    ///
    /// # Panics
    /// Where a token is beyond the vocabulary.
    pub fn embed(
        &mut self,
        pool: &Pool,
        pieces: &[Piece<'_>],
        tokens: &Matrix,
        x: &mut [f32],
    ) -> Result<(), ModelError> {
        let (d, vocabulary) = (tokens.inputs(), tokens.outputs());
        let found = self.look_up(pieces, vocabulary);
        {
            let x = Shared::new(x);
            pool.run(found.sources.len().div_ceil(TOKENS), &|task| {
                for (row, &source) in found.sources.iter().enumerate().skip(task * TOKENS).take(TOKENS) {
                    if (source as usize) < vocabulary {
                        // SAFETY: each row belongs to one task.
                        tokens.row(source as usize, unsafe { x.part(row * d..(row + 1) * d) });
                    }
                }
            });
        }
        let mut rows = std::mem::take(&mut self.staging);
        rows.resize(found.ranks.len() * d, 0.0);
        let gathered = self.gather(&found, &mut rows);
        for (row, &source) in found.sources.iter().enumerate() {
            if let Some(i) = (source as usize).checked_sub(vocabulary) {
                x[row * d..][..d].copy_from_slice(&rows[i * d..][..d]);
            }
        }
        self.staging = rows;
        gathered
    }

    /// Where the embedding of each new token of a ragged batch comes from.
    ///
    /// # Panics
    /// Where a token is beyond the vocabulary.
    pub(super) fn look_up(&self, pieces: &[Piece<'_>], vocabulary: usize) -> Found {
        let table = self.table();
        let (at, ranks) = table.as_ref().map(|table| matches(table, pieces)).unwrap_or_default();
        let mut sources: Vec<u32> =
            pieces.iter().flat_map(|piece| &piece.tokens[piece.past..]).copied().collect();
        assert!(sources.iter().all(|&id| (id as usize) < vocabulary), "a token beyond the vocabulary");
        for (&row, i) in at.iter().zip(vocabulary as u32..) {
            sources[row as usize] = i;
        }
        Found { sources, ranks, table }
    }

    /// Whether a CPU gathers rows from a table.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn gathers(&self) -> bool {
        self.live_table().is_some_and(|live| !matches!(live.placement(), Placement::Gpu(_)))
    }

    /// The f-grams of pieces that are likely to come next, each once; none where no rows are gathered from a table. They do not count
    /// as looked up.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn expect(&self, pieces: &[Piece<'_>]) -> Option<Found> {
        let table = self.table().filter(|_| self.gathers())?;
        let pieces = pieces.iter().filter(|piece| piece.past < piece.tokens.len());
        let matches = table.index().matches_of(pieces.map(|piece| (piece.tokens, piece.past)));
        let mut ranks: Vec<u32> = matches.into_iter().flatten().map(|found| found.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        Some(Found { sources: Vec::new(), ranks, table: Some(table) })
    }

    /// The table in which f-grams were found, where a GPU is to read their rows by itself, and where it is to find them.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn gpu_table<'a>(&self, found: &'a Found) -> Option<(&'a Arc<Table>, GpuPlace)> {
        let table = found.table.as_ref().filter(|_| !found.ranks.is_empty())?;
        match self.live_table()?.placement() {
            Placement::Gpu(place) => Some((table, place)),
            _ => None,
        }
    }

    /// The embeddings `[ranks, d]` of the f-grams that were found.
    ///
    /// # Errors
    /// Where the table is damaged or was changed while in use.
    pub(super) fn gather(&self, found: &Found, rows: &mut [f32]) -> Result<(), ModelError> {
        let Some(table) = &found.table else { return Ok(()) };
        match &self.fgrams {
            // Perhaps because the file is gone. Where rows are gathered, that is found out with them.
            _ if found.ranks.is_empty() => table.check()?,
            Fgrams::Model(_, model, tokens) => {
                table.check()?;
                rows.copy_from_slice(&rows_of(table.index(), model, tokens, &found.ranks)?);
            }
            _ => table.gather(&found.ranks, rows)?,
        }
        Ok(())
    }
}

/// Where a batch's input embeddings come from.
pub(super) struct Found {
    /// By row: a token, or from the vocabulary's size on one of `ranks`; or a place that was [named](Found::leave_out) instead.
    pub(super) sources: Vec<u32>,
    /// The f-grams that end in the batch, in its order.
    pub(super) ranks: Vec<u32>,
    /// The table in which they were found, as it was then.
    table: Option<Arc<Table>>,
}

#[cfg(any(feature = "cuda", test))]
impl Found {
    /// The table in which they were found.
    pub(super) fn table(&self) -> Option<&Arc<Table>> {
        self.table.as_ref()
    }

    /// Leaves out ranks for which there is another source than a row among `ranks`.
    pub(super) fn leave_out(&mut self, vocabulary: usize, other: impl Fn(u32) -> Option<u32>) {
        let ranks = std::mem::take(&mut self.ranks);
        for source in &mut self.sources {
            let Some(i) = (*source as usize).checked_sub(vocabulary) else { continue };
            *source = other(ranks[i]).unwrap_or_else(|| {
                self.ranks.push(ranks[i]);
                (vocabulary + self.ranks.len() - 1) as u32
            });
        }
    }
}

/// Which of the batch's new tokens end an f-gram, and its rank.
fn matches(table: &Table, pieces: &[Piece<'_>]) -> (Vec<u32>, Vec<u32>) {
    let start = Instant::now();
    let index = table.index();
    let is_special = |token: &u32| table.policy().special_tokens.binary_search(token).is_ok();
    let (mut at, mut ranks, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    let found = index.matches_of(pieces.iter().map(|piece| (piece.tokens, piece.past)));
    let tokens = pieces.iter().flat_map(|piece| &piece.tokens[piece.past..]);
    for (row, (found, token)) in (0..).zip(found.iter().zip(tokens)) {
        if let Some(found) = found {
            at.push(row);
            ranks.push(found.rank);
        }
        lengths.push(found.map_or_else(|| u8::from(!is_special(token)), |found| found.n));
    }
    table.metrics().looked_up(lengths, start.elapsed());
    (at, ranks)
}

/// Brings the rows of a sequence nearer that is to be embedded soon.
pub fn prefetch_rows(table: &Table, tokens: &[u32]) {
    if table.check().is_ok() {
        let ranks: Vec<u32> =
            table.index().matches(tokens, 0).into_iter().flatten().map(|found| found.rank).collect();
        table.prefetch(&ranks);
    }
}

/// The rows of `ranks` as the f-gram model makes them, packed: what a table stores.
///
/// # Errors
/// Where a rank is not in the index or a token is beyond `T`.
pub fn rows_of(
    index: crate::fgram::Index<'_>,
    model: &FgramModel,
    token_embedding: &Tensor,
    ranks: &[u32],
) -> Result<Vec<f32>, ModelError> {
    let mut grams = Grams::default();
    for &rank in ranks {
        let gram = index.tokens(rank);
        let gram = gram.ok_or_else(|| candle_core::Error::Msg(format!("the index has no f-gram {rank}")))?;
        grams.push(&gram);
    }
    let rows = model.embed(token_embedding, &grams)?;
    Ok(rows.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?)
}
