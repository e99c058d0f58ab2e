use std::convert::Infallible;
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::time::Duration;

use bytemuck::{Pod, cast_slice, cast_slice_mut};

use super::wire::{receive, send};
use super::{Group, GroupError, Pairwise, Place, meet};

/// Processes with a connection between every two of them.
///
/// For a sum each process adds up one share of the places, in the order of [`Pairwise`] over the ranks, and gives it to
/// all others. So each sends and receives at most two times the values whatever their number, as in a ring, in two
/// steps instead of a ring's 2 (n - 1), and the order is ours to choose.
#[derive(Debug)]
pub struct Mesh {
    rank: usize,
    /// By rank; none to itself.
    peers: Vec<Option<TcpStream>>,
    /// Exchanges begun: what is received must belong to the same one.
    exchange: u64,
}

impl Mesh {
    /// Meets the other processes at rank 0's address; returns when all are connected.
    ///
    /// # Errors
    /// Where not all come within `timeout`, or one was started for another group.
    pub fn form(place: &Place, timeout: Duration) -> Result<Self, GroupError> {
        Ok(Self::new(place.rank, meet::all(place, timeout)?))
    }

    pub(super) fn new(rank: usize, peers: Vec<Option<TcpStream>>) -> Self {
        Self { rank, peers, exchange: 0 }
    }

    /// Sends to all and receives from all at the same time, so that nobody waits for one who waits for them. `take` is
    /// called in the order of ranks, for this process too, without a connection.
    fn trade<'a>(
        &mut self,
        give: &(dyn Fn(usize) -> &'a [u8] + Sync),
        take: &mut Take<'_>,
    ) -> Result<(), GroupError> {
        self.exchange += 1;
        let exchange = self.exchange;
        std::thread::scope(|scope| {
            let sending: Vec<_> = connected(&self.peers)
                .map(|(rank, stream)| scope.spawn(move || send(stream, rank, exchange, give(rank))))
                .collect();
            let received = self.peers.iter().enumerate().try_for_each(|(rank, stream)| {
                let incoming = stream.as_ref().map(|stream| Incoming { stream, rank, exchange });
                let taken = take(rank, incoming.as_ref());
                if let (Err(_), Some(stream)) = (&taken, stream) {
                    // What is being sent to it must not wait either.
                    let _ = stream.shutdown(Shutdown::Both);
                }
                taken
            });
            let sent = sending.into_iter().map(joined).collect::<Vec<_>>();
            sent.into_iter().fold(received, Result::and)
        })
    }

    fn add_up<T: Pod + Send + Sync + std::ops::AddAssign>(
        &mut self,
        values: &mut [T],
    ) -> Result<(), GroupError> {
        let (world_size, len) = (self.peers.len(), values.len());
        let share = |rank: usize| -> Range<usize> { len * rank / world_size..len * (rank + 1) / world_size };
        let own = share(self.rank);
        let mut sums = Pairwise::default();
        let total = {
            let values = &*values;
            self.trade(&|rank| cast_slice(&values[share(rank)]), &mut |_, incoming| {
                let mut part = values[own.clone()].to_vec();
                if let Some(incoming) = incoming {
                    incoming.read(cast_slice_mut(&mut part))?;
                }
                let Ok(()) = sums.push(part, add);
                Ok(())
            })?;
            let Ok(total) = sums.finish(add);
            total.unwrap_or_default()
        };
        values[own].copy_from_slice(&total);
        let given: &[u8] = cast_slice(&total);
        self.trade(&|_| given, &mut |rank, incoming| match incoming {
            Some(incoming) => incoming.read(cast_slice_mut(&mut values[share(rank)])),
            None => Ok(()),
        })
    }
}

impl Group for Mesh {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.peers.len()
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<(), GroupError> {
        self.add_up(values)
    }

    fn sum_f64(&mut self, values: &mut [f64]) -> Result<(), GroupError> {
        self.add_up(values)
    }

    fn broadcast(&mut self, bytes: &mut [u8]) -> Result<(), GroupError> {
        self.exchange += 1;
        let exchange = self.exchange;
        if let Some(stream) = &self.peers[0] {
            return receive(stream, 0, exchange, bytes);
        }
        let bytes = &*bytes;
        std::thread::scope(|scope| {
            let sending: Vec<_> = connected(&self.peers)
                .map(|(rank, stream)| scope.spawn(move || send(stream, rank, exchange, bytes)))
                .collect();
            sending.into_iter().map(joined).collect::<Vec<_>>().into_iter().collect()
        })
    }
}

/// Takes what a process sends; none from this one itself.
type Take<'a> = dyn FnMut(usize, Option<&Incoming<'_>>) -> Result<(), GroupError> + 'a;

/// What a process has to take from another in an exchange.
struct Incoming<'a> {
    stream: &'a TcpStream,
    rank: usize,
    exchange: u64,
}

impl Incoming<'_> {
    fn read(&self, bytes: &mut [u8]) -> Result<(), GroupError> {
        receive(self.stream, self.rank, self.exchange, bytes)
    }
}

fn connected(peers: &[Option<TcpStream>]) -> impl Iterator<Item = (usize, &TcpStream)> {
    peers.iter().enumerate().filter_map(|(rank, stream)| Some((rank, stream.as_ref()?)))
}

/// A sending thread's outcome; its panic is ours.
fn joined(thread: std::thread::ScopedJoinHandle<'_, Result<(), GroupError>>) -> Result<(), GroupError> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn add<T: Copy + std::ops::AddAssign>(mut a: Vec<T>, b: Vec<T>) -> Result<Vec<T>, Infallible> {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    Ok(a)
}
