//! Our kernels, each behind a function that checks what it is given.

mod adamw;
mod attention;
mod choose;
mod cross_entropy;
mod elementwise;
mod linear;
mod norm;
mod paged_attention;
mod product;
mod rows;
mod short_attention;
mod step;
mod table;

pub(crate) use adamw::{AdamW, adamw, square_sums, sum};
pub(crate) use attention::{Attention, attention, attention_backward, forward_rows, tiles};
pub(crate) use choose::{Draw, choose};
pub(crate) use cross_entropy::{CrossEntropy, cross_entropy};
pub(crate) use elementwise::{add, convert, rope, scale, swiglu, swiglu_backward};
pub(crate) use linear::{linear, linear_backward_input, linear_backward_weight};
pub(crate) use norm::{rms_norm, rms_norm_backward};
pub(crate) use paged_attention::{CHUNK, Paged, paged_queries, paged_tiles};
pub(crate) use product::{FEW, Packing, few_rows, product, unpack};
pub(crate) use rows::{Scatter, add_rows, take_rows};
pub(crate) use short_attention::{ShortSequences, short_attention, short_attention_backward, tree_attention};
pub(crate) use step::{AHEAD, Turn, add_norm, embed, gated, turn};
pub(crate) use table::{RowKind, TableRows, table_rows};

use super::{Gpu, GpuError, Launch, Slice, Type};

/// Threads of a block where nothing asks for another number.
const BLOCK: u32 = 256;
/// Blocks of what goes over a long array: enough for every GPU, few enough to be started at once.
const BLOCKS: u32 = 1024;

/// A kernel's name for a type of elements.
macro_rules! kernel {
    ($name:literal, $kind:expr) => {
        match $kind {
            crate::gpu::Type::F32 => Ok(concat!($name, "_float")),
            crate::gpu::Type::Bf16 => Ok(concat!($name, "_bf16")),
            _ => Err(crate::gpu::GpuError::operands($name, "no kernel for this type")),
        }
    };
}
use kernel;

/// As `kernel`, of a kernel that there is for f16 as well.
macro_rules! step_kernel {
    ($name:literal, $kind:expr) => {
        match $kind {
            crate::gpu::Type::F32 => Ok(concat!($name, "_float")),
            crate::gpu::Type::Bf16 => Ok(concat!($name, "_bf16")),
            crate::gpu::Type::F16 => Ok(concat!($name, "_f16")),
            _ => Err(crate::gpu::GpuError::operands($name, "no kernel for this type")),
        }
    };
}
use step_kernel;

/// What a kernel can be given.
trait Argument {
    fn number(self) -> u64;
}

impl Argument for u32 {
    fn number(self) -> u64 {
        u64::from(self)
    }
}

impl Argument for u64 {
    fn number(self) -> u64 {
        self
    }
}

impl Argument for f32 {
    fn number(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Argument for Slice<'_> {
    fn number(self) -> u64 {
        self.at()
    }
}

/// A kernel's arguments.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &[$(crate::gpu::ops::Argument::number($argument)),*] };
}
use arguments;

/// That an operand has so many elements of a type.
fn need(op: &'static str, what: &str, operand: Slice<'_>, len: usize, kind: Type) -> Result<(), GpuError> {
    if operand.len() == len && operand.kind() == kind {
        return Ok(());
    }
    let (found, of) = (operand.len(), operand.kind());
    Err(GpuError::operands(op, format!("{what} has {found} elements of {of:?}, not {len} of {kind:?}")))
}

/// A size as kernels take it.
fn small(op: &'static str, size: usize) -> Result<u32, GpuError> {
    u32::try_from(size).map_err(|_| GpuError::operands(op, format!("{size} is more than fits")))
}

/// Blocks for so many threads, one after another where they are more than fit.
fn blocks(threads: u64) -> u32 {
    threads.div_ceil(u64::from(BLOCK)).clamp(1, u64::from(BLOCKS)) as u32
}
