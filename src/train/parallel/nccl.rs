use std::ffi::c_char;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaStream};
use cudarc::nccl::{Comm, Id, ReduceOp};

use super::{Group, GroupError, Mesh};

/// Between two looks at whether the GPU has done what it was asked for.
const PAUSE: Duration = Duration::from_micros(50);

/// Processes with a GPU each, whose gradients NCCL adds up. The few values by which they agree go over TCP, where a
/// process that is lost shows; so does the number by which NCCL's own connections are made.
///
/// The sum's order is NCCL's: the same in every update of a run on the same machines, but another than that of [`Mesh`].
pub struct Nccl {
    mesh: Mesh,
    comm: Comm,
    stream: Arc<CudaStream>,
    timeout: Duration,
}

impl Nccl {
    /// Takes the GPU of this number, and connects it with those of the other processes.
    ///
    /// # Errors
    /// Where there is no such GPU, no driver or no NCCL, or a process is lost.
    pub fn open(mut mesh: Mesh, device: usize, timeout: Duration) -> Result<Self, GroupError> {
        find_libraries()?;
        let context = CudaContext::new(device).map_err(failed(&format!("GPU {device}")))?;
        let stream = context.new_stream().map_err(failed("a stream"))?;
        let mut id = match mesh.rank() {
            0 => *Id::new().map_err(|error| refused("an id", error.0))?.internal(),
            _ => [0; 128],
        };
        mesh.broadcast(bytemuck::cast_slice_mut::<c_char, u8>(&mut id))?;
        let comm = Comm::from_rank(stream.clone(), mesh.rank(), mesh.world_size(), Id::uninit(id))
            .map_err(|error| refused("connecting", error.0))?;
        Ok(Self { mesh, comm, stream, timeout })
    }

    /// Waits for what the GPU was asked for: NCCL itself would wait for a lost process for ever.
    fn wait(&self) -> Result<(), GroupError> {
        let done = self.stream.record_event(None).map_err(failed("an event"))?;
        let start = Instant::now();
        while !done.try_is_complete().map_err(failed("the sum"))? {
            if start.elapsed() > self.timeout {
                return Err(GroupError::Nccl(format!(
                    "a sum did not end within {} s: a process is lost. Start all again with --resume",
                    self.timeout.as_secs()
                )));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Group for Nccl {
    fn rank(&self) -> usize {
        self.mesh.rank()
    }

    fn world_size(&self) -> usize {
        self.mesh.world_size()
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<(), GroupError> {
        // Who is lost already is found here, and named.
        self.mesh.barrier()?;
        let mut buffer = self.stream.clone_htod(&*values).map_err(failed("copying"))?;
        self.comm
            .all_reduce_in_place(&mut buffer, &ReduceOp::Sum)
            .map_err(|error| refused("the sum", error.0))?;
        self.wait()?;
        self.stream.memcpy_dtoh(&buffer, values).map_err(failed("copying"))?;
        self.stream.synchronize().map_err(failed("copying"))
    }

    fn sum_f64(&mut self, values: &mut [f64]) -> Result<(), GroupError> {
        self.mesh.sum_f64(values)
    }

    fn broadcast(&mut self, bytes: &mut [u8]) -> Result<(), GroupError> {
        self.mesh.broadcast(bytes)
    }
}

/// That the libraries are there. Beside the feature `cuda` they are linked: without them the program does not start.
fn find_libraries() -> Result<(), GroupError> {
    #[cfg(not(feature = "cuda"))]
    {
        // SAFETY: both only load a library of NVIDIA's by its name and close it again; what runs is its initialisation.
        let (driver, nccl) =
            unsafe { (cudarc::driver::sys::is_culib_present(), cudarc::nccl::sys::is_culib_present()) };
        for (present, library) in [(driver, "libcuda.so, NVIDIA's driver,"), (nccl, "libnccl.so.2")] {
            if !present {
                let why = format!("{library} is not found; is its folder in LD_LIBRARY_PATH?");
                return Err(GroupError::Nccl(why));
            }
        }
    }
    Ok(())
}

fn failed<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> GroupError {
    move |error| GroupError::Nccl(format!("{what}: {error}"))
}

fn refused(what: &str, result: impl Debug) -> GroupError {
    GroupError::Nccl(format!("{what}: {result:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::parallel::Place;

    #[test]
    #[ignore = "needs a GPU with NCCL"]
    fn one_gpu_alone_gives_back_what_it_is_given() {
        let timeout = Duration::from_secs(60);
        let mesh = Mesh::form(&Place::alone(), timeout).unwrap();
        let mut group = Nccl::open(mesh, 0, timeout).unwrap();
        let values: Vec<f32> = (0..100_003).map(|i| i as f32 * 0.37 - 5e3).collect();
        for _ in 0..3 {
            let mut sum = values.clone();
            group.sum(&mut sum).unwrap();
            assert_eq!(sum, values);
        }
        assert!(group.any(true).unwrap() && !group.any(false).unwrap());
    }
}
