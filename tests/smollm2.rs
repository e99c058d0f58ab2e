//! A real model, by hand, for its file is not part of the repository:
//!
//!     SCONE_SMOLLM2=SmolLM2-135M-Instruct.Q4_1.gguf cargo test --release --test smollm2 -- --ignored --nocapture
//!
//! The logits are those of an independent forward pass in f32 over the dequantised weights (`benches/peers/reference.py`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;

use scone::kernels::{Encoding, KvType, Pool};
use scone::model::{ModelDirectory, Piece, Runtime};

#[test]
#[ignore = "needs SmolLM2-135M-Instruct.Q4_1.gguf"]
fn the_capital_of_france() {
    let file = PathBuf::from(std::env::var_os("SCONE_SMOLLM2").expect("SCONE_SMOLLM2: the GGUF file"));
    let directory = ModelDirectory::open(&file).unwrap();
    let tokens = directory.tokenizer().encode("The capital of France is").unwrap();
    assert_eq!(tokens, [504, 3575, 282, 4649, 314]);
    // In f32, and as it is stored: eight and four bits times rows of sixteen.
    for (dtype, kv_type, tolerance) in [
        (Some(Encoding::F32), KvType::F32, 1e-3),
        (Some(Encoding::F32), KvType::F16, 1e-2),
        (None, KvType::F16, 1e-2),
    ] {
        let mut runtime = Runtime::new(Arc::new(Pool::new(2).unwrap()), 16);
        (runtime.dtype, runtime.kv_type) = (dtype, kv_type);
        let mut model = directory.load(None, &runtime).unwrap();
        let mut logits = Vec::new();
        model.forward(&[Piece { tokens: &tokens, past: 0, blocks: &[0], wanted: 1 }], &mut logits).unwrap();
        for (text, expected) in [(" Paris", 17.3713), (" the", 14.8886), (" London", 13.2450)] {
            let id = directory.tokenizer().encode(text).unwrap()[0];
            let found = logits[id as usize];
            println!("{dtype:?}, keys and values {kv_type:?}: {text:?} {found:.4} (numpy: {expected})");
            assert!((found - expected).abs() < tolerance, "{text}: {found} is not {expected}");
        }
    }
}
