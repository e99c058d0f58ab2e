use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

/// A cache line of a packed weight.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// Size of a huge page, and the least that is worth some.
const HUGE: usize = 2 << 20;

/// Lines for a weight, zero at first; large ones in huge pages where the system gives them, since they are read from
/// beginning to end in every step.
pub(super) enum Lines {
    Small(Vec<Line>),
    Large { map: MmapMut, start: usize, len: usize },
}

impl Lines {
    /// Room for `len` lines.
    pub(super) fn new(len: usize) -> Result<Self, String> {
        let bytes = len.checked_mul(64).ok_or("a weight larger than memory")?;
        if bytes < HUGE {
            return Ok(Self::Small(vec![Line::zeroed(); len]));
        }
        // One huge page more, so that the lines can begin on the border of one.
        let map = MmapMut::map_anon(bytes + HUGE)
            .map_err(|error| format!("no memory for a weight of {} MiB: {error}", bytes >> 20))?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!("no huge pages for a weight: {error}");
        }
        let start = map.as_ptr().align_offset(HUGE).min(HUGE);
        Ok(Self::Large { map, start, len })
    }
}

impl std::ops::Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        match self {
            Self::Small(lines) => lines,
            Self::Large { map, start, len } => bytemuck::cast_slice(&map[*start..*start + 64 * len]),
        }
    }
}

impl std::ops::DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        match self {
            Self::Small(lines) => lines,
            Self::Large { map, start, len } => bytemuck::cast_slice_mut(&mut map[*start..*start + 64 * *len]),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_zero_whatever_their_number() {
        for len in [0, 1, 1000, HUGE / 64 - 1, HUGE / 64, HUGE / 64 + 7] {
            let mut lines = Lines::new(len).unwrap();
            assert_eq!(lines.len(), len);
            assert!(lines.iter().all(|line| line.0 == [0; 64]));
            assert!(lines.as_ptr().is_aligned_to_line());
            if let Some(last) = lines.last_mut() {
                last.0[63] = 7;
                assert_eq!(lines[len - 1].0[63], 7);
            }
        }
        assert!(Lines::new(usize::MAX / 8).is_err());
    }

    trait Aligned {
        fn is_aligned_to_line(self) -> bool;
    }

    impl Aligned for *const Line {
        fn is_aligned_to_line(self) -> bool {
            (self as usize).is_multiple_of(64)
        }
    }
}
