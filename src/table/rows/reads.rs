//! Many reads of one file at a time: what the two ways of making them have in common.

use std::io;
use std::ops::Range;

use super::SharedFile;
#[cfg(target_os = "linux")]
use super::ring::Ring;
use super::threads::Threads;

/// A stretch of the file to be read in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where, in the file.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: usize,
    /// Which of the batch's rows lie in it.
    pub(super) rows: Range<usize>,
}

/// What both ways are told.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) file: SharedFile,
    /// Reads under way at a time.
    pub(super) depth: usize,
    /// No extent is longer.
    pub(super) longest: usize,
    /// A read that gave only a part goes on at a multiple of this.
    pub(super) align: usize,
}

/// Takes an extent, by its number, and its bytes.
pub(super) type Arrived<'a> = &'a mut dyn FnMut(usize, &[u8]);

/// Something that reads, for one batch at a time.
#[derive(Debug)]
pub(super) enum Reader {
    #[cfg(target_os = "linux")]
    Ring(Box<Ring>),
    Threads(Threads),
}

impl Reader {
    /// Reads all `extents`, in any order. After an error a reader is of no more use.
    pub(super) fn read(&mut self, extents: &[Extent], arrived: Arrived<'_>) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Ring(ring) => ring.read(extents, arrived),
            Self::Threads(threads) => threads.read(extents, arrived),
        }
    }
}

/// The error of a file that ended where there should have been a row.
pub(super) fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it was cut short")
}
