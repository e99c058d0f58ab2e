//! Encodings of weight files, and weights packed from them, against candle's own reading of the same bytes.
#![allow(clippy::unwrap_used, reason = "tests")]

use candle_core::Device;
use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use half::f16;
use rand::{Rng, RngExt, SeedableRng};
use scone::kernels::{Activations, Encoding, Matrix, Pool, product};

/// Encodings, candle's names for them and where in a block halves are: all other bytes may have any value.
const ENCODINGS: [(Encoding, GgmlDType, &[usize]); 5] = [
    (Encoding::Q8_0, GgmlDType::Q8_0, &[0]),
    (Encoding::Q4_0, GgmlDType::Q4_0, &[0]),
    (Encoding::Q4_1, GgmlDType::Q4_1, &[0, 2]),
    (Encoding::Q4K, GgmlDType::Q4K, &[0, 2]),
    (Encoding::Q6K, GgmlDType::Q6K, &[208]),
];

const ROWS: usize = 40;
const COLUMNS: usize = 512;

fn random_blocks(encoding: Encoding, halves: &[usize]) -> Vec<u8> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let mut bytes = vec![0; encoding.bytes(ROWS * COLUMNS).unwrap()];
    rng.fill_bytes(&mut bytes);
    for block in bytes.chunks_exact_mut(encoding.block_bytes()) {
        for &at in halves {
            let half = f16::from_f32((rng.random::<f32>() - 0.5) / 50.0);
            block[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
    bytes
}

fn by_candle(dtype: GgmlDType, bytes: &[u8]) -> Vec<f32> {
    let tensor = qtensor_from_ggml(dtype, bytes, vec![ROWS, COLUMNS], &Device::Cpu).unwrap();
    tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn decoded_numbers_are_those_of_candle() {
    for (encoding, dtype, halves) in ENCODINGS {
        let bytes = random_blocks(encoding, halves);
        let expected = by_candle(dtype, &bytes);
        let mut decoded = vec![0.0; expected.len()];
        encoding.decode(&bytes, &mut decoded);
        for (i, (x, y)) in decoded.iter().zip(&expected).enumerate() {
            assert!((x - y).abs() <= 1e-6 * y.abs(), "{}: number {i} is {x}, not {y}", encoding.name());
        }
        let matrix = Matrix::new(encoding, ROWS, COLUMNS, &bytes).unwrap();
        let mut row = vec![0.0; COLUMNS];
        for (output, decoded) in decoded.chunks_exact(COLUMNS).enumerate() {
            matrix.row(output, &mut row);
            assert_eq!(row, decoded, "{}: row {output}", encoding.name());
        }
    }
}

#[test]
fn products_are_those_with_the_numbers_of_candle() {
    let pool = Pool::new(2).unwrap();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(12);
    let mut x = Activations::new();
    x.resize(3, COLUMNS);
    x.numbers_mut().iter_mut().for_each(|x| *x = rng.random::<f32>() - 0.5);
    x.prepare(&pool);
    for (encoding, dtype, halves) in ENCODINGS {
        let bytes = random_blocks(encoding, halves);
        let weight = by_candle(dtype, &bytes);
        let matrix = Matrix::new(encoding, ROWS, COLUMNS, &bytes).unwrap();
        let mut y = vec![0.0; 3 * ROWS];
        product(&pool, &[(&matrix, 0)], &x, &mut y, ROWS);
        for (x, y) in x.numbers().chunks_exact(COLUMNS).zip(y.chunks_exact(ROWS)) {
            for (w, y) in weight.chunks_exact(COLUMNS).zip(y) {
                let products = x.iter().zip(w).map(|(x, w)| x * w);
                let size: f32 = products.clone().map(f32::abs).sum();
                let expected: f32 = products.sum();
                // What rounding rows to eight bits adds.
                assert!((y - expected).abs() <= 0.004 * size, "{}: {y}, not {expected}", encoding.name());
            }
        }
    }
}
