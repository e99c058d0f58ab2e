/// A number for people: so many significant digits, no zeros at the end, K, M, G, T or P from 10,000 on.
pub(in crate::train::report) fn short(value: f64, digits: i32) -> String {
    let size = value.abs();
    if size == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e18).contains(&size) {
        return format!("{value:.*e}", (digits - 1).max(0) as usize);
    }
    let (unit, letter) = unit(size);
    let decimals = digits - 1 - (size / unit).log10().floor() as i32;
    let text = format!("{:.*}", decimals.max(0) as usize, value / unit);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{letter}")
}

/// The unit that a number of this size is written in.
pub(super) fn unit(size: f64) -> (f64, &'static str) {
    const UNITS: [(f64, &str); 5] = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")];
    if size < 1e4 {
        return (1.0, "");
    }
    UNITS.into_iter().find(|(unit, _)| size >= *unit).unwrap_or((1.0, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_right() {
        let cases = [
            (0.0, "0"),
            (5.0, "5"),
            (4.875_18, "4.88"),
            (-10.3, "-10.3"),
            (0.004, "0.004"),
            (0.0004, "4.00e-4"),
            (8192.0, "8192"),
            (100_000.0, "100K"),
            (1_062_400.0, "1.06M"),
            (3.2e9, "3.2G"),
            (2e20, "2.00e20"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value, 3), text);
        }
    }
}
