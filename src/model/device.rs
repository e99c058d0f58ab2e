use std::fmt::{Display, Formatter};
use std::str::FromStr;

use candle_core::Device;

use super::ModelError;

/// Where a model is to be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// On the GPU where this program has the feature `cuda` and the machine a GPU, else on the CPU.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On the GPU of this number, or, without one, on the one that the caller's process is given.
    Cuda(Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(None)),
            Some(("cuda", number)) if number.bytes().all(|b| b.is_ascii_digit()) && !number.is_empty() => {
                number.parse().map(|number| Self::Cuda(Some(number))).map_err(|error| error.to_string())
            }
            _ => Err(format!(
                "{text:?} is no device: auto, cpu, cuda or cuda:N, N the number of a GPU from 0 on"
            )),
        }
    }
}

impl Display for DeviceChoice {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(number)) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceChoice {
    /// Opens it. `local` is the number of the GPU where none is said: that of this process among those of its machine, or 0
    /// where it sees a single one.
    ///
    /// # Errors
    /// Where there is no such GPU, or this program can use none.
    pub fn open(self, local: usize) -> Result<Device, ModelError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if !cfg!(feature = "cuda") => Ok(Device::Cpu),
            Self::Auto => Ok(gpu(among_visible(local)).unwrap_or_else(|why| {
                tracing::warn!("no GPU is used, but the CPU: {why}");
                Device::Cpu
            })),
            Self::Cuda(number) => {
                let number = number.unwrap_or_else(|| among_visible(local));
                gpu(number)
                    .map_err(|why| ModelError::Device { device: Self::Cuda(Some(number)).to_string(), why })
            }
        }
    }
}

/// A launcher may show each process its own GPU alone, which then is number 0.
fn among_visible(local: usize) -> usize {
    #[cfg(feature = "cuda")]
    if candle_core::cuda_backend::cudarc::driver::CudaContext::device_count().is_ok_and(|count| count == 1) {
        return 0;
    }
    local
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Device, String> {
    Err("this program was built without GPUs (cargo build --release --features cuda, see docs/cuda.md)"
        .to_owned())
}

#[cfg(feature = "cuda")]
fn gpu(number: usize) -> Result<Device, String> {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    let count = CudaContext::device_count().map_err(|error| format!("the driver finds none ({error:?})"))?;
    if usize::try_from(count).is_ok_and(|count| number >= count) {
        return Err(format!("there are {count} GPUs here, numbered from 0"));
    }
    // A stream of its own: the default one is another in each thread.
    let device = Device::new_cuda_with_stream(number).map_err(|error| error.to_string())?;
    // Our kernels are loaded now: that the driver does not take them is said at the start.
    crate::gpu::Cuda::of(device.as_cuda_device().map_err(|error| error.to_string())?)
        .map_err(|error| error.to_string())?;
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_said_as_they_are_read() {
        for text in ["auto", "cpu", "cuda", "cuda:0", "cuda:12"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "cuda:+1"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert!(DeviceChoice::Cpu.open(0).unwrap().is_cpu());
        #[cfg(not(feature = "cuda"))]
        {
            assert!(DeviceChoice::Auto.open(0).unwrap().is_cpu());
            let error = DeviceChoice::Cuda(Some(1)).open(0).unwrap_err().to_string();
            assert!(
                error.contains("cuda:1")
                    && error.contains("--features cuda")
                    && error.contains("--device cpu")
            );
        }
    }
}
