//! `cargo fuzz run open_table`: any bytes as a table. Give it `fuzz/corpus/open_table` with a small table to start from, such
//! as one that `scone table build` made of the model of examples/sotu.
#![no_main]

#[path = "../exercise.rs"]
mod exercise;

use std::io::Write;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    exercise::exercise(file.path());
});
