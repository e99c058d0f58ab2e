//! Frequent n-grams of tokens: what a SCONE model looks up before its forward pass.
//!
//! An *f-gram* is an n-gram of `2 <= n <= K` tokens that is frequent in the training corpus; the set of them is
//! `V_f` (SCONE, arXiv 2502.01637, section 3). The embedding of the **longest** f-gram that ends at a token
//! replaces that token's input embedding. A single token is never an f-gram, and a token where none ends *falls
//! back* to its own embedding.
//!
//! F-grams are ranked by count (descending), then length (ascending), then token ids (ascending). Cut anywhere,
//! such a ranking is *closed*: with an f-gram come its prefix and its suffix, since neither can be rarer and both
//! are shorter. From this follows all that makes matching cheap:
//!
//! - the longest match at a position is found by growing to the left from `n = 2` and stopping at the first miss;
//! - an f-gram is stored as its suffix's rank and one more token: eight bytes, whatever `K` is ([`Key`]);
//! - special tokens need no rule of their own: they are in no f-gram, so no match crosses one;
//! - a match depends on the last `K` tokens and nothing else.
//!
//! Nothing here knows of tensors, and only [`parquet`] of files.

mod buckets;
mod index;
mod key;
pub mod parquet;
mod prefetch;
mod set;
pub mod twin;
mod union;

pub use buckets::{Bucket, bucket_count, build_buckets};
pub use index::{Index, Match};
pub use key::{Key, MAX_RANKS, MAX_VOCABULARY};
pub use set::{FgramSet, Policy, SetBuilder, SetError, identity, rank_order};

/// The largest `K` that is supported: the longest f-gram has this many tokens.
pub const MAX_N: usize = 16;
