//! Sizes as people write them.

/// Reads a number of bytes: `4GiB`, `512 MB`, `1.5g`, `1e9`. A letter alone means the binary unit, as `GiB` does; `GB` is
/// a thousand million.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let is_exponent =
        |at: usize| lower[at..].starts_with('e') && lower[at + 1..].starts_with(|c: char| c.is_ascii_digit());
    let is_unit = |(at, c): &(usize, char)| c.is_ascii_alphabetic() && !is_exponent(*at);
    let unit = lower.char_indices().find(is_unit).map_or(lower.len(), |(at, _)| at);
    let (number, unit) = (lower[..unit].trim(), lower[unit..].trim());
    let wrong = || {
        format!("`{text}` is not a size: write a number of bytes, or one with a unit, as in 4GiB or 512MB")
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let power = match unit.chars().next() {
        None | Some('b') => 0,
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some(_) => return Err(wrong()),
    };
    let base: f64 = match (power, unit.get(1..).unwrap_or_default()) {
        (0, "") | (1.., "" | "i" | "ib") => 1024.0,
        (1.., "b") => 1000.0,
        _ => return Err(wrong()),
    };
    let bytes = number * base.powi(power);
    // `as` would take what is too large for the largest number there is.
    if (0.0..9e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1234", 1234),
            ("12b", 12),
            ("1e9", 1_000_000_000),
            ("1.5e3", 1500),
            ("4GiB", 4 << 30),
            (" 512 mb ", 512_000_000),
            ("1.5g", 3 << 29),
            ("2Ki", 2048),
            ("3T", 3 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "GiB", "-1", "1e", "4 apples", "4GiBs", "1e30", "nan", "inf", "4bb", "1.2.3", "4é", "1 2"]
        {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
