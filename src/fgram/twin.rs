//! The rule as it is written, slow and obvious: what the tests hold the fast code against.

use std::collections::HashSet;

/// The length of the longest n-gram of `set` that ends with the last of `tokens` and lies inside them, or 1 where
/// there is none: every start is tried, the smallest first.
pub fn longest_match(set: &HashSet<Vec<u32>>, tokens: &[u32]) -> usize {
    (0..tokens.len())
        .map(|start| &tokens[start..])
        .find(|ngram| ngram.len() >= 2 && set.contains(*ngram))
        .map_or(1, <[u32]>::len)
}
