//! The file of rows: what a SCONE model reads instead of running its f-gram model.
//!
//! A table holds, for every f-gram of a set, the embedding that the f-gram model gave it (`F` in the paper), and the
//! index that finds it. It is written once ([`TableWriter`]), in parts by several machines if need be ([`merge`]),
//! mapped and never read into memory ([`Table`]), checked in constant time when opened and in full by [`verify`].
//! Nothing here knows of models or devices.
//!
//! # The format, version 2
//!
//! A table is a safetensors file: eight bytes with the length of a JSON header, the header, and tensors without
//! gaps between them. Any safetensors reader opens it. We write the header ourselves, because the usual writer
//! sorts tensors by type and puts the first one anywhere, where we need `rows` to start on a page. All numbers are
//! little-endian; N f-grams, width d, rows of w elements (d packed ones, or more where rows are aligned), M =
//! [`bucket_count`](crate::fgram::bucket_count)`(N)` buckets, C runs of counts.
//!
//! | tensor, in this order | type and shape | what it is |
//! |---|---|---|
//! | `rows` | F32, F16, BF16, I8 or U8 `[N, w]` | the embeddings by rank; starts at a multiple of 4096 bytes in the file |
//! | `padding` | U8 `[P]` | P < 4096 zeros, so that all that follows starts on a page too |
//! | `slots` | U32 `[M, 16]` | the hash table of [`build_buckets`](crate::fgram::build_buckets): ranks with tags, or `u32::MAX` where empty |
//! | `keys` | U32 `[N, 2]` | each f-gram's [`Key`](crate::fgram::Key): its suffix's code and its first token |
//! | `count_values` | U64 `[C]` | the counts in the corpus, strictly decreasing: one for each run of equal ones |
//! | `scales` | F32 `[N]` | with I8 and U8 only: a row's numbers are its scale times what its bytes say |
//! | `count_starts` | U32 `[C]` | the first rank of each run of counts: 0, then strictly increasing |
//! | `checksums` | U32 `[B + 2]` | CRC-32s, below |
//!
//! In this order every tensor is aligned to its elements in the file, so in a mapping too, whatever N and d are.
//! Rows lie in order of rank, the most frequent first: language is Zipfian, so the hot rows share the first pages.
//! A row of a size that divides 4096 lies within one page. Scales lie with the index: a row is one read.
//!
//! Bytes of U8 are rows of four bits a number: with h = ceil(d / 2), byte i < h has number 2i in its lower half and number
//! 2i + 1 in its upper one, each the place of one of the 16 [`LEVELS`]; the ceil(ceil(d / 16) / 2) bytes after them have, two a
//! byte in the same way, the sub-scale (1 to 15) of each 16 numbers. A number is scale times sub-scale times level. Whatever
//! lies between the end of a row and the next (w elements further) is zero.
//!
//! The [`Key`](crate::fgram::Key) of a rank is in the bucket (hash of the key times M) >> 64, in the first slot that was empty when
//! ranks were put in in order, or if that bucket was full in the next one with room, the first following the last. With b the
//! binary digits of N, a slot's lower b bits are the rank and the others the lower 32 - b bits of the hash. A bucket is a cache
//! line, in the file and in a mapping.
//!
//! The header is padded with spaces. Its `__metadata__` (strings, as safetensors wants them) has `format`
//! ("scone-table"), `version` ("2"), `rows` (N), `dim` (d), `quantization` ("none", "int8-row-absmax" or
//! "int4-block-levels"), `max_n` (K),
//! `special_tokens` (a JSON list, ascending), and four SHA-256 in hexadecimal that say what the rows were made of:
//! `tokenizer_sha256`, `token_embedding_sha256`, `fgram_model_sha256` and `fgrams_sha256`
//! (see [`fgram::identity`](crate::fgram::identity)). A header has at most 1 MiB. N, d, w and C fix everything else, so
//! a reader works out where each tensor must be and accepts no other header ([`Table::open`]).
//!
//! Checksums: the first is that of all bytes before `rows`; then B, one for each MiB (the last may be shorter) of
//! what lies from the start of `rows` to the start of `checksums`; the last is that of the checksums before it. Every
//! byte of the file is covered, and CRC-32 misses no change within 32 bits: a single changed byte is found with
//! certainty, and its place is known to a MiB.
//!
//! A *part* of a table is the same with `format` "scone-table-part" and two more numbers, `first_row` and `table_rows`: it has
//! the rows, keys and counts of some ranks, and no slots.
//!
//! While a table is written it has the name `FILE.partial` and its final length, and each MiB that lies wholly in `rows` gets
//! its checksum when it is complete; [`TableWriter`] goes on after the last good one.
//!
//! # Where rows live
//!
//! [`Table::open`] maps the file and reads nothing. [`Table::open_with`] reads the index into memory, in the shared
//! mapping, and keeps the rows where [`Placement`] says; every one gives the same rows.
//!
//! A file may be lost while it is mapped: cut short, written to, or on a disk that fails. A read of what is not there
//! is caught (SIGBUS, see `guard`), and [`Table::check`], which every [`Table::gather`] ends with, fails from then on.
//!
//! An empty table (N = 0) does not exist: a model without f-grams is a baseline and has no table.

mod checksum;
mod codec;
mod contents;
mod describe;
mod error;
mod explain;
mod export;
mod format;
mod guard;
mod header;
mod identity;
mod int4;
mod metrics;
mod partial;
mod parts;
mod placement;
mod plan;
mod quantize;
mod reader;
mod rows;
mod stamp;
#[cfg(test)]
pub(crate) mod testing;
mod verify;
mod writer;

pub use codec::RowType;
pub use contents::Contents;
pub use describe::{CountRange, Description, LengthCount, TensorSize, describe};
pub use error::TableError;
pub use explain::{Explained, Totals, explain};
pub use export::{ExportType, Format, export};
pub use identity::Identity;
pub use int4::LEVELS;
pub use metrics::{Metrics, MetricsSnapshot};
pub use parts::merge;
pub use placement::{DirectReads, GpuPlace, Placement};
pub use plan::{Plan, plan};
pub use quantize::quantize;
pub use reader::Table;
pub use verify::{VerifyReport, verify};
pub use writer::{RowFormat, TableWriter};
