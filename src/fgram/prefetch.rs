/// Asks the processor to fetch the cache line of `slice[at]`. A hint: it does nothing where `at` is out of range or
/// the architecture has no such instruction in stable Rust.
pub(super) fn prefetch<T>(slice: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(wanted) = slice.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the address is that of a live reference, and the instruction changes nothing but the cache; SSE is
        // part of every x86-64 processor.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(wanted).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, at);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_place_will_do() {
        let slice = [1, 2, 3];
        [0, 2, 3, usize::MAX].into_iter().for_each(|at| prefetch(&slice, at));
        prefetch::<u8>(&[], 0);
        assert_eq!(slice, [1, 2, 3]);
    }
}
