use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::CudaDevice;
use candle_core::cuda::DeviceId;
use candle_core::cuda_backend::cudarc::cublas::{self, CudaBlas, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
    result, sys,
};

use super::{Buffer, Gemm, Gpu, GpuError, Launch, Locked, Memory, Operand, Recorded, Slice, Staging, Type};

/// Our kernels, as nvcc left them when the program was built.
const KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Shared memory that a block gets without asking for more, less what a kernel may declare of it by itself.
const SHARED: u32 = 47 * 1024;

/// An NVIDIA GPU, on candle's stream of it: what candle does and what we do happen in one order, but for copies beside it.
pub(crate) struct Cuda {
    stream: Arc<CudaStream>,
    /// For copies beside it.
    beside: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
    module: Arc<CudaModule>,
    /// By name, each with how much shared memory it may have.
    functions: Mutex<HashMap<String, (CudaFunction, u32)>>,
    shared_memory: usize,
}

fn failed<E: std::fmt::Debug>(what: &str) -> impl FnOnce(E) -> GpuError {
    move |error| GpuError::Failed { what: what.to_owned(), why: format!("{error:?}") }
}

impl Cuda {
    /// The GPU of a device of candle's, its kernels loaded once.
    ///
    /// # Errors
    /// Where the driver does not take the kernels.
    pub(crate) fn of(device: &CudaDevice) -> Result<Arc<Self>, GpuError> {
        static ALL: LazyLock<Mutex<HashMap<DeviceId, Arc<Cuda>>>> = LazyLock::new(Mutex::default);
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&device.id()) {
            return Ok(known.clone());
        }
        let stream = device.cuda_stream();
        // SAFETY: the device has one stream, ours, so nothing needs events to be in order; what is copied beside it is joined
        // expressly.
        unsafe { device.disable_event_tracking() };
        let beside = stream.context().new_stream().map_err(failed("a second stream"))?;
        let module = stream.context().load_module(KERNELS.into()).map_err(failed("loading the kernels"))?;
        use sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MOST;
        let most = stream.context().attribute(MOST).map_err(failed("asking for the shared memory"))?;
        let shared_memory = usize::try_from(most).unwrap_or_default();
        keep_memory(&stream)?;
        let own = Arc::new(Self {
            blas: device.cublas_handle(),
            stream,
            beside,
            module,
            functions: Mutex::default(),
            shared_memory,
        });
        all.insert(device.id(), own.clone());
        Ok(own)
    }

    /// Makes the GPU that of this thread, as calls that go past cudarc's own types need it.
    fn bind(&self) -> Result<(), GpuError> {
        self.stream.context().bind_to_thread().map_err(failed("binding the GPU"))
    }

    fn upload_on(&self, stream: &CudaStream, from: &[u8], to: Slice<'_>) -> Result<(), GpuError> {
        if from.len() != to.bytes() {
            return Err(GpuError::operands("upload", format!("{} bytes into {}", from.len(), to.bytes())));
        }
        self.bind()?;
        // SAFETY: the slice is memory of this GPU that lives. Of memory that is not pinned the driver has made a copy when
        // it returns.
        unsafe { result::memcpy_htod_async(to.at(), from, stream.cu_stream()) }.map_err(failed("an upload"))
    }

    /// A kernel, allowed so much shared memory.
    fn function(&self, kernel: &str, shared: u32) -> Result<CudaFunction, GpuError> {
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as ALLOWED;
        self.bind()?;
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let (function, allowed) = match functions.entry(kernel.to_owned()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                entry.insert((self.module.load_function(kernel).map_err(failed(kernel))?, SHARED))
            }
        };
        if shared > *allowed {
            let bytes = i32::try_from(shared).unwrap_or(i32::MAX);
            function.set_attribute(ALLOWED, bytes).map_err(failed(kernel))?;
            *allowed = shared;
        }
        Ok(function.clone())
    }
}

/// Memory that was given back stays with the program for what is asked for next: by default the driver returns it to the
/// system each time it is waited for.
fn keep_memory(stream: &CudaStream) -> Result<(), GpuError> {
    use sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as KEPT;
    let mut most = u64::MAX;
    // SAFETY: the device is that of a context that lives.
    let pool = unsafe { result::device::get_default_mem_pool(stream.context().cu_device()) };
    // SAFETY: the attribute is a number of 64 bits, which is copied.
    pool.and_then(|pool| unsafe { result::mem_pool::set_attribute(pool, KEPT, (&raw mut most).cast()) })
        .map_err(failed("the memory pool"))
}

/// Locked memory of the host.
struct Pinned {
    memory: *mut u8,
    bytes: usize,
    /// All that copy from it.
    streams: [Arc<CudaStream>; 2],
}

// SAFETY: the memory belongs to this alone, and the driver lets any thread use and free it.
unsafe impl Send for Pinned {}

// SAFETY: what is shared gives an address away, and no more.
unsafe impl Sync for Pinned {}

impl Locked for Pinned {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes are there, and this is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) }
    }

    fn address(&self) -> u64 {
        // All memory that the driver locks has one address for host and GPUs (unified addressing, which every GPU that our
        // kernels are compiled for has).
        self.memory as u64
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A copy may still be under way.
        for stream in &self.streams {
            let _ = stream.synchronize();
        }
        // SAFETY: it came from the counterpart of this call, and nothing uses it any more.
        let _ = unsafe { result::free_host(self.memory.cast()) };
    }
}

/// A step that was captured.
struct Graph(CudaGraph);

// SAFETY: a graph belongs to a context, not to a thread; launching binds the context.
unsafe impl Send for Graph {}

impl Recorded for Graph {
    unsafe fn replay(&self) -> Result<(), GpuError> {
        self.0.launch().map_err(failed("a recorded step"))
    }
}

impl Memory for CudaSlice<u8> {
    fn address(&self) -> u64 {
        self.device_ptr(self.stream()).0
    }
}

impl Gpu for Cuda {
    fn shared_memory(&self) -> usize {
        self.shared_memory
    }

    fn memory(&self) -> Result<[u64; 2], GpuError> {
        let (free, total) = self.stream.context().mem_get_info().map_err(failed("asking for the memory"))?;
        Ok([free as u64, total as u64])
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer, GpuError> {
        // SAFETY: whoever takes memory of any contents writes it before it is read.
        let memory = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        let memory = memory.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => GpuError::Memory { what: "a step".to_owned(), bytes },
            _ => failed("memory")(error),
        })?;
        Ok(Buffer::new(Box::new(memory), bytes))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), GpuError> {
        let function = self.function(launch.kernel, launch.shared)?;
        let [x, y, z] = launch.grid;
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (launch.block, 1, 1),
            shared_mem_bytes: launch.shared,
        };
        let mut builder = self.stream.launch_builder(&function);
        for argument in launch.arguments {
            builder.arg(argument);
        }
        // SAFETY: the caller's word; an argument is in the lowest bytes of its number, where the driver looks for it.
        unsafe { builder.launch(config) }.map(|_| ()).map_err(failed(launch.kernel))
    }

    unsafe fn gemm(&self, gemm: &Gemm<'_>) -> Result<(), GpuError> {
        self.bind()?;
        let size = |size: usize| c_int::try_from(size).map_err(failed("a matrix product"));
        let [m, n, k] = gemm.sizes;
        let (alpha, beta) = (1f32, if gemm.adds { 1f32 } else { 0.0 });
        let kind = |operand: Operand<'_>| match operand.data.kind() {
            Type::F32 => blas::cudaDataType::CUDA_R_32F,
            Type::Bf16 => blas::cudaDataType::CUDA_R_16BF,
            Type::F16 => blas::cudaDataType::CUDA_R_16F,
            Type::U32 => blas::cudaDataType::CUDA_R_32U,
            Type::U8 => blas::cudaDataType::CUDA_R_8U,
        };
        let turned = |operand: Operand<'_>| match operand.transposed {
            true => blas::cublasOperation_t::CUBLAS_OP_T,
            false => blas::cublasOperation_t::CUBLAS_OP_N,
        };
        let address = |operand: Operand<'_>| operand.data.at() as *mut std::ffi::c_void;
        let (a, b, c) = (gemm.a, gemm.b, gemm.c);
        // SAFETY: the caller's word on the sizes. cuBLAS reads matrices by columns, to which ours by rows are transposed; so
        // it is asked for the transposed product, of the operands in the other order.
        unsafe {
            cublas::result::gemm_ex(
                *self.blas.handle(),
                turned(b),
                turned(a),
                size(n)?,
                size(m)?,
                size(k)?,
                (&raw const alpha).cast(),
                address(b),
                kind(b),
                size(b.row)?,
                address(a),
                kind(a),
                size(a.row)?,
                (&raw const beta).cast(),
                address(c),
                kind(c),
                size(c.row)?,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(failed("a matrix product"))
    }

    fn zero(&self, to: Slice<'_>) -> Result<(), GpuError> {
        self.bind()?;
        // SAFETY: the slice is memory of this GPU that lives.
        unsafe { result::memset_d8_async(to.at(), 0, to.bytes(), self.stream.cu_stream()) }
            .map_err(failed("filling with zeros"))
    }

    fn upload(&self, from: &[u8], to: Slice<'_>) -> Result<(), GpuError> {
        self.upload_on(&self.stream, from, to)
    }

    fn staging(&self, bytes: usize) -> Result<Staging, GpuError> {
        self.bind()?;
        // SAFETY: it is freed once, by `Pinned`. Not from the driver's pools, which round up: exactly so many bytes.
        let memory = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(failed("staging memory"))?;
        // SAFETY: so many bytes are there.
        unsafe { memory.cast::<u8>().write_bytes(0, bytes.max(1)) };
        let streams = [self.stream.clone(), self.beside.clone()];
        Ok(Box::new(Pinned { memory: memory.cast(), bytes, streams }))
    }

    fn upload_staged(&self, from: &[u8], to: Slice<'_>) -> Result<(), GpuError> {
        // The same call: what differs is that the driver finds the memory locked, and makes no copy of it.
        self.upload(from, to)
    }

    fn upload_beside(&self, from: &[u8], to: Slice<'_>) -> Result<(), GpuError> {
        self.upload_on(&self.beside, from, to)
    }

    fn join(&self) -> Result<(), GpuError> {
        let copied = self.beside.record_event(None).map_err(failed("an event"))?;
        self.stream.wait(&copied).map_err(failed("joining the streams"))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Box<dyn Recorded>, GpuError> {
        use sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as MODE;
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        self.stream.begin_capture(MODE).map_err(failed("recording a step"))?;
        // Ended in any case, or the stream would be lost.
        let result = catch_unwind(AssertUnwindSafe(work));
        let graph = self.stream.end_capture(flags).map_err(failed("recording a step"));
        result.unwrap_or_else(|panic| resume_unwind(panic))?;
        match graph? {
            Some(graph) => Ok(Box::new(Graph(graph))),
            None => {
                Err(GpuError::Failed { what: "recording a step".to_owned(), why: "nothing in it".to_owned() })
            }
        }
    }

    fn wait(&self) -> Result<(), GpuError> {
        self.stream.synchronize().map_err(failed("waiting"))
    }

    fn download(&self, from: Slice<'_>, to: &mut [u8]) -> Result<(), GpuError> {
        if to.len() != from.bytes() {
            return Err(GpuError::operands("download", format!("{} bytes into {}", from.bytes(), to.len())));
        }
        self.bind()?;
        // SAFETY: the slice is memory of this GPU that lives; `to` is not touched before the copy is done.
        unsafe { result::memcpy_dtoh_async(to, from.at(), self.stream.cu_stream()) }
            .map_err(failed("a download"))?;
        self.stream.synchronize().map_err(failed("a download"))
    }
}
