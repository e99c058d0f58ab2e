#![allow(clippy::unwrap_used, reason = "tests")]

use half::f16;
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};

use super::super::activations::{BLOCK, Block};
use super::*;

const ALL: [Encoding; 8] = [
    Encoding::F32,
    Encoding::F16,
    Encoding::Bf16,
    Encoding::Q8_0,
    Encoding::Q4_0,
    Encoding::Q4_1,
    Encoding::Q4K,
    Encoding::Q6K,
];

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
}

/// Bytes of a weight: any codes, scales of a sensible size.
fn stored(encoding: Encoding, numbers: usize, seed: u64) -> Vec<u8> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = vec![0; encoding.bytes(numbers).unwrap()];
    rng.fill_bytes(&mut bytes);
    let halves: &[usize] = match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::Bf16 => {
            bytes.clear();
            encoding.encode(&random(numbers, seed), &mut bytes).unwrap();
            return bytes;
        }
        Encoding::Q8_0 | Encoding::Q4_0 => &[0],
        Encoding::Q4_1 | Encoding::Q4K => &[0, 2],
        Encoding::Q6K => &[208],
    };
    for block in bytes.chunks_exact_mut(encoding.block_bytes()) {
        for &at in halves {
            let scale = f16::from_f32((rng.random::<f32>() - 0.5) / 100.0);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

struct Case {
    encoding: Encoding,
    outputs: usize,
    inputs: usize,
    bytes: Vec<u8>,
    matrix: Matrix,
}

impl Case {
    /// A weight of about this many inputs.
    fn new(encoding: Encoding, outputs: usize, inputs: usize, seed: u64) -> Self {
        let inputs = inputs.next_multiple_of(encoding.block());
        let bytes = stored(encoding, outputs * inputs, seed);
        let matrix = Matrix::new(encoding, outputs, inputs, &bytes).unwrap();
        Self { encoding, outputs, inputs, bytes, matrix }
    }

    fn decoded(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.outputs * self.inputs];
        self.encoding.decode(&self.bytes, &mut numbers);
        numbers
    }

    fn activations(&self, x: &[f32], pool: &Pool) -> Activations {
        let mut activations = Activations::new();
        activations.resize(x.len() / self.inputs, self.inputs);
        activations.numbers_mut().copy_from_slice(x);
        if self.matrix.is_quantised() {
            activations.prepare(pool);
        }
        activations
    }

    fn product(&self, level: Level, pool: &Pool, x: &[f32]) -> Vec<f32> {
        let x = self.activations(x, pool);
        let mut y = vec![f32::NAN; x.rows() * self.outputs];
        product_by(level, pool, &[(&self.matrix, 0)], &x, &mut y, self.outputs);
        y
    }
}

/// The numbers that a weight of this encoding multiplies.
fn seen(activations: &Activations, is_quantised: bool) -> Vec<f64> {
    let number = |block: &Block, i: usize| {
        let byte = |fours: &[i32; 8]| f64::from(fours[i / 4].to_ne_bytes()[i % 4] as i8);
        f64::from(block.scale) * (256.0 * byte(&block.upper) + byte(&block.lower))
    };
    if is_quantised {
        activations.blocks().iter().flat_map(|block| (0..BLOCK).map(move |i| number(block, i))).collect()
    } else {
        activations.numbers().iter().map(|&x| f64::from(x)).collect()
    }
}

/// In f64, one output after the other; and the sum of magnitudes, which rounding is relative to.
fn naive(x: &[f64], weight: &[f32], inputs: usize) -> Vec<(f64, f64)> {
    let mut y = Vec::new();
    for x in x.chunks_exact(inputs) {
        for w in weight.chunks_exact(inputs) {
            let products = x.iter().zip(w).map(|(x, &w)| x * f64::from(w));
            y.push((products.clone().sum(), products.map(f64::abs).sum()));
        }
    }
    y
}

fn assert_close(y: &[f32], expected: &[(f64, f64)], bound: f64, what: &str) {
    assert_eq!(y.len(), expected.len());
    for (i, (&y, &(expected, size))) in y.iter().zip(expected).enumerate() {
        let bound = bound * size.max(1e-3);
        assert!((f64::from(y) - expected).abs() <= bound, "{what}: number {i} is {y}, not {expected}");
    }
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// All that must hold of one weight and some rows.
fn check_case(case: &Case, rows: usize, seed: u64, pools: &[Pool]) {
    let name = case.encoding.name();
    let x = random(rows * case.inputs, seed);
    let weight = case.decoded();
    let y = case.product(Level::best(), &pools[0], &x);
    let is_quantised = case.matrix.is_quantised();
    let seen = seen(&case.activations(&x, &pools[0]), is_quantised);
    // A least value and the codes above it can cancel: both are part of what is rounded.
    let bound = if is_quantised { 1e-5 } else { 2e-6 };
    assert_close(&y, &naive(&seen, &weight, case.inputs), bound, name);
    let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    assert_close(&y, &naive(&exact, &weight, case.inputs), 0.02, name);
    for level in Level::all() {
        assert_eq!(bits(&y), bits(&case.product(level, &pools[0], &x)), "{name} by {}", level.name());
    }
    for pool in &pools[1..] {
        assert_eq!(
            bits(&y),
            bits(&case.product(Level::best(), pool, &x)),
            "{name}, {} threads",
            pool.threads()
        );
    }
    for row in 0..rows.min(20) {
        let alone = case.product(Level::best(), &pools[0], &x[row * case.inputs..][..case.inputs]);
        assert_eq!(bits(&y[row * case.outputs..][..case.outputs]), bits(&alone), "{name}: row {row} alone");
    }
    let mut row = vec![0.0; case.inputs];
    for output in 0..case.outputs {
        case.matrix.row(output, &mut row);
        assert_eq!(row, weight[output * case.inputs..][..case.inputs], "{name}: row {output} as stored");
    }
}

fn pools() -> Vec<Pool> {
    [1, 2, 3].map(|threads| Pool::new(threads).unwrap()).into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn products_are_right_and_depend_on_the_shapes_alone(
        rows in 1usize..40, inputs in 1usize..300, outputs in 1usize..150, seed: u64,
    ) {
        let pools = pools();
        for encoding in ALL {
            check_case(&Case::new(encoding, outputs, inputs, seed), rows, !seed, &pools);
        }
    }
}

/// Several strips, blocks of rows and tasks.
#[test]
fn large_shapes_change_nothing() {
    let pools = pools();
    for encoding in ALL {
        for (rows, inputs, outputs) in [(1, 8192, 200), (7, 4096 + 256, 100), (100, 2048, 33), (500, 512, 64)]
        {
            check_case(&Case::new(encoding, outputs, inputs, 1), rows, 2, &pools);
        }
    }
}

#[test]
fn several_weights_write_their_own_columns() {
    let pools = pools();
    let cases = [Encoding::Q8_0, Encoding::F32, Encoding::Q6K, Encoding::Q4_1]
        .map(|encoding| Case::new(encoding, 70 + encoding.block_bytes(), 512, 3));
    let x = random(5 * 512, 4);
    let mut activations = cases[0].activations(&x, &pools[0]);
    activations.prepare(&pools[0]);
    for pool in &pools {
        let mut column = 3;
        let mut weights = Vec::new();
        for case in &cases {
            weights.push((&case.matrix, column));
            column += case.outputs + 1;
        }
        let mut y = vec![7.0; 5 * column];
        product(pool, &weights, &activations, &mut y, column);
        for row in y.chunks_exact(column) {
            assert_eq!(row[..3], [7.0; 3]);
        }
        for (case, (_, column_of)) in cases.iter().zip(&weights) {
            let alone = case.product(Level::best(), pool, &x);
            for (row, alone) in y.chunks_exact(column).zip(alone.chunks_exact(case.outputs)) {
                assert_eq!(&row[*column_of..][..case.outputs], alone);
                assert_eq!(row[column_of + case.outputs], 7.0, "the column beside");
            }
        }
    }
}

#[test]
fn what_is_no_number_reaches_the_result() {
    let pool = Pool::new(1).unwrap();
    for encoding in ALL {
        let case = Case::new(encoding, 40, 256, 5);
        let mut x = random(2 * 256, 6);
        x[300] = f32::NAN;
        let y = case.product(Level::best(), &pool, &x);
        assert!(
            y[..40].iter().all(|y| y.is_finite()) && y[40..].iter().all(|y| y.is_nan()),
            "{}",
            encoding.name()
        );
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let error = |encoding, outputs, inputs, bytes: usize| {
        Matrix::new(encoding, outputs, inputs, &vec![0; bytes]).unwrap_err()
    };
    assert!(error(Encoding::Q8_0, 2, 33, 68).contains("no whole blocks"));
    assert!(error(Encoding::Q6K, 1, 128, 105).contains("no whole blocks"));
    assert!(error(Encoding::F32, 2, 3, 23).contains("12 bytes a row"));
    assert!(error(Encoding::F32, usize::MAX, 4, 16).contains("16 are there"));
    assert!(error(Encoding::F16, 3, 0, 0).contains("no inputs"));
    let convert = Matrix::convert(Encoding::F32, 1, 256, &[0; 1024], Encoding::Q4K);
    assert!(convert.unwrap_err().contains("q4_k"));
    assert_eq!(Matrix::new(Encoding::F32, 0, 8, &[]).unwrap().outputs(), 0);
}

#[test]
fn converted_weights_are_what_was_encoded() {
    let numbers = random(50 * 64, 8);
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    for to in &ALL[..6] {
        let matrix = Matrix::convert(Encoding::F32, 50, 64, &bytes, *to).unwrap();
        let mut encoded = Vec::new();
        to.encode(&numbers, &mut encoded).unwrap();
        let mut expected = vec![0.0; numbers.len()];
        to.decode(&encoded, &mut expected);
        let mut row = vec![0.0; 64];
        for (output, expected) in expected.chunks_exact(64).enumerate() {
            matrix.row(output, &mut row);
            assert_eq!(row, expected);
        }
        assert_eq!(matrix.encoding(), *to);
    }
}

#[test]
#[should_panic(expected = "the same columns")]
fn overlapping_columns_are_refused() {
    let case = Case::new(Encoding::F32, 8, 8, 1);
    let pool = Pool::new(1).unwrap();
    let x = case.activations(&[1.0; 8], &pool);
    product(&pool, &[(&case.matrix, 0), (&case.matrix, 7)], &x, &mut [0.0; 16], 16);
}
