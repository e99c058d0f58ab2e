//! The transformer on candle, and the one place where the table meets it ([`embedding`]).
//!
//! The decoder takes input embeddings of a ragged batch and never hears of n-grams; [`Embedding`] turns token ids into
//! those embeddings. A baseline is the same code with no table.

mod checkpoint;
mod config;
mod copy;
mod decoder;
mod device;
mod directory;
mod draw;
pub mod embedding;
mod error;
mod executor;
mod extend;
mod fgram_model;
mod gpu_memory;
#[cfg(any(feature = "cuda", test))]
mod gpu_transformer;
mod inference;
mod likelihood;
mod live_table;
mod main_model;
pub mod ops;
mod perplexity;
mod piece;
mod rows;
mod stop_tokens;
mod tokenizer_info;
mod transformer;
mod write_weights;

pub use checkpoint::{Checkpoint, Stored};
pub use config::{Config, FgramConfig, RopeScaling};
pub(crate) use copy::copy_settings;
pub use decoder::{Attend, Decoder, GetParameter, Tree};
pub use device::DeviceChoice;
pub use directory::{ModelDirectory, SconeConfig};
pub use draw::{Draw, NO_TOKEN};
pub use embedding::{Embedding, Fgrams};
pub use error::ModelError;
pub use extend::extend_directory;
pub use fgram_model::{FgramModel, Grams};
pub use gpu_memory::{GpuMemory, GpuNeeds, gpu_memory, gpu_name};
pub use inference::{Model, Runtime};
pub use likelihood::{Likelihood, Span, likelihoods};
pub use live_table::{LiveTable, TableFit};
pub use main_model::MainModel;
pub use perplexity::{Perplexity, perplexity};
pub use piece::{Pass, Piece};
pub use rows::{RowCheck, Shard, build_table, check_rows, matmul_rate};
pub use tokenizer_info::TokenizerInfo;
pub use write_weights::{WeightType, write_weights};
