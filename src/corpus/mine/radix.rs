//! Sorting keys that differ in few bits.

/// Bits of the first cut, which leaves pieces that fit the cache.
const CUT_BITS: u32 = 10;
/// Bits of the passes within a piece.
const DIGIT_BITS: u32 = 8;
/// Pieces below this are sorted by comparison.
const SMALL: usize = 256;
/// Pieces above this (4 MiB with their scratch space) are cut once more.
const LARGE: usize = 1 << 18;

/// Sorts keys that differ only in their lowest `bits`. `scratch` must be as long; what it holds afterwards means nothing.
pub(super) fn sort(keys: &mut [u64], scratch: &mut [u64], bits: u32) {
    if keys.len() <= SMALL || bits <= DIGIT_BITS {
        keys.sort_unstable();
    } else if keys.len() <= LARGE {
        by_digits(keys, scratch, bits);
    } else {
        cut(keys, scratch, bits);
    }
}

/// One pass from the top: scatters by the highest bits, then sorts each piece.
fn cut(keys: &mut [u64], scratch: &mut [u64], bits: u32) {
    let shift = bits.saturating_sub(CUT_BITS);
    let mut places = vec![0usize; 1 << (bits - shift)];
    let last = places.len() - 1;
    // The bits above are alike in all keys.
    let digit = |key: u64| (key >> shift) as usize & last;
    for &key in keys.iter() {
        places[digit(key)] += 1;
    }
    let mut ends = places.clone();
    let mut sum = 0;
    for (place, end) in places.iter_mut().zip(&mut ends) {
        sum += *end;
        *place = sum - *end;
        *end = sum;
    }
    for &key in keys.iter() {
        let place = &mut places[digit(key)];
        scratch[*place] = key;
        *place += 1;
    }
    let mut start = 0;
    for end in ends {
        // The highest bits are alike in a piece, so the bits below `shift` put it in order.
        let (piece, other) = (&mut scratch[start..end], &mut keys[start..end]);
        sort(piece, other, shift);
        other.copy_from_slice(piece);
        start = end;
    }
}

/// Passes from the bottom, for a piece that fits the cache.
fn by_digits(keys: &mut [u64], scratch: &mut [u64], bits: u32) {
    let (mut from, mut to) = (&mut *keys, &mut *scratch);
    let passes = bits.div_ceil(DIGIT_BITS);
    for pass in 0..passes {
        let shift = pass * DIGIT_BITS;
        let mut places = [0u32; 1 << DIGIT_BITS];
        for &key in from.iter() {
            places[usize::from((key >> shift) as u8)] += 1;
        }
        let mut sum = 0;
        for place in &mut places {
            let count = *place;
            *place = sum;
            sum += count;
        }
        for &key in from.iter() {
            let place = &mut places[usize::from((key >> shift) as u8)];
            to[*place as usize] = key;
            *place += 1;
        }
        std::mem::swap(&mut from, &mut to);
    }
    if passes % 2 == 1 {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn large_and_skewed_keys_are_sorted() {
        let mut state = 1u64;
        for (len, bits) in [(SMALL + 1, 56), (LARGE, 40), (3 * LARGE, 17), (3 * LARGE, 56), (3 * LARGE, 9)] {
            let mut keys: Vec<u64> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Half of them in one piece of the first cut.
                    let low = if state & 1 << 40 == 0 { bits } else { bits.min(20) };
                    (state >> 7) & ((1 << low) - 1)
                })
                .collect();
            let mut expected = keys.clone();
            expected.sort_unstable();
            sort(&mut keys, &mut vec![0; len], bits);
            assert!(keys == expected, "{len} keys of {bits} bits");
        }
    }

    proptest! {
        #[test]
        fn keys_are_sorted(keys in prop::collection::vec(0u64..1 << 33, 0..2000)) {
            let mut sorted = keys.clone();
            sort(&mut sorted, &mut vec![0; keys.len()], 33);
            let mut expected = keys;
            expected.sort_unstable();
            prop_assert_eq!(sorted, expected);
        }
    }
}
