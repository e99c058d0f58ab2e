//! The transformer on candle, and the one place where the table meets it ([`embedding`]).
//!
//! The decoder takes input embeddings of a ragged batch and never hears of n-grams; [`Embedding`] turns token ids into
//! those embeddings. A baseline is the same code with no table.

mod config;
mod decoder;
mod directory;
pub mod embedding;
mod error;
mod fgram_model;
mod inference;
mod kv;
mod live_table;
pub mod ops;
mod perplexity;
mod piece;
mod rows;
mod weights;

pub use config::{Config, FgramConfig};
pub use decoder::{Attend, Decoder, GetParameter, Tree};
pub use directory::{ModelDirectory, SconeConfig};
pub use embedding::{Embedding, Fgrams};
pub use error::ModelError;
pub use fgram_model::{FgramModel, Grams};
pub use inference::{MainModel, Model};
pub use kv::KvCache;
pub use live_table::{LiveTable, TableFit};
pub use perplexity::{Perplexity, perplexity};
pub use piece::Piece;
pub use rows::{RowCheck, Shard, build_table, check_rows, matmul_rate};
pub use weights::{Weights, write_weights};
