#![expect(clippy::needless_range_loop, reason = "rows and vectors of a tile, which are unrolled")]

use super::matrix::{Form, PANEL, panel_lines, with_form};
use super::memory::Line;
use super::simd::{Kernel, LANES, Level, Simd};
use super::{Activations, Encoding, Matrix, Pool, Shared};

/// Tasks a thread: several, so that none waits long for the others.
const TASKS_A_THREAD: usize = 4;
/// Work that is worth a task; a multiplication of bytes or numbers costs 1, reading a line 64.
const TASK: usize = 1 << 18;
/// Bytes of the rows that pass by a panel before the next panel is taken: they stay in the second cache.
const ROWS: usize = 512 << 10;
/// Bytes of a panel that all rows pass by before its next bytes are taken: they stay in the second cache too.
const STRIP: usize = 128 << 10;
/// Lines that are asked for before they are read: as far as memory needs to keep up.
const AHEAD: usize = 128;

/// `y[r, column..column + outputs] = x[r] * weight^T` for each `(weight, column)`: Q, K and V in one go. `y` has as many
/// rows as `x`, of `stride` numbers; of those that belong to no weight none is touched.
///
/// Each number is summed in one order that depends on its weight's shape and encoding alone.
///
/// # Panics
/// If shapes do not fit, columns overlap, or a weight [is quantised](Matrix::is_quantised) and `x` is not
/// [prepared](Activations::prepare).
pub fn product(pool: &Pool, weights: &[(&Matrix, usize)], x: &Activations, y: &mut [f32], stride: usize) {
    product_by(Level::best(), pool, weights, x, y, stride);
}

pub(super) fn product_by(
    level: Level,
    pool: &Pool,
    weights: &[(&Matrix, usize)],
    x: &Activations,
    y: &mut [f32],
    stride: usize,
) {
    check(weights, x, y, stride);
    let panels: usize = weights.iter().map(|(weight, _)| weight.outputs().div_ceil(PANEL)).sum();
    if x.rows() == 0 || panels == 0 {
        return;
    }
    let lines: usize = weights.iter().map(|(weight, _)| weight.lines().len()).sum();
    let plan = Plan::new(x, panels, lines, pool.threads());
    let y = Shared::new(y);
    pool.run(plan.tasks(), &|task| {
        let (rows, mut panels) = plan.task(task);
        // The panels of all weights are numbered in one row.
        for &(weight, column) in weights {
            let here = weight.outputs().div_ceil(PANEL);
            let part = panels.start.min(here)..panels.end.min(here);
            if !part.is_empty() {
                let to = Target { y: &y, stride, column };
                part_of_product(level, weight, x, rows.clone(), part, to);
            }
            panels = panels.start.saturating_sub(here)..panels.end.saturating_sub(here);
        }
    });
}

/// What makes the parts that tasks write lie apart and inside of `y`.
fn check(weights: &[(&Matrix, usize)], x: &Activations, y: &[f32], stride: usize) {
    assert_eq!(Some(y.len()), x.rows().checked_mul(stride), "y has other rows than x");
    for (i, (weight, column)) in weights.iter().enumerate() {
        let end = column.checked_add(weight.outputs());
        assert!(end.is_some_and(|end| end <= stride), "{weight:?} at column {column} of {stride}");
        assert_eq!(weight.inputs(), x.inputs(), "rows of {weight:?}");
        for (other, from) in &weights[..i] {
            let is_apart = column + weight.outputs() <= *from || from + other.outputs() <= *column;
            assert!(is_apart, "{weight:?} and {other:?} write the same columns");
        }
    }
}

/// How the work is cut: into blocks of rows, and each into parts of the panels.
struct Plan {
    rows: usize,
    block: usize,
    panels: usize,
    parts: usize,
}

impl Plan {
    fn new(x: &Activations, panels: usize, lines: usize, threads: usize) -> Self {
        let (rows, inputs) = (x.rows(), x.inputs());
        let block = (ROWS / (4 * inputs).max(1)).max(1).next_multiple_of(24);
        let block = rows.div_ceil(rows.div_ceil(block)).next_multiple_of(12).min(rows);
        let work = lines * 64 + block * panels * PANEL * inputs / 16;
        let blocks = rows.div_ceil(block);
        let wanted = (threads * TASKS_A_THREAD).div_ceil(blocks);
        let parts = if threads == 1 { 1 } else { (work / TASK).clamp(1, wanted.min(panels)) };
        Self { rows, block, panels, parts }
    }

    fn tasks(&self) -> usize {
        self.rows.div_ceil(self.block) * self.parts
    }

    /// The rows and panels of a task.
    fn task(&self, task: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let (block, part) = (task / self.parts, task % self.parts);
        let rows = block * self.block..((block + 1) * self.block).min(self.rows);
        (rows, part * self.panels / self.parts..(part + 1) * self.panels / self.parts)
    }
}

/// Where a weight's results go.
#[derive(Clone, Copy)]
struct Target<'a> {
    y: &'a Shared<'a, f32>,
    stride: usize,
    column: usize,
}

fn part_of_product(
    level: Level,
    weight: &Matrix,
    x: &Activations,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
    to: Target<'_>,
) {
    let panel_lines = panel_lines(weight.encoding(), weight.inputs());
    macro_rules! run {
        ($form:ident, $x:expr) => {{
            let a_row = weight.inputs() / (<$form as Form>::INPUTS / <$form as Form>::XS);
            level.run(Part::<$form> {
                lines: &weight.lines()[panels.start * panel_lines..panels.end * panel_lines],
                panel_lines,
                x: &$x[rows.start * a_row..rows.end * a_row],
                a_row,
                outputs: weight.outputs() - panels.start * PANEL,
                first_row: rows.start,
                to: Target { column: to.column + panels.start * PANEL, ..to },
            });
        }};
    }
    with_form!(weight.encoding(), F => run!(F, <F as Source>::of(x)));
}

/// Which of the activations a form reads.
trait Source: Form {
    fn of(x: &Activations) -> &[Self::X];
}

macro_rules! source {
    ($method:ident: $($form:ident)*) => {
        $(impl Source for super::matrix::$form {
            fn of(x: &Activations) -> &[Self::X] {
                x.$method()
            }
        })*
    };
}
source!(numbers: F32 F16 Bf16);
source!(blocks: Q8_0 Q4_0 Q4_1 Q4K Q6K);

/// Some rows times some panels.
struct Part<'a, F: Form> {
    lines: &'a [Line],
    panel_lines: usize,
    x: &'a [F::X],
    /// Elements of `x` a row.
    a_row: usize,
    /// Outputs from the first panel on to the weight's end.
    outputs: usize,
    first_row: usize,
    to: Target<'a>,
}

/// Where a tile is: lines of its panel, which begin with element `x` of the rows; its first row, the panel's first output
/// and the first vector of outputs.
#[derive(Clone, Copy)]
struct Place<'a> {
    lines: &'a [Line],
    x: usize,
    row: usize,
    output: usize,
    vector: usize,
}

impl<F: Form> Kernel for Part<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // As many rows as there are registers for their sums, beside the operands.
        if S::REGISTERS >= 32 {
            self.walk::<S, 2>(simd, 12 / F::SUMS);
        } else {
            self.walk::<S, 1>(simd, 6 / F::SUMS);
        }
    }
}

impl<F: Form> Part<'_, F> {
    fn rows(&self) -> usize {
        self.x.len() / self.a_row
    }

    #[inline(always)]
    fn walk<S: Simd, const V: usize>(&self, simd: S, most: usize) {
        let rows = self.rows();
        let tall = match rows.div_ceil(rows.div_ceil(most)) {
            5 => 6,
            7 => 8,
            9.. => 12,
            tall => tall,
        };
        let strip = if rows > tall { STRIP / 64 } else { self.panel_lines };
        let strip = (strip / F::LINES).max(1) * F::LINES;
        for (panel, lines) in self.lines.chunks_exact(self.panel_lines).enumerate() {
            for (i, lines) in lines.chunks(strip).enumerate() {
                let x = i * strip / F::LINES * F::XS;
                for vector in (0..PANEL / LANES).step_by(V) {
                    for row in (0..rows).step_by(tall) {
                        let at = Place { lines, x, row, output: panel * PANEL, vector };
                        self.choose::<S, V>(simd, at, tall.min(rows - row), most);
                    }
                }
            }
        }
    }

    /// The tile of the height that `rows` need. One that is a little higher computes its last row again.
    #[inline(always)]
    fn choose<S: Simd, const V: usize>(&self, simd: S, at: Place<'_>, rows: usize, most: usize) {
        match rows {
            1 => self.tile::<S, 1, V>(simd, at, rows),
            2 => self.tile::<S, 2, V>(simd, at, rows),
            3 => self.tile::<S, 3, V>(simd, at, rows),
            4 if most >= 4 => self.tile::<S, 4, V>(simd, at, rows),
            5 | 6 if most >= 6 => self.tile::<S, 6, V>(simd, at, rows),
            7 | 8 if most >= 8 => self.tile::<S, 8, V>(simd, at, rows),
            9.. if most >= 12 => self.tile::<S, 12, V>(simd, at, rows),
            _ => unreachable!("a tile of {rows} rows"),
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&self, simd: S, at: Place<'_>, rows: usize) {
        let len = (at.lines.len() / F::LINES * F::XS).min(self.a_row - at.x);
        let mut x: [&[F::X]; R] = [&[]; R];
        for (r, x) in x.iter_mut().enumerate() {
            *x = &self.x[(at.row + r.min(rows - 1)) * self.a_row + at.x..][..len];
        }
        let mut sums = [[simd.splat(0.0); V]; R];
        if at.x > 0 {
            for r in 0..R {
                for v in 0..V {
                    let range = self.range(at, r.min(rows - 1), v);
                    // SAFETY: no two tasks share rows and panels, no two weights columns (`check`), and a task holds
                    // one part at a time.
                    sums[r][v] = simd.load_partial(unsafe { self.to.y.part(range) });
                }
            }
        }
        let ahead = if at.row == 0 { AHEAD } else { 0 };
        F::add(simd, at.lines, x, at.vector, ahead, &mut sums);
        for r in 0..R {
            if r < rows {
                for v in 0..V {
                    let range = self.range(at, r, v);
                    // SAFETY: as above.
                    simd.store_partial(sums[r][v], unsafe { self.to.y.part(range) });
                }
            }
        }
    }

    /// Where in `y` a vector of a tile's row belongs.
    #[inline(always)]
    fn range(&self, at: Place<'_>, row: usize, v: usize) -> std::ops::Range<usize> {
        let first = at.output + (at.vector + v) * LANES;
        let n = self.outputs.saturating_sub(first).min(LANES);
        let start = (self.first_row + at.row + row) * self.to.stride + self.to.column + first;
        // Past the weight's end: nothing, wherever.
        if n == 0 { 0..0 } else { start..start + n }
    }
}

#[cfg(test)]
mod tests;
