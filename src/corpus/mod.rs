//! Text to token shards, counting, tagging: everything between a corpus and the training loop.
//!
//! - [`prepare`] turns text into a *dataset*: a directory of token shards, the tokenizer and `dataset.json`;
//! - [`Dataset`] opens one, its shards mapped, never read whole;
//! - [`mine`] counts the n-grams of the training split and keeps the most frequent; [`mine_in`] does so in bounded
//!   memory, and [`count_part`] and [`join`] spread the work over machines;
//! - [`tag`] writes the length of the longest match at every token beside the shards, and [`Tags`] opens that.
//!
//! Work is spread over the current rayon pool; no result depends on its size.

mod dataset;
mod error;
mod input;
mod mine;
mod prepare;
mod tags;
mod writer;

pub use dataset::{Dataset, Dtype, Manifest, Shard, ShardEntry, Split, SplitEntry};
pub use error::Error;
pub use input::{Input, Piece};
pub use mine::{
    Counted, Effort, JoinOptions, Joined, MineOptions, Mined, PartOptions, Progress as MineProgress, Scan,
    WorkDirectory, count_part, half_of_memory, join, mine, mine_in, mine_work, part_work,
};
pub use prepare::{PrepareOptions, Progress, SAMPLE_BYTES, TokenizerSource, prepare};
pub use tags::{Histogram, TagReport, Tags, tag};
pub use writer::{DatasetWriter, SHARD_TOKENS, SplitName};
