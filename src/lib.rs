//! scone: language models part of which lives outside the accelerator.
//!
//! A SCONE model ("Scaling Embedding Layers in Language Models", arXiv 2502.01637) replaces a token's input
//! embedding by that of the longest frequent n-gram ending there. The n-grams' embeddings are learned by a separate
//! model, computed once, and served from a table in host memory. This crate mines the n-grams, trains both models,
//! makes the table and serves completions. ARCHITECTURE.md is the map; a layer uses those above it only:

mod memory;
mod new_file;

pub mod tokenizer;

pub mod fgram;

pub mod table;

pub mod corpus;

pub mod kernels;

#[cfg(any(feature = "cuda", test))]
mod gpu;

pub mod model;

pub mod engine;

pub mod train;

pub mod server;

pub mod bench;

pub mod cli;
