//! The sub-commands of both programs, one file each: `Args` (parsed by clap) and `run`.

pub mod bench;
