use crate::gpu::{Buffer, Gpu, GpuError, Slice, Type, ops};

use super::Workspace;

/// A matrix `[outputs, inputs]` as it is held: in the type of activations, or packed as GGUF has it.
pub(super) struct Weight {
    pub(super) data: Buffer,
    pub(super) kind: Type,
    pub(super) packing: Option<ops::Packing>,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

impl Weight {
    pub(super) fn bytes(&self) -> usize {
        self.data.of(Type::U8).len()
    }

    /// `y[rows, outputs] = x[rows, inputs] * W^T`, rows of `y` being `stride` apart.
    pub(super) fn product(
        &self,
        gpu: &dyn Gpu,
        x: Slice<'_>,
        y: (Slice<'_>, usize),
        rows: usize,
        work: &Workspace,
    ) -> Result<(), GpuError> {
        let sizes = [rows, self.inputs, self.outputs];
        match self.packing {
            None => plain_product(gpu, x, self.data.of(self.kind), y, sizes),
            Some(packing) if rows <= ops::FEW => {
                ops::few_rows(gpu, x, (self.data.of(Type::U8), Some(packing)), y, sizes)
            }
            // For more rows it is read once, and multiplied by the tensor cores.
            Some(packing) => {
                let unpacked = work.unpacked.of(Type::Bf16).part(0, self.outputs * self.inputs)?;
                ops::unpack(gpu, (self.data.of(Type::U8), packing), unpacked, self.inputs)?;
                ops::product(gpu, x, unpacked, y, sizes)
            }
        }
    }
}

/// As [`Weight::product`] with a weight in the type of activations.
pub(super) fn plain_product(
    gpu: &dyn Gpu,
    x: Slice<'_>,
    weight: Slice<'_>,
    y: (Slice<'_>, usize),
    sizes: [usize; 3],
) -> Result<(), GpuError> {
    if sizes[0] <= ops::FEW {
        ops::few_rows(gpu, x, (weight, None), y, sizes)
    } else {
        ops::product(gpu, x, weight, y, sizes)
    }
}

/// Matrices that read the same input and write side by side.
pub(super) struct Side {
    pub(super) parts: Vec<Weight>,
}

impl Side {
    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(Weight::bytes).sum()
    }

    /// All products, into rows of `y` that are `stride` apart.
    pub(super) fn product(
        &self,
        gpu: &dyn Gpu,
        x: Slice<'_>,
        (y, stride): (Slice<'_>, usize),
        rows: usize,
        work: &Workspace,
    ) -> Result<(), GpuError> {
        let mut from = 0;
        for weight in &self.parts {
            weight.product(gpu, x, (y.part(from, y.len() - from)?, stride), rows, work)?;
            from += weight.outputs;
        }
        Ok(())
    }
}
