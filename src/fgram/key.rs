use bytemuck::{Pod, Zeroable};

/// Token ids are below this: the lower codes of [`Key::parent`] stand for single tokens.
pub const MAX_VOCABULARY: u32 = 1 << 24;

/// The most f-grams that a set can hold.
pub const MAX_RANKS: u32 = u32::MAX - MAX_VOCABULARY;

/// An f-gram of a closed set in eight bytes: its suffix and the one token before that.
///
/// `(t_j .. t_i)` is stored as the code of `(t_j+1 .. t_i)` and `t_j`. The code of a single token is its id, that
/// of an f-gram [`MAX_VOCABULARY`] plus its rank. Two f-grams of a set have different keys and equal f-grams equal
/// ones, so comparing keys compares all the tokens. The layout is that of the table's `keys` tensor (two
/// little-endian u32 a row).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Key {
    /// The code of the suffix (all tokens but the first).
    pub parent: u32,
    /// The first token.
    pub token: u32,
}

impl Key {
    /// The key of a bigram `(first, last)`.
    pub fn of_bigram(first: u32, last: u32) -> Self {
        Self { parent: last, token: first }
    }

    /// The key of the f-gram made of `first` and then the f-gram of rank `suffix`.
    pub fn of_longer(first: u32, suffix: u32) -> Self {
        Self { parent: MAX_VOCABULARY + suffix, token: first }
    }

    /// The rank of the suffix, or `None` where the suffix is a single token (which [`Key::parent`] then is).
    pub fn parent_rank(self) -> Option<u32> {
        self.parent.checked_sub(MAX_VOCABULARY)
    }

    /// A well-mixed hash. It is part of the table's format: changing it makes old files unreadable.
    pub fn hash(self) -> u64 {
        // The finaliser of splitmix64, by Steele, Lea and Flood ("Fast splittable pseudorandom number generators").
        let mut x =
            (u64::from(self.parent) << 32 | u64::from(self.token)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}
