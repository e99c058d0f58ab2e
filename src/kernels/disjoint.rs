use std::marker::PhantomData;

/// A slice that tasks write side by side, each to elements of its own.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: whoever writes promises that nobody else touches the same elements; elements are plain numbers.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements `at..at + len`.
    ///
    /// # Safety
    /// While the result lives nobody else may touch these elements.
    #[allow(clippy::mut_from_ref, reason = "that is what it is for")]
    #[inline(always)]
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "elements beyond the slice");
        // SAFETY: they are inside the slice, which is borrowed mutably; that they are nobody else's the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }

    /// Sets one element.
    ///
    /// # Safety
    /// Nobody else may touch this element meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn set(&self, at: usize, value: T) {
        assert!(at < self.len, "an element beyond the slice");
        // SAFETY: it is inside the slice, which is borrowed mutably; that it is nobody else's the caller says.
        unsafe { self.start.add(at).write(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_write_their_own_elements() {
        let mut numbers = vec![0u32; 100];
        let all = Disjoint::new(&mut numbers);
        std::thread::scope(|scope| {
            for task in 0..10 {
                let all = &all;
                scope.spawn(move || {
                    // SAFETY: no two tasks have the same ten elements.
                    unsafe { all.slice(10 * task, 9) }.fill(task as u32);
                    // SAFETY: as above.
                    unsafe { all.set(10 * task + 9, 7) };
                });
            }
        });
        assert!(numbers.iter().enumerate().all(|(i, &x)| x == if i % 10 == 9 { 7 } else { i as u32 / 10 }));
    }
}
