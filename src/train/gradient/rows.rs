use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor, bail};

use crate::model::ops::contiguous_mut;

/// The gradient of a table `[len, d]` of which few rows were read. On a CPU only; on a GPU gradients are whole.
#[derive(Clone, Debug)]
pub struct RowGradient {
    /// Rows of the table, ascending.
    rows: Vec<u32>,
    /// The gradient of each, `d` numbers.
    values: Vec<f32>,
    shape: (usize, usize),
}

impl RowGradient {
    /// Of the given rows of a table, which ascend, `values` `[rows, d]`.
    ///
    /// # Errors
    /// Where they do not, reach beyond the table, or are not as many as `values` has.
    pub fn new(rows: Vec<u32>, values: &Tensor, table: &Tensor) -> Result<Self> {
        let shape = table.dims2()?;
        let inside = rows.last().is_none_or(|&row| (row as usize) < shape.0);
        if !inside || !rows.is_sorted_by(|a, b| a < b) || values.dims2()? != (rows.len(), shape.1) {
            bail!("{} rows are no gradient of a table of {} times {}", rows.len(), shape.0, shape.1);
        }
        Ok(Self { rows, values: values.flatten_all()?.to_vec1()?, shape })
    }

    /// The rows that are there, each with its number in the table.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.rows.iter().map(|&row| row as usize).zip(self.values.chunks_exact(self.shape.1))
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.shape.1
    }

    /// Numbers in the whole table.
    pub fn table_len(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// Those of the rows that are there from the table's row `row` on.
    pub fn starting_at(&self, row: usize) -> impl Iterator<Item = (usize, &[f32])> {
        let from = self.rows.partition_point(|&own| (own as usize) < row);
        self.iter().skip(from)
    }

    /// The rows of both, added up where both have one.
    pub(super) fn plus(&self, other: &Self) -> Result<Self> {
        if self.shape != other.shape {
            bail!("gradients of tables of {:?} and {:?}", self.shape, other.shape);
        }
        let mut sum = Self { rows: Vec::new(), values: Vec::new(), shape: self.shape };
        let (mut own, mut others) = (self.iter().peekable(), other.iter().peekable());
        while let Some(row) = [own.peek(), others.peek()].into_iter().flatten().map(|(row, _)| *row).min() {
            let start = sum.values.len();
            let here = [own.next_if(|(at, _)| *at == row), others.next_if(|(at, _)| *at == row)];
            for (i, (_, values)) in here.into_iter().flatten().enumerate() {
                if i == 0 {
                    sum.rows.push(row as u32);
                    sum.values.extend_from_slice(values);
                } else {
                    sum.values[start..].iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
                }
            }
        }
        Ok(sum)
    }

    /// Adds it to a whole gradient, in place.
    pub(super) fn add_to(&self, whole: &Tensor) -> Result<()> {
        if whole.dims2()? != self.shape {
            bail!("gradients of tables of {:?} and {:?}", whole.dims2()?, self.shape);
        }
        whole.inplace_op1(&AddTo(self))
    }

    pub(super) fn whole(&self) -> Result<Tensor> {
        let whole = Tensor::zeros(self.shape, candle_core::DType::F32, &Device::Cpu)?;
        self.add_to(&whole)?;
        Ok(whole)
    }
}

struct AddTo<'a>(&'a RowGradient);

impl InplaceOp1 for AddTo<'_> {
    fn name(&self) -> &'static str {
        "add-rows"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (whole, d) = (contiguous_mut(storage, layout)?, self.0.width());
        for (row, values) in self.0.iter() {
            whole[row * d..][..d].iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
        }
        Ok(())
    }
}
