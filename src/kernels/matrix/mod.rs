//! Weights packed for their products.
//!
//! A weight is cut into panels of 32 outputs, side by side: a lane of a vector is an output. So each output is summed
//! input by input, in ONE order whatever the batch, the threads and the panel's place, and nothing is ever added up
//! across lanes. Numbers stay as they are stored: what a step costs is reading them.

mod blocks;
mod form;
mod plain;

pub(super) use blocks::{Q4_0, Q4_1, Q4K, Q6K, Q8_0};
pub(super) use form::{Form, PANEL};
pub(super) use plain::{Bf16, F16, F32};

use super::Encoding;
use super::memory::{Line, Lines};

/// A weight `[outputs, inputs]`, packed for [`product`](super::product).
pub struct Matrix {
    encoding: Encoding,
    outputs: usize,
    inputs: usize,
    lines: Lines,
}

/// Runs an expression with `$form` standing for the form of an encoding.
macro_rules! with_form {
    ($encoding:expr, $form:ident => $then:expr) => {{
        use $crate::kernels::matrix as forms;
        match $encoding {
            Encoding::F32 => {
                type $form = forms::F32;
                $then
            }
            Encoding::F16 => {
                type $form = forms::F16;
                $then
            }
            Encoding::Bf16 => {
                type $form = forms::Bf16;
                $then
            }
            Encoding::Q8_0 => {
                type $form = forms::Q8_0;
                $then
            }
            Encoding::Q4_0 => {
                type $form = forms::Q4_0;
                $then
            }
            Encoding::Q4_1 => {
                type $form = forms::Q4_1;
                $then
            }
            Encoding::Q4K => {
                type $form = forms::Q4K;
                $then
            }
            Encoding::Q6K => {
                type $form = forms::Q6K;
                $then
            }
        }
    }};
}
pub(super) use with_form;

impl Matrix {
    /// Packs a weight, whose rows `bytes` hold one after the other. Its numbers are kept exactly.
    ///
    /// # Errors
    /// If a row is no whole number of blocks, the bytes are not as many as the rows need, or there is no memory.
    pub fn new(encoding: Encoding, outputs: usize, inputs: usize, bytes: &[u8]) -> Result<Self, String> {
        let row = row_bytes(encoding, outputs, inputs, bytes)?;
        let mut matrix = Self::empty(encoding, outputs, inputs)?;
        bytes.chunks_exact(row).enumerate().for_each(|(output, bytes)| matrix.pack(output, bytes));
        Ok(matrix)
    }

    /// Packs a weight in another encoding than it is stored in: `--dtype`.
    ///
    /// # Errors
    /// As [`Self::new`] for either encoding; and for encodings that are only read.
    pub fn convert(
        from: Encoding,
        outputs: usize,
        inputs: usize,
        bytes: &[u8],
        to: Encoding,
    ) -> Result<Self, String> {
        if from == to {
            return Self::new(from, outputs, inputs, bytes);
        }
        let row = row_bytes(from, outputs, inputs, bytes)?;
        let mut matrix = Self::empty(to, outputs, inputs)?;
        let (mut numbers, mut encoded) = (vec![0.0; inputs], Vec::new());
        for (output, bytes) in bytes.chunks_exact(row).enumerate() {
            from.decode(bytes, &mut numbers);
            encoded.clear();
            to.encode(&numbers, &mut encoded)?;
            matrix.pack(output, &encoded);
        }
        Ok(matrix)
    }

    fn empty(encoding: Encoding, outputs: usize, inputs: usize) -> Result<Self, String> {
        encoding.bytes(inputs).ok_or_else(|| no_blocks(encoding, inputs))?;
        let panel = panel_lines(encoding, inputs);
        let lines = panel.checked_mul(outputs.div_ceil(PANEL)).ok_or("a weight larger than memory")?;
        Ok(Self { encoding, outputs, inputs, lines: Lines::new(lines)? })
    }

    fn pack(&mut self, output: usize, bytes: &[u8]) {
        let panel = panel_lines(self.encoding, self.inputs);
        let lines = &mut self.lines[output / PANEL * panel..][..panel];
        with_form!(self.encoding, F => {
            let stored = bytes.chunks(self.encoding.block_bytes() * F::INPUTS / self.encoding.block());
            for (lines, bytes) in lines.chunks_exact_mut(F::LINES).zip(stored) {
                F::pack(bytes, output % PANEL, lines);
            }
        });
    }

    /// Writes the numbers of one output's row: of a head that is also the token embedding, a token's.
    ///
    /// # Panics
    /// If there is no such output, or `to` is not as long as a row.
    pub fn row(&self, output: usize, to: &mut [f32]) {
        assert!(output < self.outputs, "output {output} of {}", self.outputs);
        assert_eq!(to.len(), self.inputs, "room for a row of another length");
        let panel = panel_lines(self.encoding, self.inputs);
        let lines = &self.lines[output / PANEL * panel..][..panel];
        with_form!(self.encoding, F => {
            for (lines, to) in lines.chunks_exact(F::LINES).zip(to.chunks_mut(F::INPUTS)) {
                F::unpack(lines, output % PANEL, to);
            }
        });
    }

    /// Outputs, which are rows of the weight as it is stored.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Inputs, which are numbers of a row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How its numbers are kept.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Whether its products read [prepared](super::Activations::prepare) rows.
    pub fn is_quantised(&self) -> bool {
        self.encoding.block() > 1
    }

    /// Bytes that it takes, which a product reads.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val::<[Line]>(&self.lines)
    }

    /// The lines of all panels.
    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} [{}, {}])", self.encoding.name(), self.outputs, self.inputs)
    }
}

/// Lines of a panel.
pub(super) fn panel_lines(encoding: Encoding, inputs: usize) -> usize {
    with_form!(encoding, F => inputs.div_ceil(F::INPUTS) * F::LINES)
}

fn no_blocks(encoding: Encoding, inputs: usize) -> String {
    format!("{inputs} inputs are no whole blocks of {}, which have {}", encoding.name(), encoding.block())
}

/// Bytes of a row, if the rows are whole and all there.
fn row_bytes(encoding: Encoding, outputs: usize, inputs: usize, bytes: &[u8]) -> Result<usize, String> {
    if inputs == 0 {
        return Err("a weight of no inputs".into());
    }
    let row = encoding.bytes(inputs).ok_or_else(|| no_blocks(encoding, inputs))?;
    if row.checked_mul(outputs) != Some(bytes.len()) {
        return Err(format!(
            "a {} weight of {outputs} rows of {inputs} numbers has {row} bytes a row, but {} are there",
            encoding.name(),
            bytes.len()
        ));
    }
    Ok(row)
}
