//! A weight laid out for its products: panels of outputs, side by side for each input.

use std::mem::MaybeUninit;

use bytemuck::{Pod, Zeroable};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Outputs of a panel: two registers of AVX-512, two times two of AVX2.
const WIDTH: usize = 32;
/// Inputs of a block: its part of a panel stays in the second cache while all rows pass by.
const BLOCK: usize = 2048;
/// Below this cost waking a second thread takes longer than it saves: a multiplication costs 1, reading a weight 8.
const PARALLEL_FROM: usize = 2 << 20;
/// From this many rows a thread, threads share the rows instead of the panels: reading the whole weight is then cheap
/// beside the work.
const ROWS_A_THREAD: usize = 128;
/// Rows of a task where threads share the rows: several tasks a thread, so that none waits long for the other.
const TASK_ROWS: usize = 192;

/// One input's weights for the outputs of a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Step([f32; WIDTH]);

/// A weight `[outputs, inputs]`, panel by panel; the last is filled up with zeros.
///
/// Each output is summed input by input, in ONE order whatever the batch, the threads and the panel's place: so a row's
/// result is the same, bit for bit, whatever runs beside it.
pub(super) struct Panels {
    steps: Vec<Step>,
    inputs: usize,
    outputs: usize,
}

impl Panels {
    /// Copies a row-major weight.
    pub(super) fn new(weight: &[f32], outputs: usize, inputs: usize) -> Self {
        assert_eq!(weight.len(), outputs * inputs, "a weight of another shape");
        let mut steps = vec![Step::zeroed(); outputs.div_ceil(WIDTH) * inputs];
        if inputs > 0 {
            steps.par_chunks_mut(inputs).zip(weight.par_chunks(WIDTH * inputs)).for_each(
                |(panel, weight)| {
                    for (output, weight) in weight.chunks_exact(inputs).enumerate() {
                        for (step, &w) in panel.iter_mut().zip(weight) {
                            step.0[output] = w;
                        }
                    }
                },
            );
        }
        Self { steps, inputs, outputs }
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `x * weight^T` for `x` `[rows, inputs]`: `[rows, outputs]`.
    pub(super) fn product(&self, x: &[f32]) -> Vec<f32> {
        if self.inputs == 0 || self.outputs == 0 {
            return Vec::new();
        }
        let rows = x.len() / self.inputs;
        let threads = rayon::current_num_threads();
        let panels = self.outputs.div_ceil(WIDTH);
        let small = threads == 1 || (rows + 8) * self.outputs * self.inputs < PARALLEL_FROM;
        if !small && (rows >= threads * ROWS_A_THREAD || panels < threads) {
            let task = rows.div_ceil(threads).min(TASK_ROWS);
            return zeros(rows * self.outputs, task * self.outputs, |i, y| {
                let x = &x[i * task * self.inputs..][..y.len() / self.outputs * self.inputs];
                self.multiply(x, &self.steps, y.chunks_mut(self.outputs).collect());
            });
        }
        let mut y = vec![0f32; rows * self.outputs];
        if small {
            self.multiply(x, &self.steps, y.chunks_mut(self.outputs).collect());
        } else {
            // Every thread reads its part of the weight and no other.
            let panels = panels.div_ceil(threads);
            let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
            parts.resize_with(threads, || Vec::with_capacity(rows));
            for y in y.chunks_mut(self.outputs) {
                for (part, y) in parts.iter_mut().zip(y.chunks_mut(panels * WIDTH)) {
                    part.push(y);
                }
            }
            parts
                .into_par_iter()
                .zip(self.steps.par_chunks(panels * self.inputs))
                .for_each(|(y, steps)| self.multiply(x, steps, y));
        }
        y
    }

    fn multiply(&self, x: &[f32], steps: &[Step], y: Vec<&mut [f32]>) {
        Arch::new().dispatch(Product { x, steps, inputs: self.inputs, y });
    }
}

/// A vector that tasks fill part by part, each of `part` numbers but the last; a task gets its number and its part, zeroed.
/// Zeroing the whole first would take one thread's time, and the part would have left its cache by its turn.
fn zeros(len: usize, part: usize, task: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut room = Vec::with_capacity(len);
    room.spare_capacity_mut()[..len].par_chunks_mut(part).enumerate().for_each(|(i, room)| {
        room.fill(MaybeUninit::new(0.0));
        // SAFETY: the line above has set every element of this part, and `MaybeUninit<f32>` lies in memory as `f32`.
        let room = unsafe { &mut *(std::ptr::from_mut(room) as *mut [f32]) };
        task(i, room);
    });
    // SAFETY: the parts cover the first `len` elements, which the capacity holds, and each part has been set.
    unsafe { room.set_len(len) };
    room
}

/// Rows of `x` times some panels, into the columns `y` of each row.
struct Product<'a> {
    x: &'a [f32],
    steps: &'a [Step],
    inputs: usize,
    y: Vec<&'a mut [f32]>,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Registers across and rows down: as many sums as the processor has registers for, beside their operands.
        match S::F32_LANES {
            16 => self.run::<S, 2>(simd, 12),
            8 => self.run::<S, 2>(simd, 6),
            4 => self.run::<S, 4>(simd, 6),
            _ => self.run::<S, 8>(simd, 1),
        }
    }
}

/// Where a tile is: a first row, panel and register of the panel, and the inputs it adds up.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    panel: usize,
    register: usize,
    from: usize,
    to: usize,
}

impl Product<'_> {
    #[inline(always)]
    fn run<S: Simd, const V: usize>(mut self, simd: S, most_rows: usize) {
        let rows = self.y.len();
        let panels = self.steps.len() / self.inputs;
        if rows == 0 {
            return;
        }
        let tall = rows.div_ceil(rows.div_ceil(most_rows));
        // Few rows need several panels at once, or there were not enough sums to hide the latency of an FMA.
        let together = match rows {
            _ if rows > tall => 1,
            1 => 4,
            2 | 3 => 2,
            _ => 1,
        };
        for from in (0..self.inputs).step_by(BLOCK) {
            let to = (from + BLOCK).min(self.inputs);
            let mut panel = 0;
            while panel < panels {
                let wide = if panel + together <= panels { together } else { 1 };
                for register in (0..WIDTH / S::F32_LANES).step_by(V) {
                    for row in (0..rows).step_by(tall) {
                        let place = Place { row, panel, register, from, to };
                        match (wide, tall.min(rows - row)) {
                            (4, _) => self.tile::<S, 1, 4, V>(simd, place),
                            (2, 2) => self.tile::<S, 2, 2, V>(simd, place),
                            (2, 3) => self.tile::<S, 3, 2, V>(simd, place),
                            (_, 1) => self.tile::<S, 1, 1, V>(simd, place),
                            (_, 2) => self.tile::<S, 2, 1, V>(simd, place),
                            (_, 3) => self.tile::<S, 3, 1, V>(simd, place),
                            (_, 4) => self.tile::<S, 4, 1, V>(simd, place),
                            (_, 5) => self.tile::<S, 5, 1, V>(simd, place),
                            (_, 6) => self.tile::<S, 6, 1, V>(simd, place),
                            (_, 7) => self.tile::<S, 7, 1, V>(simd, place),
                            (_, 8) => self.tile::<S, 8, 1, V>(simd, place),
                            (_, 9) => self.tile::<S, 9, 1, V>(simd, place),
                            (_, 10) => self.tile::<S, 10, 1, V>(simd, place),
                            (_, 11) => self.tile::<S, 11, 1, V>(simd, place),
                            _ => self.tile::<S, 12, 1, V>(simd, place),
                        }
                    }
                }
                panel += wide;
            }
        }
    }

    /// Adds the products of some inputs to the sums of `M` rows and `V` registers of `P` panels.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const P: usize, const V: usize>(&mut self, simd: S, at: Place) {
        let width = V * S::F32_LANES;
        let column = |p: usize| (at.panel + p) * WIDTH + at.register * S::F32_LANES;
        let len = at.to - at.from;
        let xs: [&[f32]; M] = std::array::from_fn(|i| &self.x[(at.row + i) * self.inputs + at.from..][..len]);
        let panels: [&[Step]; P] =
            std::array::from_fn(|p| &self.steps[(at.panel + p) * self.inputs + at.from..][..len]);
        let mut sums = [[[simd.splat_f32s(0.0); V]; P]; M];
        if at.from > 0 {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (p, sums) in sums.iter_mut().enumerate() {
                    let mut buffer = [0f32; WIDTH];
                    let y = self.y[at.row + i].get(column(p)..).unwrap_or_default();
                    let n = y.len().min(width);
                    buffer[..n].copy_from_slice(&y[..n]);
                    sums.copy_from_slice(&S::as_simd_f32s(&buffer).0[..V]);
                }
            }
        }
        for step in 0..len {
            let w: [[S::f32s; V]; P] = std::array::from_fn(|p| {
                let registers = S::as_simd_f32s(&panels[p][step].0).0;
                std::array::from_fn(|v| registers[at.register + v])
            });
            for i in 0..M {
                let x = simd.splat_f32s(xs[i][step]);
                for p in 0..P {
                    for v in 0..V {
                        sums[i][p][v] = simd.mul_add_e_f32s(x, w[p][v], sums[i][p][v]);
                    }
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (p, sums) in sums.iter().enumerate() {
                let values: &[f32] = bytemuck::cast_slice(sums);
                let y = self.y[at.row + i].get_mut(column(p)..).unwrap_or_default();
                let n = y.len().min(width);
                y[..n].copy_from_slice(&values[..n]);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..len).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
    }

    /// In f64, one output after the other; and the sum of magnitudes, which rounding is relative to.
    fn naive(x: &[f32], w: &[f32], k: usize) -> Vec<(f64, f64)> {
        let products = |x: &[f32], w: &[f32]| -> Vec<f64> {
            x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).collect()
        };
        let outputs = x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| products(x, w)));
        outputs.map(|p| (p.iter().sum(), p.iter().map(|p| p.abs()).sum())).collect()
    }

    fn assert_close(y: &[f32], expected: &[(f64, f64)], what: &str) {
        assert_eq!(y.len(), expected.len());
        for (i, (&y, &(expected, size))) in y.iter().zip(expected).enumerate() {
            let bound = 1e-5 * size.max(1e-3);
            assert!((f64::from(y) - expected).abs() <= bound, "{what}: output {i} is {y}, not {expected}");
        }
    }

    /// The product by one kind of SIMD, on one thread.
    fn by<S: Simd>(simd: S, panels: &Panels, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0f32; x.len() / panels.inputs * panels.outputs];
        let rows = y.chunks_mut(panels.outputs).collect();
        simd.vectorize(Product { x, steps: &panels.steps, inputs: panels.inputs, y: rows });
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn products_equal_the_naive_ones_and_do_not_depend_on_the_batch(
            m in 1usize..80, k in 1usize..150, n in 1usize..200, seed: u64,
        ) {
            let (x, w) = (random(m * k, seed), random(n * k, !seed));
            let panels = Panels::new(&w, n, k);
            let y = panels.product(&x);
            let expected = naive(&x, &w, k);
            assert_close(&y, &expected, "product");
            for (row, y) in y.chunks_exact(n).enumerate() {
                let alone = panels.product(&x[row * k..][..k]);
                prop_assert!(alone == y, "row {row} differs alone");
            }
            assert_close(&by(pulp::Scalar::new(), &panels, &x), &expected, "scalar");
            #[cfg(target_arch = "x86_64")]
            {
                if let Some(simd) = pulp::x86::V3::try_new() {
                    assert_close(&by(simd, &panels, &x), &expected, "AVX2");
                }
                if let Some(simd) = pulp::x86::V4::try_new() {
                    assert_close(&by(simd, &panels, &x), &expected, "AVX-512");
                }
            }
        }
    }

    #[test]
    fn zeros_are_set_whatever_the_parts() {
        for (len, part) in [(0, 3), (1, 1), (10, 3), (12, 3), (5, 100)] {
            let y = zeros(len, part, |i, y| y.iter_mut().for_each(|y| *y += 1.0 + i as f32));
            let expected: Vec<f32> = (0..len).map(|j| 1.0 + (j / part) as f32).collect();
            assert_eq!(y, expected);
        }
    }

    /// Several blocks of inputs, and enough work for both ways to share it between threads.
    #[test]
    fn blocks_and_threads_change_nothing() {
        let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        for (m, k, n) in [(1, 2 * BLOCK + 3, 700), (5, BLOCK + 1, 333), (40, 129, 1000), (600, 70, 100)] {
            let (x, w) = (random(m * k, 1), random(n * k, 2));
            let panels = Panels::new(&w, n, k);
            let one = pool(1).install(|| panels.product(&x));
            assert_close(&one, &naive(&x, &w, k), "one thread");
            for threads in [2, 3, 64] {
                assert!(pool(threads).install(|| panels.product(&x)) == one, "{threads} threads differ");
            }
            let alone = pool(2).install(|| panels.product(&x[(m - 1) * k..]));
            assert!(alone == one[(m - 1) * n..], "the last row differs alone");
        }
    }
}
