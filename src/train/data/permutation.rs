/// A permutation of `0..len` in constant memory: a Feistel network on the next power of four, walked until it lands
/// inside (Black and Rogaway, "Ciphers with arbitrary finite domains"). Shuffles windows without storing an order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permutation {
    len: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    pub(super) fn new(len: u64, key: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), key }
    }

    /// Where `i < len` goes.
    pub(super) fn get(&self, i: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let mut at = i;
        loop {
            let (mut left, mut right) = (at >> self.half_bits, at & mask);
            for round in 0..4 {
                (left, right) = (right, left ^ (mix(right ^ mix(self.key.wrapping_add(round))) & mask));
            }
            at = left << self.half_bits | right;
            if at < self.len {
                return at;
            }
        }
    }
}

/// The finaliser of splitmix64.
pub(super) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_comes_once_and_keys_differ() {
        for len in [1, 2, 3, 5, 64, 65, 1000] {
            let order = |key| (0..len).map(|i| Permutation::new(len, key).get(i)).collect::<Vec<_>>();
            let mut sorted = order(9);
            sorted.sort_unstable();
            assert_eq!(sorted, (0..len).collect::<Vec<_>>());
            assert!(len < 64 || (order(9) != order(10) && order(9) != sorted));
        }
    }
}
