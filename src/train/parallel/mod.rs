//! Several processes that train one model: data parallelism.
//!
//! Every process holds the whole model and computes its share of an update's `accumulate` batches; the gradients are
//! added up over all of them, and each then makes the same update. So the number of processes is no setting of a run:
//! a configuration and its checkpoints mean the same whatever computes them. Over TCP the sum is taken in one order,
//! that of [`Pairwise`], so that not even a bit depends on the number of processes, as long as each has a power of two
//! of the batches.
//!
//! Rank 0 alone reads and writes the run's directory; the others are given its weights at the start.

mod error;
mod meet;
mod mesh;
#[cfg(feature = "nccl")]
mod nccl;
mod pairwise;
mod place;
mod tensors;
#[cfg(test)]
mod tests;
mod wire;

use std::time::Duration;

pub use error::GroupError;
pub use mesh::Mesh;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use pairwise::Pairwise;
pub use place::{Given, Place};
pub(super) use tensors::{checksum, share_parameters, sum_gradients};

/// The processes of a run. All must call the same methods in the same order, with slices of the same lengths.
///
/// A process that is lost makes the others' calls fail, at the latest after the time that the group was formed with.
pub trait Group {
    /// This process's number, from 0.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn world_size(&self) -> usize;

    /// Whether there is nobody to talk to, so that values need not be brought into one place for it.
    fn is_alone(&self) -> bool {
        false
    }

    /// Adds up the values of all processes, place by place. All get the same bits.
    ///
    /// # Errors
    /// Where a process is lost or out of step.
    fn sum(&mut self, values: &mut [f32]) -> Result<(), GroupError>;

    /// As [`Group::sum`], for the few values by which processes agree; where all but one give 0, exact.
    ///
    /// # Errors
    /// As [`Group::sum`].
    fn sum_f64(&mut self, values: &mut [f64]) -> Result<(), GroupError>;

    /// Gives all processes the bytes of rank 0.
    ///
    /// # Errors
    /// As [`Group::sum`].
    fn broadcast(&mut self, bytes: &mut [u8]) -> Result<(), GroupError>;

    /// Whether any process says so.
    ///
    /// # Errors
    /// As [`Group::sum`].
    fn any(&mut self, yes: bool) -> Result<bool, GroupError> {
        let mut count = [f64::from(u8::from(yes))];
        self.sum_f64(&mut count)?;
        Ok(count[0] > 0.0)
    }

    /// Returns when all processes have called it.
    ///
    /// # Errors
    /// As [`Group::sum`].
    fn barrier(&mut self) -> Result<(), GroupError> {
        self.any(false).map(|_| ())
    }

    /// Fails in all processes if one has another checksum than rank 0, and says of `what`.
    ///
    /// # Errors
    /// [`GroupError::Differs`], and as [`Group::sum`].
    fn agree(&mut self, what: &'static str, checksum: u32) -> Result<(), GroupError> {
        let mut all = vec![0.0; self.world_size()];
        all[self.rank()] = f64::from(checksum);
        self.sum_f64(&mut all)?;
        match all.iter().position(|other| *other != all[0]) {
            Some(rank) => Err(GroupError::Differs { rank, what }),
            None => Ok(()),
        }
    }
}

/// A run in one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Group for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn is_alone(&self) -> bool {
        true
    }

    fn sum(&mut self, _: &mut [f32]) -> Result<(), GroupError> {
        Ok(())
    }

    fn sum_f64(&mut self, _: &mut [f64]) -> Result<(), GroupError> {
        Ok(())
    }

    fn broadcast(&mut self, _: &mut [u8]) -> Result<(), GroupError> {
        Ok(())
    }
}

/// What carries gradients from process to process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collectives {
    /// Sockets between all processes; sums in one order.
    Tcp,
    /// NVIDIA's library, on the GPU of this number: sums in an order of its own. Only with the feature `nccl`.
    Nccl(usize),
}

/// Meets the other processes; returns when all are there. `timeout` is how long to wait, now and later, for one of which
/// nothing is heard.
///
/// # Errors
/// Where not all come, one was started for another group, or there is no NCCL.
pub fn form(
    place: &Place,
    collectives: Collectives,
    timeout: Duration,
) -> Result<Box<dyn Group>, GroupError> {
    match collectives {
        Collectives::Tcp if place.world_size == 1 => Ok(Box::new(Alone)),
        Collectives::Tcp => Ok(Box::new(Mesh::form(place, timeout)?)),
        #[cfg(feature = "nccl")]
        Collectives::Nccl(device) => Ok(Box::new(Nccl::open(Mesh::form(place, timeout)?, device, timeout)?)),
        #[cfg(not(feature = "nccl"))]
        Collectives::Nccl(_) => Err(GroupError::Nccl(
            "this program was built without it: cargo build --release --features nccl".to_owned(),
        )),
    }
}
