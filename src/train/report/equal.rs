use super::field;

/// Where on a line something else would lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Equal {
    /// Better than the whole line: beyond its last number.
    Beyond(f64),
    /// Worse than the whole line: before its first.
    Before(f64),
    At(f64),
}

impl Equal {
    /// The place on a line of two points or more, from left to right, whose figures fall: between two points along the
    /// logarithm where there is one, since losses fall with the logarithm of what is spent.
    pub(super) fn on(line: &[(f64, f64)], y: f64) -> Option<Self> {
        let (first, last) = (line.first()?, line.last()?);
        if line.len() < 2 || !line.is_sorted_by(|a, b| a.1 > b.1) {
            return None;
        }
        if y > first.1 {
            return Some(Self::Before(first.0));
        }
        let between = line.windows(2).find(|pair| y >= pair[1].1);
        let Some([(x0, y0), (x1, y1)]) = between else { return Some(Self::Beyond(last.0)) };
        let share = (y0 - y) / (y0 - y1);
        let x = if *x0 > 0.0 { x0 * (x1 / x0).powf(share) } else { x0 + share * (x1 - x0) };
        Some(Self::At(x))
    }

    /// As a table has it; `path` is the figure of the line's places.
    pub(super) fn text(self, path: &str) -> String {
        match self {
            Self::Beyond(x) => format!("more than {}", field::cell(path, x)),
            Self::Before(x) => format!("less than {}", field::cell(path, x)),
            Self::At(x) => field::cell(path, x),
        }
    }

    /// The place, where there is one.
    pub(super) fn number(self) -> Option<f64> {
        if let Self::At(x) = self { Some(x) } else { None }
    }
}
