use anyhow::Result;
use candle_core::Device;

use crate::model::DeviceChoice;

/// Where a model is computed.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct DeviceFlag {
    /// Where it is computed: cpu; cuda or cuda:N, an NVIDIA GPU, if this program was built for them (docs/cuda.md); auto is a
    /// GPU if there is one. Without N it is GPU 0, or that of LOCAL_RANK or SLURM_LOCALID
    #[arg(long, env = "SCONE_DEVICE", value_name = "DEVICE", default_value_t)]
    device: DeviceChoice,
}

impl DeviceFlag {
    /// The number of the GPU.
    pub(super) fn number(self) -> usize {
        let local =
            || ["LOCAL_RANK", "SLURM_LOCALID"].iter().find_map(|name| std::env::var(name).ok()?.parse().ok());
        match self.device {
            DeviceChoice::Cuda(Some(number)) => number,
            _ => local().unwrap_or(0),
        }
    }

    /// Opens it.
    pub(super) fn open(self) -> Result<Device> {
        Ok(self.device.open(self.number())?)
    }
}
