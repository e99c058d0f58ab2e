/// A sum in the order of a binary tree over the values' numbers: neighbours first, then neighbouring pairs, and so on.
///
/// What `2^k` values that start at a multiple of `2^k` add up to is a part of every longer sum. So where processes have
/// that many each, they add up theirs, and then, in the same order, their sums: the result is that of one process, bit
/// for bit. It is also closer to the true sum than one term after the other, and takes memory for as many terms as the
/// number of values has binary digits.
#[derive(Debug)]
pub struct Pairwise<T> {
    /// Sums with the number of values in each, every one larger than the next.
    sums: Vec<(usize, T)>,
}

impl<T> Default for Pairwise<T> {
    fn default() -> Self {
        Self { sums: Vec::new() }
    }
}

impl<T> Pairwise<T> {
    /// Takes the next value.
    ///
    /// # Errors
    /// Those of `add`.
    pub fn push<E>(&mut self, value: T, add: impl Fn(T, T) -> Result<T, E>) -> Result<(), E> {
        let mut last = (1, value);
        while let Some((count, sum)) = self.sums.pop_if(|(count, _)| *count == last.0) {
            last = (count + last.0, add(sum, last.1)?);
        }
        self.sums.push(last);
        Ok(())
    }

    /// The sum of all values; `None` if there were none.
    ///
    /// # Errors
    /// Those of `add`.
    pub fn finish<E>(mut self, add: impl Fn(T, T) -> Result<T, E>) -> Result<Option<T>, E> {
        let Some((_, mut sum)) = self.sums.pop() else { return Ok(None) };
        while let Some((_, before)) = self.sums.pop() {
            sum = add(before, sum)?;
        }
        Ok(Some(sum))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Sums as the expressions that they are.
    fn sum(values: impl IntoIterator<Item = String>) -> String {
        let add = |a: String, b: String| Ok::<_, Infallible>(format!("({a}{b})"));
        let mut sums = Pairwise::default();
        for value in values {
            sums.push(value, add).unwrap();
        }
        sums.finish(add).unwrap().unwrap_or_default()
    }

    fn name(i: usize) -> String {
        char::from(b'a' + i as u8).to_string()
    }

    #[test]
    fn neighbours_come_first() {
        assert_eq!(sum(None), "");
        assert_eq!(sum((0..1).map(name)), "a");
        assert_eq!(sum((0..4).map(name)), "((ab)(cd))");
        assert_eq!(sum((0..7).map(name)), "(((ab)(cd))((ef)g))");
    }

    #[test]
    fn sums_of_a_power_of_two_each_add_up_to_the_sum_of_one() {
        for (world, each) in [(2, 1), (3, 1), (5, 1), (2, 2), (3, 4), (4, 4), (7, 2)] {
            let parts = (0..world).map(|rank| sum((rank * each..(rank + 1) * each).map(name)));
            assert_eq!(
                sum(parts),
                sum((0..world * each).map(name)),
                "{world} processes with {each} values each"
            );
        }
        assert_ne!(sum((0..2).map(|rank| sum((rank * 3..rank * 3 + 3).map(name)))), sum((0..6).map(name)));
    }
}
