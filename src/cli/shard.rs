//! Parts of a whole as people write them.

/// Reads the i-th of n parts, written i/n.
pub(super) fn parse_shard(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parts
        .filter(|&(part, parts)| (1..=parts).contains(&part))
        .ok_or_else(|| "write the i-th of n parts as i/n, from 1/n to n/n".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_count_from_one() {
        assert_eq!(parse_shard("2/3"), Ok((2, 3)));
        for text in ["0/3", "4/3", "1", "a/b", "1/0"] {
            assert!(parse_shard(text).is_err(), "{text}");
        }
    }
}
