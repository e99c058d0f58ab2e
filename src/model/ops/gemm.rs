//! The gemm crate behind bounds checks.

use gemm::Parallelism;

/// A matrix inside a slice: element `(r, c)` is `data[r * row_stride + c * column_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix whose rows are `row_stride` apart.
    pub(super) fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// Its transpose: the same elements, no copy.
    pub(super) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Rows and columns.
    pub(super) fn shape(self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    fn check(&self) {
        assert!(self.rows > 0 && self.columns > 0, "an empty operand");
        let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
        assert!(last < self.data.len(), "a matrix reaches beyond its slice");
    }
}

/// How a product is put into its destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// It replaces what is there.
    Replace,
    /// It is added.
    Add,
}

/// `out[rows, columns] (+)= scale * a * b`, `out` row-major with rows `row_stride` apart; on all threads of the rayon
/// pool if `parallel`. Empty products change nothing.
pub(super) fn gemm(
    out: &mut [f32],
    row_stride: usize,
    how: Put,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    parallel: bool,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    if m == 0 || n == 0 {
        return;
    }
    assert_eq!(k, b.rows, "inner dimensions differ");
    a.check();
    b.check();
    assert!(n <= row_stride || m == 1, "rows of the output overlap");
    assert!((m - 1) * row_stride + n <= out.len(), "the output reaches beyond its slice");
    let parallelism = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: the asserts above keep every element (r, c) of the three matrices, r < rows and c < columns, inside its
    // slice; `out` is borrowed mutably, so it overlaps neither input, and its rows do not overlap each other.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            row_stride as isize,
            how == Put::Add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
