use super::number::{short, unit};

/// One direction of a plot: from which number to which, and where it is labelled.
#[derive(Clone, Debug)]
pub(in crate::train::report) struct Axis {
    pub(super) label: String,
    pub(super) ticks: Vec<f64>,
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Between two ticks, where all are the same way apart.
    step: f64,
}

/// Ranges that span more than this are drawn in logarithms.
const DECADE: f64 = 10.0;

impl Axis {
    /// From the smallest of these numbers to the largest, with some room around them.
    pub(in crate::train::report) fn linear(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values);
        let room = if high > low { 0.06 * (high - low) } else { (0.05 * high.abs()).max(1e-9) };
        // What is never negative is not drawn as if it could be.
        let below = if low >= 0.0 { (low - room).max(0.0) } else { low - room };
        let (low, high) = (below, high + room);
        let step = round_step((high - low) / 5.0);
        let ticks = (0..12)
            .map(|i| ((low / step - 1e-6).ceil() + f64::from(i)) * step)
            .take_while(|tick| *tick <= high + 1e-6 * step)
            .collect();
        Self { label: label.to_owned(), ticks, low, high, logarithmic: false, step }
    }

    /// Logarithmic where all numbers are positive and the largest is ten times the smallest or more.
    pub(in crate::train::report) fn fitting(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let (low, high) = range(values.iter().copied());
        if low <= 0.0 || high < DECADE * low {
            return Self::linear(label, values);
        }
        let room = (high / low).powf(0.06);
        let (low, high) = (low / room, high * room);
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let at = |factors: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|decade| factors.iter().map(move |f| f * 10f64.powi(decade)));
            all.filter(|tick| (low..=high).contains(tick)).collect()
        };
        let fine = at(&[1.0, 2.0, 5.0]);
        let ticks = if fine.len() <= 7 { fine } else { at(&[1.0]) };
        // Over very many decades only some of them.
        let every = ticks.len().div_ceil(8);
        let ticks = ticks.into_iter().step_by(every.max(1)).collect();
        Self { label: label.to_owned(), ticks, low, high, logarithmic: true, step: 0.0 }
    }

    /// Where a number lies: 0 at the axis's beginning, 1 at its end.
    pub(super) fn place(&self, value: f64) -> f64 {
        if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// A tick's number.
    pub(super) fn text(&self, tick: f64) -> String {
        let (unit, letter) = unit(self.low.abs().max(self.high.abs()));
        let step = self.step / unit;
        let is_whole = |number: f64| (number - number.round()).abs() < 1e-6;
        let decimals = (0..7).find(|decimals| is_whole(step * 10f64.powi(*decimals)));
        match decimals {
            Some(decimals) if !self.logarithmic => {
                let text = format!("{:.*}", decimals as usize, tick / unit);
                if tick == 0.0 { "0".into() } else { text + letter }
            }
            _ => short(tick, 2),
        }
    }
}

/// The smallest and the largest of those that are numbers.
fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let numbers = values.into_iter().filter(|value| value.is_finite());
    let found = numbers.fold(None, |found, value| match found {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    });
    found.unwrap_or((0.0, 1.0))
}

/// The next larger of 1, 2, 2.5 and 5 times a power of ten.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 2.5, 5.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        let texts = |axis: &Axis| axis.ticks.iter().map(|tick| axis.text(*tick)).collect::<Vec<_>>();
        assert_eq!(texts(&Axis::linear("", [4.86, 5.04])), ["4.85", "4.90", "4.95", "5.00", "5.05"]);
        assert_eq!(texts(&Axis::linear("", [0.0, 3.2768e6])), ["0", "1M", "2M", "3M"]);
        assert_eq!(texts(&Axis::linear("", [2.0, 6.0])), ["2", "3", "4", "5", "6"]);
        assert_eq!(texts(&Axis::linear("", [4e-5, 0.004])), ["0", "0.001", "0.002", "0.003", "0.004"]);
        assert_eq!(
            texts(&Axis::fitting("", [1e4, 1e6])),
            ["10K", "20K", "50K", "100K", "200K", "500K", "1M"]
        );
        assert_eq!(texts(&Axis::fitting("", [1e3, 1e9])), ["1000", "10K", "100K", "1M", "10M", "100M", "1G"]);
        assert_eq!(texts(&Axis::linear("", [])).first().map(String::as_str), Some("0"));
    }

    proptest! {
        /// Whatever the numbers: some ticks, all on the axis, all with different texts, in the order of their numbers.
        #[test]
        fn an_axis_shows_all_numbers(a in -1e9..1e9f64, size in -6..9i32, b in 0.0..1.0f64, fitting: bool) {
            let numbers = [a * 10f64.powi(-size), (a + b * a.abs()) * 10f64.powi(-size)];
            let axis = if fitting { Axis::fitting("", numbers) } else { Axis::linear("", numbers) };
            for number in numbers {
                prop_assert!((0.0..=1.0).contains(&axis.place(number)), "{axis:?} {number}");
            }
            prop_assert!(axis.ticks.is_sorted_by(|a, b| a < b));
            prop_assert!(axis.ticks.iter().all(|tick| (-1e-5..=1.0 + 1e-5).contains(&axis.place(*tick))), "{axis:?}");
            if numbers[1] > numbers[0] * (1.0 + 1e-3) && numbers[0] > 0.0 {
                prop_assert!((2..=8).contains(&axis.ticks.len()), "{axis:?}");
                let mut texts: Vec<_> = axis.ticks.iter().map(|tick| axis.text(*tick)).collect();
                texts.dedup();
                prop_assert_eq!(texts.len(), axis.ticks.len(), "{:?} {:?}", texts, axis);
            }
        }
    }
}
