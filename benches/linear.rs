//! Products with packed weights: a step of decoding, which reads every weight once, and a prompt, which multiplies.
//!
//! `cargo bench --bench linear [ENCODING..]`. The shapes are those of SmolLM2-135M's layers, as many copies of each as no
//! cache holds. Beside each rate is its share of the bound that was measured just before: of reading the same memory, or
//! of multiply-adds that stay in registers. The peer for f32 is the gemm crate, in turn with ours; a figure is the
//! median of the rounds. `SCONE_THREADS` is the number of threads.

use std::hint::black_box;
use std::time::Instant;

use scone::kernels::simd::{Kernel, LANES, Level, Simd, dispatch};
use scone::kernels::{Activations, Encoding, Matrix, Pool, product};

// As in the programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 9;
/// Bytes of weights that no cache holds.
const COLD: usize = 160 << 20;
/// Outputs and inputs: Q, K and V together, the attention's output, gate and up together, down, and a part of the head.
const SHAPES: [(usize, usize); 5] = [(960, 576), (576, 576), (3072, 576), (576, 1536), (8192, 576)];
const ENCODINGS: [Encoding; 6] =
    [Encoding::F32, Encoding::Bf16, Encoding::F16, Encoding::Q8_0, Encoding::Q4_0, Encoding::Q4_1];

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Median seconds of a round.
fn time(mut round: impl FnMut()) -> f64 {
    let seconds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        round();
        start.elapsed().as_secs_f64()
    });
    median(seconds.collect())
}

/// Multiply-adds of numbers that stay in registers: what no product can exceed.
struct Peak {
    steps: usize,
    is_of_bytes: bool,
}

const CHAINS: usize = 12;

impl Kernel for Peak {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (a, b) = (simd.splat(black_box(0.999)), simd.splat(black_box(0.1)));
        let (u, s) = (simd.splat_i32(black_box(99)), simd.splat_i32(black_box(77)));
        let mut sums = [simd.splat(1.0); CHAINS];
        let mut dots = [simd.splat_i32(1); CHAINS];
        for _ in 0..self.steps {
            for i in 0..CHAINS {
                if self.is_of_bytes {
                    dots[i] = simd.dot(dots[i], u, s);
                } else {
                    sums[i] = simd.mul_add(a, sums[i], b);
                }
            }
        }
        let mut total = 0.0;
        for i in 0..CHAINS {
            total += simd.reduce_add(simd.add(sums[i], simd.to_f32(dots[i])));
        }
        total
    }
}

/// Operations a second of all threads.
fn peak(pool: &Pool, is_of_bytes: bool) -> f64 {
    const STEPS: usize = 1 << 21;
    let lanes = LANES * if is_of_bytes { 4 } else { 1 };
    let tasks = pool.threads() * 4;
    let seconds = time(|| {
        pool.run(tasks, &|_| {
            black_box(dispatch(Peak { steps: black_box(STEPS), is_of_bytes }));
        });
    });
    (2 * lanes * CHAINS * STEPS * tasks) as f64 / seconds
}

/// Bytes a second of reading memory and doing nothing with it.
fn bandwidth(pool: &Pool) -> f64 {
    struct Read<'a>(&'a [[f32; LANES]]);
    impl Kernel for Read<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> f32 {
            let mut sums = [simd.splat(0.0); 8];
            for eight in self.0.as_chunks::<8>().0 {
                for i in 0..8 {
                    sums[i] = simd.add(sums[i], simd.load(&eight[i]));
                }
            }
            let mut total = 0.0;
            for sum in sums {
                total += simd.reduce_add(sum);
            }
            total
        }
    }
    let mut map = memmap2::MmapMut::map_anon(COLD).expect("memory");
    #[cfg(target_os = "linux")]
    map.advise(memmap2::Advice::HugePage).ok();
    map.fill(0);
    let lines: &[[f32; LANES]] = bytemuck::cast_slice(&map);
    let part = lines.len() / (pool.threads() * 16);
    let seconds = time(|| {
        pool.run(lines.len() / part, &|task| {
            black_box(dispatch(Read(&lines[task * part..(task + 1) * part])));
        });
    });
    COLD as f64 / seconds
}

fn random(len: usize) -> Vec<f32> {
    let mut state = 7u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// The same product by the gemm crate.
fn gemm(
    x: &[f32],
    weight: &[f32],
    y: &mut [f32],
    (rows, outputs, inputs): (usize, usize, usize),
    threads: usize,
) {
    assert!(x.len() == rows * inputs && weight.len() == outputs * inputs && y.len() == rows * outputs);
    let (k, n) = (inputs as isize, outputs as isize);
    // SAFETY: the slices have the sizes that the strides reach.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            y.as_mut_ptr(),
            1,
            n,
            false,
            x.as_ptr(),
            1,
            k,
            weight.as_ptr(),
            k,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(threads),
        );
    }
}

fn main() {
    let threads = std::env::var("SCONE_THREADS").ok().and_then(|threads| threads.parse().ok());
    let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let wanted: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let pool = Pool::new(threads).expect("threads");
    let (floats, bytes, read) = (peak(&pool, false), peak(&pool, true), bandwidth(&pool));
    println!(
        "{} on {threads} threads: {:.0} GFLOP/s, {:.0} G operations/s of bytes, memory read at {:.1} GB/s\n",
        Level::best().name(),
        floats / 1e9,
        bytes / 1e9,
        read / 1e9
    );
    println!(
        "| encoding | outputs | inputs | 1 row: GB/s | of memory | 8 rows: GB/s | of memory | 512 rows: G/s | of peak | gemm at 1, 8, 512 rows |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for encoding in ENCODINGS {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == encoding.name()) {
            continue;
        }
        let peak = if encoding.block() > 1 { bytes } else { floats };
        for (outputs, inputs) in SHAPES {
            line(&pool, encoding, (outputs, inputs), read, peak);
        }
    }
}

/// Measures and prints a line of the table.
fn line(pool: &Pool, encoding: Encoding, (outputs, inputs): (usize, usize), read: f64, peak: f64) {
    let numbers = random(outputs * inputs);
    let stored: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let one = || Matrix::convert(Encoding::F32, outputs, inputs, &stored, encoding).expect("a weight");
    let first = one();
    let copies = COLD.div_ceil(first.bytes());
    let weights: Vec<Matrix> = std::iter::once(first).chain((1..copies).map(|_| one())).collect();
    let plain: Vec<&[f32]> = if encoding == Encoding::F32 { vec![&numbers] } else { Vec::new() };
    let plain: Vec<Vec<f32>> = plain.iter().flat_map(|x| (0..copies).map(|_| x.to_vec())).collect();
    print!("| {} | {outputs} | {inputs} |", encoding.name());
    let mut ratios = Vec::new();
    for rows in [1, 8, 512] {
        let mut x = Activations::new();
        x.resize(rows, inputs);
        x.numbers_mut().copy_from_slice(&random(rows * inputs));
        if weights[0].is_quantised() {
            x.prepare(pool);
        }
        let mut y = vec![0f32; rows * outputs];
        // All copies where reading counts, a few where multiplying does.
        let of_round = if rows > 8 { copies.min(4) } else { copies };
        let seconds = time(|| {
            for weight in &weights[..of_round] {
                product(pool, &[(weight, 0)], &x, &mut y, outputs);
            }
        }) / of_round as f64;
        if rows > 8 {
            let rate = (2 * rows * outputs * inputs) as f64 / seconds;
            print!(" {:.0} | {:.0} % |", rate / 1e9, 100.0 * rate / peak);
        } else {
            let rate = weights[0].bytes() as f64 / seconds;
            print!(" {:.1} | {:.0} % |", rate / 1e9, 100.0 * rate / read);
        }
        if !plain.is_empty() {
            let theirs = time(|| {
                for weight in &plain[..of_round] {
                    gemm(x.numbers(), weight, &mut y, (rows, outputs, inputs), pool.threads());
                }
            });
            ratios.push(format!("{:.2}", theirs / of_round as f64 / seconds));
        }
    }
    println!(" {} |", if ratios.is_empty() { "-".into() } else { format!("{} times", ratios.join(", ")) });
}
