//! One file an address: what is done for a request to it.

pub(in crate::server) mod admin;
pub(in crate::server) mod chat;
pub(in crate::server) mod completions;
pub(in crate::server) mod docs;
pub(in crate::server) mod fgrams;
pub(in crate::server) mod health;
pub(in crate::server) mod models;
mod text;
pub(in crate::server) mod tokenize;
