use super::{BLOCK, Gpu, GpuError, Launch, Slice, Type, arguments, blocks, need, small};
use crate::gpu::{Gemm, Operand};

const OP: &str = "a product";

/// The most rows for which a product is as long as reading the weight, and done by [`few_rows`].
pub(crate) const FEW: usize = 8;

/// How the numbers of a weight are packed: the blocks of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Q8_0,
    Q4_0,
    Q4_1,
    Q4K,
    Q6K,
}

impl Packing {
    /// Numbers and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q4K => (256, 144),
            Self::Q6K => (256, 210),
        }
    }

    fn bytes(self, numbers: usize) -> Result<usize, GpuError> {
        let (block, bytes) = self.block();
        if !numbers.is_multiple_of(block) {
            return Err(GpuError::operands(OP, format!("{numbers} numbers are no blocks of {block}")));
        }
        Ok(numbers / block * bytes)
    }
}

/// `y[rows, outputs] = x[rows, inputs] * w[outputs, inputs]^T`, rows of `y` being `stride` apart from `y`'s beginning on.
pub(crate) fn product(
    gpu: &dyn Gpu,
    x: Slice<'_>,
    w: Slice<'_>,
    (y, stride): (Slice<'_>, usize),
    [rows, inputs, outputs]: [usize; 3],
) -> Result<(), GpuError> {
    check(x, (y, stride), [rows, inputs, outputs])?;
    need(OP, "the weight", w, outputs * inputs, x.kind())?;
    if rows * outputs == 0 {
        return Ok(());
    }
    let a = Operand { data: x, row: inputs, transposed: false };
    let b = Operand { data: w, row: inputs, transposed: true };
    let c = Operand { data: y, row: stride, transposed: false };
    // SAFETY: x and w are packed and y reaches as far as was checked.
    unsafe { gpu.gemm(&Gemm { sizes: [rows, outputs, inputs], a, b, c, adds: false }) }
}

fn check(
    x: Slice<'_>,
    (y, stride): (Slice<'_>, usize),
    [rows, inputs, outputs]: [usize; 3],
) -> Result<(), GpuError> {
    need(OP, "the input", x, rows * inputs, x.kind())?;
    if stride < outputs || (rows > 0 && y.len() < (rows - 1) * stride + outputs) {
        return Err(GpuError::operands(
            OP,
            format!("{rows} rows of {outputs}, {stride} apart, in {}", y.len()),
        ));
    }
    Ok(())
}

/// As [`product`], for at most 8 rows and any weight: plain ones of the type of `x`, and packed ones beside bf16.
pub(crate) fn few_rows(
    gpu: &dyn Gpu,
    x: Slice<'_>,
    (w, packing): (Slice<'_>, Option<Packing>),
    (y, stride): (Slice<'_>, usize),
    [rows, inputs, outputs]: [usize; 3],
) -> Result<(), GpuError> {
    check(x, (y, stride), [rows, inputs, outputs])?;
    if rows > FEW {
        return Err(GpuError::operands(OP, format!("{rows} rows are not few")));
    }
    match packing {
        None => need(OP, "the weight", w, outputs * inputs, x.kind())?,
        Some(packing) => need(OP, "the weight", w, outputs * packing.bytes(inputs)?, Type::U8)?,
    }
    use Type::{Bf16, F16, F32};
    let kernel = match (packing, x.kind(), y.kind()) {
        (None, F32, F32) => "few_rows_float_float",
        (None, Bf16, Bf16) => "few_rows_bf16_bf16",
        (None, Bf16, F32) => "few_rows_bf16_float",
        (None, F16, F16) => "few_rows_f16_f16",
        (None, F16, F32) => "few_rows_f16_float",
        (Some(Packing::Q8_0), Bf16, Bf16) => "few_rows_q8_0_bf16",
        (Some(Packing::Q8_0), Bf16, F32) => "few_rows_q8_0_float",
        (Some(Packing::Q4_0), Bf16, Bf16) => "few_rows_q4_0_bf16",
        (Some(Packing::Q4_0), Bf16, F32) => "few_rows_q4_0_float",
        (Some(Packing::Q4_1), Bf16, Bf16) => "few_rows_q4_1_bf16",
        (Some(Packing::Q4_1), Bf16, F32) => "few_rows_q4_1_float",
        (Some(Packing::Q4K), Bf16, Bf16) => "few_rows_q4_k_bf16",
        (Some(Packing::Q4K), Bf16, F32) => "few_rows_q4_k_float",
        (Some(Packing::Q6K), Bf16, Bf16) => "few_rows_q6_k_bf16",
        (Some(Packing::Q6K), Bf16, F32) => "few_rows_q6_k_float",
        (packing, x, y) => {
            return Err(GpuError::operands(OP, format!("{packing:?} beside {x:?} into {y:?}")));
        }
    };
    if rows * outputs == 0 {
        return Ok(());
    }
    let (n, m, apart, count) =
        (small(OP, inputs)?, small(OP, outputs)?, small(OP, stride)?, small(OP, rows)?);
    let arguments = arguments![x, w, y, n, m, apart, count];
    let grid = [small(OP, outputs.div_ceil(BLOCK as usize / 32))?, 1, 1];
    // SAFETY: a warp an output; sizes were checked.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments }) }
}

/// The numbers of a packed weight, as bf16.
pub(crate) fn unpack(
    gpu: &dyn Gpu,
    (w, packing): (Slice<'_>, Packing),
    to: Slice<'_>,
    inputs: usize,
) -> Result<(), GpuError> {
    let kernel = match packing {
        Packing::Q8_0 => "unpack_q8_0",
        Packing::Q4_0 => "unpack_q4_0",
        Packing::Q4_1 => "unpack_q4_1",
        Packing::Q4K => "unpack_q4_k",
        Packing::Q6K => "unpack_q6_k",
    };
    let outputs = to.len() / inputs.max(1);
    need("unpacking", "the weight", w, outputs * packing.bytes(inputs)?, Type::U8)?;
    need("unpacking", "the result", to, outputs * inputs, Type::Bf16)?;
    let parts = (to.len() / 32) as u64;
    if parts == 0 {
        return Ok(());
    }
    let arguments = arguments![w, to, small(OP, inputs)?, parts];
    // SAFETY: a thread for each 32 numbers.
    unsafe { gpu.launch(&Launch { kernel, grid: [blocks(parts), 1, 1], block: BLOCK, shared: 0, arguments }) }
}
