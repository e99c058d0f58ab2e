use std::time::Duration;

use anyhow::Result;

use super::duration::parse_some_duration;
use crate::train::parallel::{Collectives, Given, Group, Place, form};

/// Which process of a group this is, and how they talk.
#[derive(Debug, clap::Args)]
pub(super) struct Processes {
    /// This process's number among those that train together, from 0 [default: RANK, or SLURM_PROCID]
    #[arg(long, env = "SCONE_RANK", value_name = "N")]
    rank: Option<usize>,
    /// How many processes train together [default: WORLD_SIZE, or SLURM_NTASKS; 1 if nobody says where they meet]
    #[arg(long, env = "SCONE_WORLD_SIZE", value_name = "N")]
    world_size: Option<usize>,
    /// Where they meet: rank 0's machine and a free port, in a network that only those may reach who may change the run
    /// [default: MASTER_ADDR and MASTER_PORT]
    #[arg(long, env = "SCONE_COORDINATOR", value_name = "HOST:PORT")]
    coordinator: Option<String>,
    /// How long to wait for a process of which nothing is heard, before the others end too
    #[arg(long, env = "SCONE_PEER_TIMEOUT", value_name = "TIME", default_value = "5m", value_parser = parse_some_duration)]
    peer_timeout: Duration,
    /// What carries the gradients: tcp adds them up in one order, so that the number of processes changes no bit; nccl (with
    /// the feature of that name) is for GPUs: that of --device cuda:N
    #[arg(long, env = "SCONE_COLLECTIVES", value_name = "KIND", default_value = "tcp")]
    collectives: Kind,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    Tcp,
    Nccl,
}

impl Processes {
    /// Whether gradients go over NCCL.
    pub(super) fn uses_nccl(&self) -> bool {
        matches!(self.collectives, Kind::Nccl)
    }

    /// Waits for the others, if there are any. `gpu` is the number of the GPU that NCCL uses.
    pub(super) fn meet(&self, gpu: usize) -> Result<Box<dyn Group>> {
        let given =
            Given { rank: self.rank, world_size: self.world_size, coordinator: self.coordinator.clone() };
        let variable = |name: &str| std::env::var(name).ok();
        let place = Place::find(given, &variable)?;
        let collectives = match self.collectives {
            Kind::Tcp => Collectives::Tcp,
            Kind::Nccl => Collectives::Nccl(gpu),
        };
        if place.world_size > 1 {
            tracing::info!("rank {} of {}, meeting at {}", place.rank, place.world_size, place.coordinator);
        }
        Ok(form(&place, collectives, self.peer_timeout)?)
    }
}
