use half::{bf16, f16};

/// How a weight file stores numbers: plainly, or in the blocks that GGUF calls by these names (ggml's `ggml-common.h` and
/// `ggml-quants.c`). A row of a weight is a whole number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// 32 signed bytes and their scale.
    Q8_0,
    /// 32 times four bits around zero, and their scale.
    Q4_0,
    /// 32 times four bits, their scale and their least value.
    Q4_1,
    /// 256 times four bits; every 32 have a scale and a least value of six bits.
    Q4K,
    /// 256 times six bits around zero; every 16 have a scale of eight bits.
    Q6K,
}

impl Encoding {
    /// Its name, as `--dtype` and GGUF write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Numbers in a block.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `len` numbers; None unless they are whole blocks.
    pub fn bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block()) {
            return None;
        }
        (len / self.block()).checked_mul(self.block_bytes())
    }

    /// The numbers that `bytes` stand for, one after the other in f32 arithmetic.
    ///
    /// # Panics
    /// Unless `bytes` are as many as `numbers` need.
    pub fn decode(self, bytes: &[u8], numbers: &mut [f32]) {
        assert_eq!(Some(bytes.len()), self.bytes(numbers.len()), "{self:?}: bytes and numbers do not fit");
        let blocks = bytes.chunks_exact(self.block_bytes()).zip(numbers.chunks_exact_mut(self.block()));
        for (bytes, numbers) in blocks {
            match self {
                Self::F32 => numbers[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                Self::F16 => numbers[0] = half(bytes),
                Self::Bf16 => numbers[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                Self::Q8_0 => {
                    let d = half(bytes);
                    let codes = bytes[2..].iter();
                    numbers.iter_mut().zip(codes).for_each(|(x, &q)| *x = d * f32::from(q as i8));
                }
                Self::Q4_0 => {
                    let d = half(bytes);
                    nibbles(&bytes[2..], numbers, |q| d * (q - 8.0));
                }
                Self::Q4_1 => {
                    let (d, least) = (half(bytes), half(&bytes[2..]));
                    nibbles(&bytes[4..], numbers, |q| d * q + least);
                }
                Self::Q4K => q4_k(bytes, numbers),
                Self::Q6K => q6_k(bytes, numbers),
            }
        }
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// The low halves of all bytes, then the high ones.
fn nibbles(bytes: &[u8], numbers: &mut [f32], value: impl Fn(f32) -> f32) {
    let (low, high) = numbers.split_at_mut(bytes.len());
    for ((&byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = value(f32::from(byte & 15));
        *high = value(f32::from(byte >> 4));
    }
}

fn q4_k(bytes: &[u8], numbers: &mut [f32]) {
    let (d, least) = (half(bytes), half(&bytes[2..]));
    let (packed, codes) = bytes[4..].split_at(12);
    // Eight scales and eight least values of six bits: the first four of each whole in a byte, the others in two parts.
    let six = |i: usize| match i {
        0..4 => (packed[i] & 63, packed[i + 4] & 63),
        _ => (
            (packed[i + 4] & 15) | ((packed[i - 4] >> 6) << 4),
            (packed[i + 4] >> 4) | ((packed[i] >> 6) << 4),
        ),
    };
    for (pair, (codes, numbers)) in codes.chunks_exact(32).zip(numbers.chunks_exact_mut(64)).enumerate() {
        let (low, high) = numbers.split_at_mut(32);
        for (half, numbers) in [low, high].into_iter().enumerate() {
            let (scale, minimum) = six(2 * pair + half);
            let (d, least) = (d * f32::from(scale), least * f32::from(minimum));
            for (x, &byte) in numbers.iter_mut().zip(codes) {
                *x = d * f32::from((byte >> (4 * half)) & 15) - least;
            }
        }
    }
}

fn q6_k(bytes: &[u8], numbers: &mut [f32]) {
    let (low, rest) = bytes.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = half(d);
    for (i, x) in numbers.iter_mut().enumerate() {
        // Of each 128 numbers the first 64 lie in low halves, the others in the high ones of the same bytes; the upper
        // two bits of all four quarters share a byte.
        let (part, quarter, l) = (i / 128, i / 32 % 4, i % 32);
        let four = low[64 * part + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
        let two = high[32 * part + l] >> (2 * quarter) & 3;
        let code = i32::from(four | two << 4) - 32;
        *x = d * f32::from(scales[i / 16] as i8) * code as f32;
    }
}
