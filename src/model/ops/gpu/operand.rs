use candle_core::backend::BackendDevice;
#[cfg(any(feature = "cuda", test))]
use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};

use crate::gpu::{Slice, Type};

fn kind(dtype: DType) -> Result<Type> {
    match dtype {
        DType::F32 => Ok(Type::F32),
        DType::BF16 => Ok(Type::Bf16),
        DType::U32 => Ok(Type::U32),
        other => bail!("no kernel for {other:?}"),
    }
}

/// The elements from `start` to `end` of a storage.
fn slice_of(storage: &Storage, start: usize, end: usize) -> Result<Slice<'_>> {
    let (base, len, kind) = match storage {
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => {
            use candle_core::cuda_backend::CudaStorageSlice;
            use candle_core::cuda_backend::cudarc::driver::DevicePtr;
            let stream = storage.device.cuda_stream();
            let (base, len) = match &storage.slice {
                CudaStorageSlice::F32(data) => (data.device_ptr(&stream).0, data.len()),
                CudaStorageSlice::BF16(data) => (data.device_ptr(&stream).0, data.len()),
                CudaStorageSlice::U32(data) => (data.device_ptr(&stream).0, data.len()),
                _ => bail!("no kernel for {:?}", storage.dtype()),
            };
            (base, len, kind(storage.dtype())?)
        }
        #[cfg(test)]
        Storage::Cpu(storage) => {
            use candle_core::CpuStorage;
            let (base, len) = match storage {
                CpuStorage::F32(data) => (data.as_ptr().addr(), data.len()),
                CpuStorage::BF16(data) => (data.as_ptr().addr(), data.len()),
                _ => bail!("no kernel for {:?}", storage.dtype()),
            };
            (base as u64, len, kind(storage.dtype())?)
        }
        _ => bail!("a tensor is not on the GPU"),
    };
    if end > len || start > end {
        bail!("a tensor reaches beyond its storage");
    }
    // SAFETY: the storage is borrowed, and has so many elements there.
    Ok(unsafe { Slice::new(base + (start * kind.bytes()) as u64, end - start, kind) })
}

/// A contiguous tensor, kept for as long as its elements are used.
pub(super) struct Held {
    tensor: Tensor,
}

/// Makes a tensor's elements accessible on the GPU.
pub(super) fn held(tensor: &Tensor) -> Result<Held> {
    Ok(Held { tensor: tensor.detach().contiguous()? })
}

impl Held {
    /// The elements, for what is asked of the GPU while this lives.
    pub(super) fn slice(&self) -> Result<Slice<'_>> {
        let (storage, layout) = self.tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("not contiguous") };
        let slice = slice_of(&storage, start, end)?;
        // SAFETY: the storage is kept by the tensor, which is borrowed; nothing replaces it but `Var::set`, which is not
        // called during an op. The lock is no part of that: what writes is asked of the GPU, in order.
        Ok(unsafe { Slice::new(slice.at(), slice.len(), slice.kind()) })
    }
}

/// A result on its way: memory that a kernel fills.
pub(super) struct Output {
    storage: Storage,
    shape: Shape,
}

impl Output {
    /// Room for a tensor, of any contents.
    pub(super) fn new(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        let shape = shape.into();
        // SAFETY: the kernel that this is made for writes all of it.
        let storage = unsafe {
            match device {
                Device::Cpu => Storage::Cpu(candle_core::cpu_backend::CpuDevice.alloc_uninit(&shape, dtype)?),
                Device::Cuda(device) => Storage::Cuda(device.alloc_uninit(&shape, dtype)?),
                Device::Metal(_) => bail!("no kernels for Metal"),
            }
        };
        Ok(Self { storage, shape })
    }

    pub(super) fn slice(&self) -> Result<Slice<'_>> {
        slice_of(&self.storage, 0, self.shape.elem_count())
    }

    pub(super) fn into_storage(self) -> (Storage, Shape) {
        (self.storage, self.shape)
    }

    pub(super) fn into_tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }
}
