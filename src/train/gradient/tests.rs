//! Gradients of rows against whole ones, which are the obvious twin: the same numbers, with zeros between them.

use candle_core::{Device, Tensor, Var};
use proptest::prelude::*;

use super::*;
use crate::train::{AdamW, OptimizerConfig};

/// Rows of a table and their gradients, made of `seed`.
fn rows(len: usize, d: usize, share: f64, seed: u64) -> RowGradient {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let rows: Vec<u32> = (0..len as u32).filter(|_| rng.random_bool(share)).collect();
    let values: Vec<f32> = (0..rows.len() * d).map(|_| rng.random_range(-1.0..1.0)).collect();
    let values = Tensor::from_vec(values, (rows.len(), d), &Device::Cpu).unwrap();
    let table = Tensor::zeros((len, d), candle_core::DType::F32, &Device::Cpu).unwrap();
    RowGradient::new(rows, &values, &table).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

proptest! {
    #[test]
    fn sums_and_norms_do_not_depend_on_the_form(
        len in 1usize..60, d in 1usize..20, shares in [0.0..1.0, 0.0..1.0], seed in any::<u64>(),
    ) {
        let [a, b] = [(shares[0], seed), (shares[1], seed ^ 1)].map(|(share, seed)| rows(len, d, share, seed));
        let expected = (a.whole().unwrap() + b.whole().unwrap()).unwrap();
        let forms = |rows: &RowGradient| {
            [Gradient::Rows(rows.clone()), Gradient::Whole(rows.whole().unwrap())]
        };
        let norm = square_sums([&Gradient::Whole(expected.clone())]).unwrap();
        for own in 0..2 {
            for other in 0..2 {
                let [x, y] = [forms(&a).into_iter().nth(own).unwrap(), forms(&b).into_iter().nth(other).unwrap()];
                let sum = x.plus(y).unwrap();
                prop_assert_eq!(numbers(&sum.whole().unwrap()), numbers(&expected));
                prop_assert_eq!(square_sums([&sum]).unwrap(), norm.clone());
            }
        }
        let exact: f64 = numbers(&expected).iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        prop_assert!((norm[0] - exact).abs() <= 1e-12 * exact);
    }
}

/// The table is of several tasks, and rows at their edges are among those that are there.
#[test]
fn an_update_does_not_depend_on_the_form() {
    let (len, d) = (5000, 24);
    let update = |whole: bool| {
        let start: Vec<f32> = (0..len * d).map(|i| (i as f32).cos()).collect();
        let var = Var::from_vec(start, (len, d), &Device::Cpu).unwrap();
        let mut optimizer = AdamW::new(&OptimizerConfig::default());
        for step in 1..=4 {
            let rows = rows(len, d, 0.3, step);
            let gradient = if whole { Gradient::Whole(rows.whole().unwrap()) } else { Gradient::Rows(rows) };
            optimizer.update("w", &var, &gradient, step, 0.01, 0.7).unwrap();
        }
        numbers(&var)
    };
    let (of_rows, of_whole) = (update(false), update(true));
    assert!(of_rows == of_whole);
    for (row, values) in of_rows.chunks_exact(d).enumerate() {
        let start = (row * d..).map(|i| (i as f32).cos());
        assert!(values.iter().zip(start).any(|(&x, start)| x != start), "row {row} did not move");
    }
}

#[test]
fn rows_that_are_none_of_the_table_are_refused() {
    let table = Tensor::zeros((4, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    let values = Tensor::zeros((2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(RowGradient::new(vec![0, 3], &values, &table).is_ok());
    for rows in [vec![0, 4], vec![2, 1], vec![1, 1], vec![1], vec![0, 1, 2]] {
        assert!(RowGradient::new(rows.clone(), &values, &table).is_err(), "{rows:?}");
    }
    let others = rows(5, 2, 0.5, 1);
    let own = RowGradient::new(vec![0, 3], &values, &table).unwrap();
    assert!(Gradient::Rows(own.clone()).plus(Gradient::Rows(others.clone())).is_err());
    assert!(Gradient::Rows(own).plus(Gradient::Whole(others.whole().unwrap())).is_err());
}
