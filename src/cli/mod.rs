//! The sub-commands of both programs, one file each: `Args` (parsed by clap) and `run`.

pub mod generate;
mod open_model;
pub mod serve;
