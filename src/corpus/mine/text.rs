//! The tokens that are mined, cut into chunks that threads take one at a time.

use std::ops::Range;

use crate::corpus::{Dataset, Error, Shard};

/// No surviving n-gram ends here.
pub(super) const NONE: u32 = u32::MAX;

/// Positions of a chunk: its tokens and ends fit a core's cache.
pub(super) const CHUNK: usize = 1 << 16;

/// The training tokens of a dataset, or the part of them that one shard of the work has.
pub(super) struct Text<'a> {
    spans: Vec<Span<'a>>,
    /// How many positions.
    pub(super) len: u64,
    /// Bits of a token id.
    pub(super) token_bits: u32,
    /// By token id: whether it may be in an n-gram.
    ordinary: Vec<bool>,
}

/// A stretch of one file. No n-gram reaches over its edges.
struct Span<'a> {
    shard: &'a Shard,
    tokens: Range<usize>,
    /// The number of its first chunk.
    first_chunk: usize,
}

/// Some neighbouring positions of one file.
pub(super) struct Chunk<'a> {
    shard: &'a Shard,
    tokens: Range<usize>,
    /// Its place among all chunks.
    pub(super) number: usize,
    /// Whether nothing before it belongs to the same text.
    pub(super) begins: bool,
}

impl Chunk<'_> {
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}

impl<'a> Text<'a> {
    /// The part `positions` of a dataset's training tokens, which must begin and end where documents do.
    pub(super) fn new(dataset: &'a Dataset, special_tokens: &[u32], positions: Range<u64>) -> Self {
        let vocab_size = dataset.tokenizer().vocab_size();
        let mut ordinary = vec![true; vocab_size];
        for &token in special_tokens {
            if let Some(place) = ordinary.get_mut(token as usize) {
                *place = false;
            }
        }
        let mut spans = Vec::new();
        let (mut before, mut first_chunk) = (0, 0);
        for shard in &dataset.train().shards {
            let end = before + shard.len() as u64;
            let (from, to) = (positions.start.clamp(before, end), positions.end.clamp(before, end));
            let tokens = (from - before) as usize..(to - before) as usize;
            before = end;
            if !tokens.is_empty() {
                let chunks = tokens.len().div_ceil(CHUNK);
                spans.push(Span { shard, tokens, first_chunk });
                first_chunk += chunks;
            }
        }
        let len = spans.iter().map(|span| span.tokens.len() as u64).sum();
        let token_bits = usize::BITS - vocab_size.saturating_sub(1).leading_zeros();
        Self { spans, len, token_bits, ordinary }
    }

    /// Token ids are below this.
    pub(super) fn vocab_size(&self) -> usize {
        self.ordinary.len()
    }

    pub(super) fn chunks(&self) -> usize {
        self.spans.last().map_or(0, |span| span.first_chunk + span.tokens.len().div_ceil(CHUNK))
    }

    /// The chunk of this number, `None` past the last.
    pub(super) fn chunk(&self, number: usize) -> Option<Chunk<'a>> {
        let after = self.spans.partition_point(|span| span.first_chunk <= number);
        let span = self.spans.get(after.checked_sub(1)?)?;
        let start = span.tokens.start + (number - span.first_chunk) * CHUNK;
        let end = span.tokens.end.min(start + CHUNK);
        let begins = number == span.first_chunk;
        (start < end).then_some(Chunk { shard: span.shard, tokens: start..end, number, begins })
    }

    /// Reads a chunk's tokens.
    pub(super) fn read(&self, chunk: &Chunk<'_>, tokens: &mut Vec<u32>) -> Result<(), Error> {
        chunk.shard.read_file(chunk.tokens.clone(), tokens)
    }

    /// What scan 1 would give: a token that may be in an n-gram is its own number.
    pub(super) fn end(&self, token: u32) -> u32 {
        if self.ordinary.get(token as usize).copied().unwrap_or(false) { token } else { NONE }
    }

    /// The end of the token before a chunk.
    pub(super) fn end_before(&self, chunk: &Chunk<'_>) -> Result<u32, Error> {
        if chunk.begins {
            return Ok(NONE);
        }
        let mut token = Vec::new();
        chunk.shard.read_file(chunk.tokens.start - 1..chunk.tokens.start, &mut token)?;
        Ok(token.first().map_or(NONE, |&token| self.end(token)))
    }
}

/// The positions of part `part` (from 1) of `parts` equal parts of the training tokens, moved to the nearest ends of
/// documents: the parts of one dataset cover it without overlap. A part may be empty.
pub(super) fn part_of(dataset: &Dataset, part: u64, parts: u64) -> Result<Range<u64>, Error> {
    let tokens = dataset.train().tokens;
    let edge = |part: u64| {
        let target = (u128::from(tokens) * u128::from(part) / u128::from(parts)) as u64;
        document_edge(dataset, target)
    };
    Ok(edge(part - 1)?..edge(part)?)
}

/// The start of a document, or the end of all of them, nearest to a position: the earlier of two.
fn document_edge(dataset: &Dataset, target: u64) -> Result<u64, Error> {
    let mut before = 0;
    for shard in &dataset.train().shards {
        let end = before + shard.len() as u64;
        if target < end {
            let at = (target - before) as usize;
            return Ok(before + edge_within(shard, at, dataset.eos())? as u64);
        }
        before = end;
    }
    Ok(before)
}

fn edge_within(shard: &Shard, target: usize, eos: u32) -> Result<usize, Error> {
    let mut tokens = Vec::new();
    let (mut from, mut earlier) = (target, 0);
    while from > 0 {
        let start = from.saturating_sub(CHUNK);
        shard.read_file(start..from, &mut tokens)?;
        if let Some(place) = tokens.iter().rposition(|&token| token == eos) {
            earlier = start + place + 1;
            break;
        }
        from = start;
    }
    let (mut from, mut later) = (target, shard.len());
    // Beyond this the earlier edge is nearer.
    let limit = shard.len().min(target.saturating_add(target - earlier));
    while from < limit {
        let end = shard.len().min(from + CHUNK);
        shard.read_file(from..end, &mut tokens)?;
        if let Some(place) = tokens.iter().position(|&token| token == eos) {
            later = from + place + 1;
            break;
        }
        from = end;
    }
    Ok(if target - earlier <= later - target { earlier } else { later })
}
