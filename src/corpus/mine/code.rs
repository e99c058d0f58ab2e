//! Sorted keys and their counts, compressed: what runs and survivors are stored as.
//!
//! An entry is the key's distance from the one before, doubled, plus one where a count follows; a count of 1 is not
//! written. Both are varints of seven bits a byte, the lowest first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The most bytes of an entry: two varints of 64 bits.
const LONGEST: usize = 20;

/// Appends entries to a buffer.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    last: u64,
}

impl Encoder {
    /// Keys must not decrease; they and counts are below 2^63.
    pub(super) fn push(&mut self, key: u64, count: u64, bytes: &mut Vec<u8>) {
        let delta = (key - self.last) << 1;
        self.last = key;
        if count == 1 {
            varint(delta, bytes);
        } else {
            varint(delta | 1, bytes);
            varint(count, bytes);
        }
    }
}

fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Bytes that can be read from any place.
pub(super) trait ReadAt {
    /// Fills the buffer with the bytes from `at` on.
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }
}

/// Encoded bytes that others own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    Memory(&'a [u8]),
    /// In a file, from an offset on.
    File(&'a File, u64),
}

impl ReadAt for Source<'_> {
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => {
                let from = bytes.get(at as usize..at as usize + buffer.len());
                buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Self::File(file, offset) => file.read_exact_at(buffer, offset + at),
        }
    }
}

/// Reads entries back through a small buffer.
pub(super) struct Decoder<S> {
    source: S,
    /// Bytes of the source that are not in the buffer yet, and where they begin.
    rest: u64,
    offset: u64,
    buffer: Vec<u8>,
    capacity: usize,
    at: usize,
    last: u64,
    /// Of the bytes read so far.
    crc: crc32fast::Hasher,
}

impl<S: ReadAt> Decoder<S> {
    /// Reads `len` bytes of the source, `capacity` at a time.
    pub(super) fn new(source: S, len: u64, capacity: usize) -> Self {
        let capacity = capacity.max(2 * LONGEST);
        let (rest, crc) = (len, crc32fast::Hasher::new());
        Self { source, rest, offset: 0, buffer: Vec::new(), capacity, at: 0, last: 0, crc }
    }

    /// The CRC-32 of all bytes, once `next` has given `None`.
    pub(super) fn crc(&self) -> u32 {
        self.crc.clone().finalize()
    }

    /// The next key and its count.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, u64)>> {
        if self.buffer.len() - self.at < LONGEST && self.rest > 0 {
            self.refill()?;
        }
        if self.at == self.buffer.len() {
            return Ok(None);
        }
        let head = self.varint()?;
        let count = if head & 1 == 1 { self.varint()? } else { 1 };
        self.last = self.last.wrapping_add(head >> 1);
        Ok(Some((self.last, count)))
    }

    fn refill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let kept = self.buffer.len();
        let more = ((self.capacity - kept) as u64).min(self.rest);
        self.buffer.resize(kept + more as usize, 0);
        self.source.read(self.offset, &mut self.buffer[kept..])?;
        self.crc.update(&self.buffer[kept..]);
        self.offset += more;
        self.rest -= more;
        Ok(())
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for (i, &byte) in self.buffer[self.at..].iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.at += i + 1;
                return Ok(value);
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_survive(
            deltas in prop::collection::vec((0u64..1 << 50, prop_oneof![Just(1u64), 1u64..1 << 62]), 0..300),
            capacity in 1usize..200,
        ) {
            let mut key = 0;
            let entries: Vec<(u64, u64)> = deltas.into_iter().map(|(delta, count)| {
                key += delta;
                (key, count)
            }).collect();
            let (mut bytes, mut encoder) = (Vec::new(), Encoder::default());
            for &(key, count) in &entries {
                encoder.push(key, count, &mut bytes);
            }
            let mut decoder = Decoder::new(Source::Memory(&bytes), bytes.len() as u64, capacity);
            let mut again = Vec::new();
            while let Some(entry) = decoder.next().unwrap() {
                again.push(entry);
            }
            prop_assert_eq!(again, entries);
            prop_assert_eq!(decoder.crc(), crc32fast::hash(&bytes));
        }

        #[test]
        fn damage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::new(Source::Memory(&bytes), bytes.len() as u64, 50);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }
}
