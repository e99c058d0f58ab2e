//! GPUs to test on, and what tests put there and read.

use std::sync::Arc;

use half::{bf16, f16};

use super::emulator::Emulator;
use super::{Buffer, Gpu, Slice, Type};

/// Names the GPU that tests are to run on instead of the emulator, by its number.
#[cfg(feature = "cuda")]
const VARIABLE: &str = "SCONE_TEST_CUDA";

/// The real GPU that tests are to run on, if they are.
#[cfg(feature = "cuda")]
pub(crate) fn real() -> Option<candle_core::Device> {
    static DEVICE: std::sync::OnceLock<Option<candle_core::Device>> = std::sync::OnceLock::new();
    let open = || {
        let number = std::env::var(VARIABLE).ok()?;
        let number = number.parse().expect("SCONE_TEST_CUDA is the number of a GPU");
        Some(candle_core::Device::new_cuda_with_stream(number).expect("the GPU that SCONE_TEST_CUDA names"))
    };
    DEVICE.get_or_init(open).clone()
}

/// None: this program has none.
#[cfg(not(feature = "cuda"))]
pub(crate) fn real() -> Option<candle_core::Device> {
    None
}

/// What kernels are tested on: the emulator with a block's threads in either order, or the real GPU.
pub(crate) fn gpus() -> Vec<Arc<dyn Gpu>> {
    #[cfg(feature = "cuda")]
    if let Some(device) = real() {
        return vec![super::Cuda::of(device.as_cuda_device().unwrap()).unwrap()];
    }
    [false, true].into_iter().map(|backwards| Arc::new(Emulator::new(backwards)) as Arc<dyn Gpu>).collect()
}

/// Memory with these numbers in it, of a type.
pub(crate) fn numbers(gpu: &dyn Gpu, numbers: &[f32], kind: Type) -> Buffer {
    let bytes: Vec<u8> = match kind {
        Type::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Type::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        Type::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Type::U32 | Type::U8 => panic!("no numbers of this type"),
    };
    let buffer = gpu.alloc(bytes.len()).unwrap();
    gpu.upload(&bytes, buffer.of(kind)).unwrap();
    buffer
}

/// Memory with these indices in it.
pub(crate) fn indices(gpu: &dyn Gpu, indices: &[u32]) -> Buffer {
    let buffer = gpu.alloc(4 * indices.len()).unwrap();
    gpu.upload(bytemuck::cast_slice(indices), buffer.of(Type::U32)).unwrap();
    buffer
}

/// What is in memory.
pub(crate) fn read(gpu: &dyn Gpu, from: Slice<'_>) -> Vec<f32> {
    let mut bytes = vec![0u8; from.bytes()];
    gpu.download(from, &mut bytes).unwrap();
    let two = |b: &[u8]| [b[0], b[1]];
    match from.kind() {
        Type::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Type::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(two(b)).to_f32()).collect(),
        Type::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes(two(b)).to_f32()).collect(),
        Type::U32 | Type::U8 => panic!("no numbers of this type"),
    }
}
