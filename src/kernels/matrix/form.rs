use crate::kernels::memory::Line;
use crate::kernels::simd::{LANES, Simd};

/// Outputs of a panel.
pub(in crate::kernels) const PANEL: usize = 2 * LANES;

/// How the numbers of a panel lie in memory: in groups of some inputs, each some lines long.
pub(in crate::kernels) trait Form {
    /// Inputs of a group.
    const INPUTS: usize;
    /// Lines of a group.
    const LINES: usize;
    /// What it multiplies: numbers, or blocks of them.
    type X: Copy;
    /// How many of them a group has.
    const XS: usize;
    /// Vectors that a row's share of a tile keeps in registers, for each vector of outputs.
    const SUMS: usize;

    /// Puts a stored group of one output in its place. The last group of a row may be shorter.
    fn pack(stored: &[u8], output: usize, lines: &mut [Line]);

    /// The numbers of one output's group. The last of a row may be shorter.
    fn unpack(lines: &[Line], output: usize, numbers: &mut [f32]);

    /// Adds the products of `R` rows of `x` with the outputs of `V` vectors, of which `first` is the first, to the sums:
    /// group by group, and in each input by input or block by block. Asks for the lines that lie `ahead` of those it reads:
    /// tall tiles leave the processor no room to look so far itself.
    fn add<S: Simd, const R: usize, const V: usize>(
        simd: S,
        lines: &[Line],
        x: [&[Self::X]; R],
        first: usize,
        ahead: usize,
        sums: &mut [[S::F32; V]; R],
    );
}
