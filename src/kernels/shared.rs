use std::marker::PhantomData;
use std::ops::Range;

/// A slice that several tasks write, each its own parts.
#[derive(Debug)]
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<'a, T> Shared<'a, T> {
    /// Borrows `slice` for as long as tasks write it.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements in `range`.
    ///
    /// # Panics
    /// If there are none.
    ///
    /// # Safety
    /// While the result lives nobody else may hold one that overlaps it.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "what the caller promises makes it sound")]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part outside of the slice");
        // SAFETY: the range lies in the slice, which is borrowed for 'a; the caller sees to it that parts do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

// SAFETY: it gives out `&mut T` only, to whichever thread asks, and whoever asks answers for their being apart.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as for the `&mut [T]` that it stands for.
unsafe impl<T: Send> Send for Shared<'_, T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_write_their_own_parts() {
        let mut numbers = vec![0; 100];
        let shared = Shared::new(&mut numbers);
        std::thread::scope(|scope| {
            for i in 0..4 {
                let shared = &shared;
                // SAFETY: each thread takes another quarter.
                scope.spawn(move || unsafe { shared.part(25 * i..25 * (i + 1)) }.fill(i));
            }
        });
        assert!(numbers.iter().enumerate().all(|(i, &x)| x == i / 25));
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_part_outside_of_the_slice_is_refused() {
        let mut numbers = [0; 4];
        let shared = Shared::new(&mut numbers);
        // SAFETY: it is the only one.
        let _ = unsafe { shared.part(3..5) };
    }
}
