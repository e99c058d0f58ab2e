//! What goes over a connection: while processes meet, messages with their length before them; then values, with the
//! number of the exchange that they belong to.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};

use super::GroupError;

/// A message to meet with is no longer; what claims to be is none.
const LONGEST: usize = 1 << 20;

/// After so long without a word the system asks whether the other machine is still there, and then as often again.
const PROBE_AFTER: Duration = Duration::from_secs(10);

/// Who connects.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// `scone-train` and its version: all processes must be the same program.
    pub(super) program: String,
    pub(super) rank: usize,
    pub(super) world_size: usize,
    /// Of the group, once rank 0 has said it; nothing else may join it.
    pub(super) session: u64,
    /// Where the process waits for those of higher rank.
    pub(super) port: u16,
}

/// Rank 0's answer, when all are there.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Welcome {
        session: u64,
        /// By rank, how the others are reached; the first is not needed.
        addresses: Vec<std::net::SocketAddr>,
    },
    Refused(String),
}

pub(super) fn write_message(mut stream: &TcpStream, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend(text);
    stream.write_all(&bytes)
}

pub(super) fn read_message<T: DeserializeOwned>(mut stream: &TcpStream) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Readies a connection for values: small ones go at once, and who is silent for `timeout`, or whose machine is gone,
/// fails what waits for it.
pub(super) fn tune(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    SockRef::from(stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_AFTER))
}

/// Sends the bytes of an exchange to a process.
pub(super) fn send(
    mut stream: &TcpStream,
    rank: usize,
    exchange: u64,
    bytes: &[u8],
) -> Result<(), GroupError> {
    let header = [exchange.to_le_bytes(), (bytes.len() as u64).to_le_bytes()].concat();
    stream
        .write_all(&header)
        .and_then(|()| stream.write_all(bytes))
        .map_err(|error| lost(stream, rank, &error))
}

/// Fills `bytes` with those of an exchange from a process.
pub(super) fn receive(
    mut stream: &TcpStream,
    rank: usize,
    exchange: u64,
    bytes: &mut [u8],
) -> Result<(), GroupError> {
    let mut header = [[0; 8]; 2];
    stream.read_exact(header.as_flattened_mut()).map_err(|error| lost(stream, rank, &error))?;
    let theirs = header.map(u64::from_le_bytes);
    let ours = [exchange, bytes.len() as u64];
    if theirs != ours {
        let shown = |[exchange, length]: [u64; 2]| format!("{exchange} of {length} bytes");
        return Err(GroupError::OutOfStep { rank, theirs: shown(theirs), ours: shown(ours) });
    }
    stream.read_exact(bytes).map_err(|error| lost(stream, rank, &error))
}

fn lost(stream: &TcpStream, rank: usize, error: &io::Error) -> GroupError {
    let why = match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "it has closed its connection".to_owned()
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            let timeout = stream.read_timeout().ok().flatten().unwrap_or_default();
            format!("nothing was heard of it for {} s", timeout.as_secs())
        }
        _ => error.to_string(),
    };
    GroupError::Lost { rank, why }
}
