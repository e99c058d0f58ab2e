use half::{bf16, f16};

use super::Encoding;

impl Encoding {
    /// Stores numbers in this encoding, each block by itself: what `--dtype` makes of a weight.
    ///
    /// # Errors
    /// For encodings that are only read (Q4_K and Q6_K), and if the numbers are no whole blocks.
    pub fn encode(self, numbers: &[f32], bytes: &mut Vec<u8>) -> Result<(), String> {
        if !numbers.len().is_multiple_of(self.block()) {
            return Err(format!("{}: {} numbers are no whole blocks", self.name(), numbers.len()));
        }
        for block in numbers.chunks_exact(self.block()) {
            match self {
                Self::F32 => bytes.extend(block[0].to_le_bytes()),
                Self::F16 => bytes.extend(f16::from_f32(block[0]).to_le_bytes()),
                Self::Bf16 => bytes.extend(bf16::from_f32(block[0]).to_le_bytes()),
                Self::Q8_0 => q8_0(block, bytes),
                Self::Q4_0 => q4_0(block, bytes),
                Self::Q4_1 => q4_1(block, bytes),
                Self::Q4K | Self::Q6K => {
                    return Err(format!("{} is read, but not made: choose q8_0, q4_0 or q4_1", self.name()));
                }
            }
        }
        Ok(())
    }
}

/// `1 / d`, or zero where all codes are to be zero.
fn inverse(d: f32) -> f32 {
    if d.abs() > f32::MIN_POSITIVE { 1.0 / d } else { 0.0 }
}

/// The greatest magnitude becomes 127.
fn q8_0(block: &[f32], bytes: &mut Vec<u8>) {
    let most = block.iter().fold(0f32, |most, x| most.max(x.abs()));
    let d = most / 127.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    bytes.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
}

/// Two codes a byte: of the first half of the block and of the second.
fn pack(block: &[f32], bytes: &mut Vec<u8>, code: impl Fn(f32) -> u8) {
    let (low, high) = block.split_at(block.len() / 2);
    bytes.extend(low.iter().zip(high).map(|(&low, &high)| code(low) | code(high) << 4));
}

/// The number of the greatest magnitude becomes -8, so all sixteen codes are in use.
fn q4_0(block: &[f32], bytes: &mut Vec<u8>) {
    let most = block.iter().fold(0f32, |most, &x| if x.abs() > most.abs() { x } else { most });
    let d = most / -8.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    pack(block, bytes, |x| (x * inverse + 8.0).round().clamp(0.0, 15.0) as u8);
}

/// From the least number to the greatest in 15 steps.
fn q4_1(block: &[f32], bytes: &mut Vec<u8>) {
    let (least, most) = block
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), &x| (least.min(x), most.max(x)));
    let d = (most - least) / 15.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    bytes.extend(f16::from_f32(least).to_le_bytes());
    pack(block, bytes, |x| ((x - least) * inverse).round().clamp(0.0, 15.0) as u8);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn there_and_back(encoding: Encoding, numbers: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        encoding.encode(numbers, &mut bytes).unwrap();
        let mut back = vec![0.0; numbers.len()];
        encoding.decode(&bytes, &mut back);
        back
    }

    proptest! {
        #[test]
        fn what_comes_back_is_within_half_a_step(numbers in prop::collection::vec(-2f32..3.0, 64..=64)) {
            for block in numbers.chunks_exact(32) {
                let most = block.iter().fold(0f32, |most, x| most.max(x.abs()));
                let least = block.iter().fold(3f32, |least, &x| least.min(x));
                let greatest = block.iter().fold(-2f32, |greatest, &x| greatest.max(x));
                // Half a step, and what rounding the scale to f16 moves the farthest code by. Of q4_0's sixteen
                // codes one end is a step nearer.
                for (encoding, bound) in [
                    (Encoding::F32, 0.0),
                    (Encoding::F16, most / 2048.0),
                    (Encoding::Bf16, most / 256.0),
                    (Encoding::Q8_0, most / 127.0 * 0.5 + most / 2000.0),
                    (Encoding::Q4_0, most / 8.0 + most / 2000.0),
                    (Encoding::Q4_1, (greatest - least) / 15.0 * 0.5 + most / 500.0),
                ] {
                    for (x, y) in block.iter().zip(there_and_back(encoding, block)) {
                        prop_assert!((x - y).abs() <= bound, "{}: {x} became {y}", encoding.name());
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_of_one_number_and_of_zeros_come_back() {
        for encoding in [Encoding::Q8_0, Encoding::Q4_0, Encoding::Q4_1] {
            assert_eq!(there_and_back(encoding, &[0.0; 32]), [0.0; 32]);
        }
        for encoding in [Encoding::Q4_0, Encoding::Q4_1] {
            assert_eq!(there_and_back(encoding, &[-1.0; 32]), [-1.0; 32], "{}", encoding.name());
        }
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        assert!(Encoding::Q4K.encode(&[0.0; 256], &mut Vec::new()).unwrap_err().contains("q4_k"));
        assert!(Encoding::Q8_0.encode(&[0.0; 31], &mut Vec::new()).is_err());
    }
}
