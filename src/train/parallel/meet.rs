//! How processes find each other: all others connect to rank 0, which tells each where the rest are; then those of
//! higher rank connect to those of lower rank.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::wire::{Answer, Hello, read_message, tune, write_message};
use super::{GroupError, Place};

/// What all processes of a group must be.
const PROGRAM: &str = concat!("scone-train ", env!("CARGO_PKG_VERSION"));

/// Between two looks at something that cannot be waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// How long one who connects may take to say who it is, and a machine to answer an attempt to connect.
const PATIENCE: Duration = Duration::from_secs(5);

/// A moment and how far it was away, for messages.
#[derive(Clone, Copy)]
struct Deadline {
    end: Instant,
    timeout: Duration,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        Self { end: Instant::now() + timeout, timeout }
    }

    /// What is left; never nothing, which a socket would take for no limit.
    fn left(self) -> Duration {
        self.end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    fn is_over(self) -> bool {
        Instant::now() >= self.end
    }
}

/// Connections to all other processes, by rank.
pub(super) fn all(place: &Place, timeout: Duration) -> Result<Vec<Option<TcpStream>>, GroupError> {
    let deadline = Deadline::after(timeout);
    let peers = if place.world_size == 1 {
        vec![None]
    } else if place.rank == 0 {
        host(&listen(&place.coordinator)?, place.world_size, deadline)?
    } else {
        join(place, deadline)?
    };
    for (rank, stream) in peers.iter().enumerate() {
        if let Some(stream) = stream {
            tune(stream, timeout).map_err(|error| GroupError::Lost { rank, why: error.to_string() })?;
        }
    }
    Ok(peers)
}

/// Where rank 0 waits. A name often leads to another address on its own machine than elsewhere, so all are taken then.
fn listen(coordinator: &str) -> Result<TcpListener, GroupError> {
    let refuse = |why: String| GroupError::Listen { address: coordinator.to_owned(), why };
    let Some((host, port)) = coordinator.rsplit_once(':') else {
        return Err(refuse("the form is HOST:PORT".to_owned()));
    };
    let port: u16 = port.parse().map_err(|_| refuse(format!("`{port}` is no port")))?;
    listen_at(host, port).map_err(|error| refuse(error.to_string()))
}

/// Listens where others can reach this machine if `host` does not say that all are on it.
fn listen_at(host: &str, port: u16) -> io::Result<TcpListener> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address =
        if host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { host.parse::<IpAddr>().ok() };
    match address {
        Some(address) if address.is_loopback() => TcpListener::bind((address, port)),
        _ => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
    }
}

/// Rank 0: waits until each of the others has come, then tells all where they are.
fn host(
    listener: &TcpListener,
    world_size: usize,
    deadline: Deadline,
) -> Result<Vec<Option<TcpStream>>, GroupError> {
    let mut guests: Vec<Option<(TcpStream, SocketAddr)>> = (0..world_size).map(|_| None).collect();
    while guests[1..].iter().any(Option::is_none) {
        let Some((stream, from)) = accept(listener, deadline) else {
            let missing = (1..world_size).filter(|&rank| guests[rank].is_none()).collect();
            return Err(GroupError::Missing { missing, world_size, seconds: deadline.timeout.as_secs() });
        };
        let Some(hello) = greeting(&stream) else { continue };
        if let Err(why) = fits(&hello, world_size) {
            tracing::warn!("a process at {from} is refused: {why}");
            let _ = write_message(&stream, &Answer::Refused(why));
            continue;
        }
        // Whoever came as this rank before was started anew, or is in the wrong: only one can stay.
        let guest = (stream, SocketAddr::new(from.ip().to_canonical(), hello.port));
        if let Some((before, _)) = guests[hello.rank].replace(guest) {
            let why = format!("another process came as rank {} after it", hello.rank);
            let _ = write_message(&before, &Answer::Refused(why));
        }
    }
    let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let addresses =
        guests.iter().map(|guest| guest.as_ref().map_or(nowhere, |(_, address)| *address)).collect();
    let welcome = Answer::Welcome { session: RandomState::new().build_hasher().finish(), addresses };
    let peers: Vec<_> = guests.into_iter().map(|guest| guest.map(|(stream, _)| stream)).collect();
    for (rank, stream) in peers.iter().enumerate() {
        if let Some(stream) = stream {
            write_message(stream, &welcome)
                .map_err(|error| GroupError::Lost { rank, why: error.to_string() })?;
        }
    }
    Ok(peers)
}

/// Whether who came belongs to this group.
fn fits(hello: &Hello, world_size: usize) -> Result<(), String> {
    if hello.program != PROGRAM {
        Err(format!("rank 0 is {PROGRAM}, and this one {}", hello.program))
    } else if hello.world_size != world_size {
        Err(format!("rank 0 waits for {world_size} processes, this one for {}", hello.world_size))
    } else if hello.rank == 0 || hello.rank >= world_size {
        Err(format!("rank {} of {world_size}: that is not one of the others", hello.rank))
    } else {
        Ok(())
    }
}

/// Any other rank: finds rank 0, is told who else there is, and connects to them.
fn join(place: &Place, deadline: Deadline) -> Result<Vec<Option<TcpStream>>, GroupError> {
    let host = place.coordinator.rsplit_once(':').map_or("", |(host, _)| host);
    let listener = listen_at(host, 0);
    let port = listener.as_ref().map_err(io::Error::to_string).and_then(|listener| {
        listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
    });
    let listening = |why| GroupError::Listen { address: format!("a port for rank {}", place.rank), why };
    let (port, listener) =
        (port.map_err(listening)?, listener.map_err(|error| listening(error.to_string()))?);
    let hello = Hello {
        program: PROGRAM.to_owned(),
        rank: place.rank,
        world_size: place.world_size,
        session: 0,
        port,
    };
    let (first, session, addresses) = ask(&place.coordinator, &hello, deadline)?;
    let hello = Hello { session, ..hello };
    let mut peers: Vec<Option<TcpStream>> = (0..place.world_size).map(|_| None).collect();
    for rank in 1..place.rank {
        let lost = |error: io::Error| GroupError::Lost { rank, why: format!("{}: {error}", addresses[rank]) };
        let stream = TcpStream::connect_timeout(&addresses[rank], deadline.left()).map_err(lost)?;
        write_message(&stream, &hello).map_err(lost)?;
        peers[rank] = Some(stream);
    }
    peers[0] = Some(first);
    while peers[place.rank + 1..].iter().any(Option::is_none) {
        let Some((stream, _)) = accept(&listener, deadline) else {
            let missing = (place.rank + 1..place.world_size).filter(|&rank| peers[rank].is_none()).collect();
            let (world_size, seconds) = (place.world_size, deadline.timeout.as_secs());
            return Err(GroupError::Missing { missing, world_size, seconds });
        };
        let ours = |hello: &Hello| hello.session == session && hello.rank > place.rank;
        if let Some(hello) = greeting(&stream).filter(ours)
            && let Some(peer) = peers.get_mut(hello.rank)
        {
            *peer = Some(stream);
        }
    }
    Ok(peers)
}

/// Connects to rank 0, again and again until it is there, and waits for its answer.
fn ask(
    coordinator: &str,
    hello: &Hello,
    deadline: Deadline,
) -> Result<(TcpStream, u64, Vec<SocketAddr>), GroupError> {
    loop {
        let why = match attempt(coordinator, hello, deadline) {
            Ok((_, Answer::Refused(why))) => return Err(GroupError::Refused(why)),
            Ok((stream, Answer::Welcome { session, addresses })) if addresses.len() == hello.world_size => {
                // Who is on rank 0's own machine may have come to it by an address that is good there only.
                let there = stream.peer_addr().map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip());
                let reach = |address: SocketAddr| match address.ip().is_loopback() {
                    true => SocketAddr::new(there, address.port()),
                    false => address,
                };
                return Ok((stream, session, addresses.into_iter().map(reach).collect()));
            }
            Ok(_) => "it speaks of another number of processes".to_owned(),
            Err(error) => error.to_string(),
        };
        if deadline.is_over() {
            let seconds = deadline.timeout.as_secs();
            return Err(GroupError::Unreachable { address: coordinator.to_owned(), seconds, why });
        }
        sleep(PAUSE * 10);
    }
}

fn attempt(coordinator: &str, hello: &Hello, deadline: Deadline) -> io::Result<(TcpStream, Answer)> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in coordinator.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, deadline.left().min(PATIENCE)) {
            Ok(stream) => {
                write_message(&stream, hello)?;
                stream.set_read_timeout(Some(deadline.left()))?;
                let answer = read_message(&stream)?;
                return Ok((stream, answer));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The next who connects; `None` when the time is over.
fn accept(listener: &TcpListener, deadline: Deadline) -> Option<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true).ok()?;
    loop {
        match listener.accept() {
            Ok((stream, from)) if stream.set_nonblocking(false).is_ok() => return Some((stream, from)),
            _ if deadline.is_over() => return None,
            _ => sleep(PAUSE),
        }
    }
}

/// Who connected; `None` for one who is no process of ours, such as a probe of the port.
fn greeting(stream: &TcpStream) -> Option<Hello> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    read_message(stream).ok()
}
