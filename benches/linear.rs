//! The product with a fixed weight: our panels, the gemm crate (as candle calls it) and plain row-dots, in a step of
//! decoding and in a batch of a prompt or of f-grams.
//!
//! `cargo bench --bench linear`. The three take turns within each round; a figure is the median of the rounds. A model
//! of width 128 stays in cache, wider ones do not: so the products go round copies of the weight of 4 and 128 MB.

mod machine;

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Tensor};
use machine::{median, peak};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use scone::model::ops::Linear;

// As in the programs: the system's allocator maps large results anew each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 9;
/// Seconds of work a contender has in a round, at least.
const SECONDS: f64 = 0.02;

fn random(shape: (usize, usize), seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let data = (0..shape.0 * shape.1).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    });
    Tensor::from_vec(data.collect(), shape, &Device::Cpu).expect("a tensor")
}

/// Seconds a call, over as many calls as fill the time of a round.
fn time(calls: usize, mut f: impl FnMut(usize)) -> f64 {
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed().as_secs_f64() < SECONDS {
        for _ in 0..calls {
            f(done);
            done += 1;
        }
    }
    start.elapsed().as_secs_f64() / done as f64
}

/// One inner product an output, summed in lanes: how fixed weights were multiplied before there were panels.
struct RowDots<'a>(&'a [f32], &'a [f32], &'a mut [f32]);

impl WithSimd for RowDots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(x, w, y) = self;
        let xs = S::as_simd_f32s(x).0;
        for (y, w) in y.iter_mut().zip(w.chunks_exact(x.len())) {
            let mut sums = [simd.splat_f32s(0.0); 4];
            for (x, w) in xs.chunks(4).zip(S::as_simd_f32s(w).0.chunks(4)) {
                for i in 0..x.len() {
                    sums[i] = simd.mul_add_e_f32s(x[i], w[i], sums[i]);
                }
            }
            let [a, b, c, d] = sums;
            *y = simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)));
        }
    }
}

fn row_dots(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let (m, n) = (x.len() / k, w.len() / k);
    let mut y = vec![0f32; m * n];
    if m * n * k < 256 * 1024 {
        y.chunks_mut(n).zip(x.chunks(k)).for_each(|(y, x)| Arch::new().dispatch(RowDots(x, w, y)));
        return y;
    }
    let part = n.div_ceil(rayon::current_num_threads());
    y.chunks_mut(n).zip(x.chunks(k)).for_each(|(y, x)| {
        y.par_chunks_mut(part)
            .zip(w.par_chunks(part * k))
            .for_each(|(y, w)| Arch::new().dispatch(RowDots(x, w, y)));
    });
    y
}

fn main() {
    let peak = peak();
    println!("{} threads, peak {:.0} GFLOP/s\n", rayon::current_num_threads(), peak / 1e9);
    println!(
        "| m | k | n | panels GFLOP/s | of peak | gemm | row-dots | panels / gemm | panels / row-dots |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (k, n) in [(128, 384), (128, 8192), (576, 1536), (1024, 1024), (2048, 2048)] {
        let copies = (if k == 128 { 4 << 20 } else { 128 << 20 } / (k * n * 4)).max(1);
        let weights: Vec<Tensor> = (0..copies).map(|i| random((n, k), i as u64)).collect();
        let slices: Vec<Vec<f32>> = weights
            .iter()
            .map(|w| w.flatten_all().and_then(|w| w.to_vec1()).expect("the elements"))
            .collect();
        let panels: Vec<Linear> =
            weights.iter().map(|w| Linear::new(w.clone()).fixed().expect("panels")).collect();
        for m in [1, 2, 4, 8, 16, 64, 256, 4096] {
            if m * n > 1 << 24 {
                continue;
            }
            let x = random((m, k), 7);
            let xs: Vec<f32> = x.flatten_all().and_then(|x| x.to_vec1()).expect("the elements");
            let flops = (2 * m * k * n) as f64;
            let calls = (1e7 / flops).ceil() as usize;
            let mut seconds: [Vec<f64>; 3] = Default::default();
            for _ in 0..ROUNDS {
                seconds[0].push(time(calls, |i| {
                    black_box(panels[i % copies].forward(&x).expect("a product"));
                }));
                seconds[1].push(time(calls, |i| {
                    black_box(weights[i % copies].t().and_then(|w| x.matmul(&w)).expect("a product"));
                }));
                seconds[2].push(time(calls, |i| {
                    black_box(row_dots(&xs, &slices[i % copies], k));
                }));
            }
            let ratio = |other: usize| {
                median(seconds[other].iter().zip(&seconds[0]).map(|(other, ours)| other / ours).collect())
            };
            let (gemm, dots) = (ratio(1), ratio(2));
            let [ours, theirs, dots_rate] = seconds.map(|seconds| flops / median(seconds) / 1e9);
            println!(
                "| {m} | {k} | {n} | {ours:.1} | {:.0} % | {theirs:.1} | {dots_rate:.1} | {gemm:.2} | {dots:.2} |",
                ours * 1e11 / peak
            );
        }
    }
}
