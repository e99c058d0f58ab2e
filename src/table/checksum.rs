//! One CRC-32 for each block of a stream.

use super::format::BLOCK;

/// Takes a stream in pieces of any size.
#[derive(Debug)]
pub(super) struct BlockChecksums {
    done: Vec<u32>,
    block: crc32fast::Hasher,
    filled: usize,
}

impl BlockChecksums {
    pub(super) fn new() -> Self {
        Self { done: Vec::new(), block: crc32fast::Hasher::new(), filled: 0 }
    }

    /// Goes on after the blocks that have these checksums.
    pub(super) fn after(done: Vec<u32>) -> Self {
        Self { done, ..Self::new() }
    }

    /// The checksums of the blocks that are complete.
    pub(super) fn done(&self) -> &[u32] {
        &self.done
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            self.block.update(now);
            self.filled += now.len();
            if self.filled == BLOCK {
                self.close_block();
            }
            bytes = later;
        }
    }

    /// The checksums of all blocks, the last of which may be shorter than the others.
    pub(super) fn finish(mut self) -> Vec<u32> {
        if self.filled > 0 {
            self.close_block();
        }
        self.done
    }

    fn close_block(&mut self) {
        self.done.push(std::mem::take(&mut self.block).finalize());
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_no_difference() {
        for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 12_345] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
            let slow: Vec<u32> = bytes.chunks(BLOCK).map(crc32fast::hash).collect();
            for piece in [1_000, 333_333, BLOCK, 3 * BLOCK] {
                let mut checksums = BlockChecksums::new();
                bytes.chunks(piece).for_each(|piece| checksums.update(piece));
                assert_eq!(checksums.finish(), slow, "{len} bytes in pieces of {piece}");
            }
        }
    }
}
