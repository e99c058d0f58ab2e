//! Times as people write them.

use std::time::Duration;

/// The longest that is taken: a hundred days. Beyond it a clock may overflow, and nobody waits.
const LONGEST: f64 = 8.64e6;

/// Reads a time: `30s`, `1.5m`, `200ms`, `1h`; a number alone is in seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let lower = text.trim().to_ascii_lowercase();
    let unit = lower.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(lower.len());
    let (number, unit) = (lower[..unit].trim(), lower[unit..].trim());
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => f64::NAN,
    };
    let seconds = number.parse().map_or(f64::NAN, |number: f64| number * seconds);
    if (0.0..=LONGEST).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("`{text}` is not a time: write seconds, or a number with a unit, as in 500ms, 30s or 5m"))
    }
}

/// Reads a time that may not be 0.
pub(super) fn parse_some_duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .and_then(|time| if time.is_zero() { Err("must be more than 0".into()) } else { Ok(time) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_and_without_units() {
        for (text, millis) in [
            ("0", 0),
            ("30", 30_000),
            ("0.5", 500),
            ("30s", 30_000),
            ("200 ms", 200),
            ("1.5m", 90_000),
            ("2H", 7_200_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1", "1d", "1e99", "NaN", "inf", "1 2"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_some_duration("0s").is_err() && parse_some_duration("1").is_ok());
    }
}
