//! How a row's numbers lie in the file.

use std::fmt;
use std::str::FromStr;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

use super::{TableError, int4};

/// The type of a table's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowType {
    /// 32-bit floats: exactly what the f-gram model gave.
    F32,
    /// IEEE half precision, rounded to nearest.
    F16,
    /// The upper half of a 32-bit float, rounded to nearest.
    Bf16,
    /// Integers from -127 to 127 and a scale a row, its largest magnitude / 127: off by half a scale at most.
    Int8,
    /// Four bits a number, a sub-scale of four bits for every 16, and a scale a row; see [`LEVELS`](super::LEVELS).
    Int4,
}

/// A number that cannot be stored, and its column.
#[derive(Debug, PartialEq)]
pub(super) enum Misfit {
    NotFinite(usize),
    Overflow(usize),
}

impl Misfit {
    /// The error for the row of this rank.
    pub(super) fn at(self, rank: usize, row: &[f32], row_type: RowType) -> TableError {
        match self {
            Self::NotFinite(column) => TableError::NotFinite { rank, column, value: row[column] },
            Self::Overflow(column) => TableError::Overflow { rank, column, value: row[column], row_type },
        }
    }
}

impl RowType {
    /// All of them, from the most exact to the smallest.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Int4];

    /// The bytes of a row of `dim` numbers, not counting its scale, which lies with the index.
    pub fn bytes_per_row(self, dim: usize) -> usize {
        match self {
            Self::F32 => dim * 4,
            Self::F16 | Self::Bf16 => dim * 2,
            Self::Int8 => dim,
            Self::Int4 => int4::bytes(dim),
        }
    }

    /// Bytes of an element of the `rows` tensor.
    pub(super) fn element(self) -> usize {
        self.dtype().bitsize() / 8
    }

    /// Whether each row has a scale, which lies with the index.
    pub(crate) fn has_scales(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
            Self::Int8 => Dtype::I8,
            Self::Int4 => Dtype::U8,
        }
    }

    pub(super) fn of_dtype(dtype: Dtype) -> Option<Self> {
        Self::ALL.into_iter().find(|row_type| row_type.dtype() == dtype)
    }

    /// The name of the way rows are quantised, as the metadata has it.
    pub(super) fn quantization(self) -> &'static str {
        match self {
            Self::Int8 => "int8-row-absmax",
            Self::Int4 => "int4-block-levels",
            Self::F32 | Self::F16 | Self::Bf16 => "none",
        }
    }

    /// Writes a row to `out`, of [`RowType::bytes_per_row`] bytes, as it lies in the file, and gives its scale (1 where
    /// the type has none).
    pub(super) fn encode(self, row: &[f32], out: &mut [u8]) -> Result<f32, Misfit> {
        if let Some(column) = row.iter().position(|x| !x.is_finite()) {
            return Err(Misfit::NotFinite(column));
        }
        match self {
            Self::F32 => out.copy_from_slice(bytemuck::cast_slice(row)),
            Self::F16 => {
                let mut halves = vec![f16::ZERO; row.len()];
                halves.convert_from_f32_slice(row);
                overflow(halves.iter().position(|x| x.is_infinite()))?;
                out.copy_from_slice(bytemuck::cast_slice(&halves));
            }
            Self::Bf16 => {
                let mut halves = vec![bf16::ZERO; row.len()];
                halves.convert_from_f32_slice(row);
                overflow(halves.iter().position(|x| x.is_infinite()))?;
                out.copy_from_slice(bytemuck::cast_slice(&halves));
            }
            Self::Int8 => {
                let scale = absmax_scale(row)?;
                // The cast saturates, so a quotient of 127.5 after rounding would still be 127.
                out.iter_mut().zip(row).for_each(|(q, x)| *q = (x / scale).round_ties_even() as i8 as u8);
                return Ok(scale);
            }
            Self::Int4 => return Ok(int4::encode(row, absmax_scale(row)?, out)),
        }
        Ok(1.0)
    }

    /// The numbers of a row that [`RowType::encode`] wrote. `bytes` must be aligned to the type and as long as `out`.
    pub(super) fn decode(self, bytes: &[u8], scale: f32, out: &mut [f32]) {
        match self {
            Self::F32 => out.copy_from_slice(bytemuck::cast_slice(bytes)),
            // half chooses the conversion instructions at run time, where the processor has them.
            Self::F16 => bytemuck::cast_slice::<u8, f16>(bytes).convert_to_f32_slice(out),
            Self::Bf16 => {
                for (x, &bits) in out.iter_mut().zip(bytemuck::cast_slice::<u8, u16>(bytes)) {
                    *x = f32::from_bits(u32::from(bits) << 16);
                }
            }
            Self::Int8 => {
                for (x, &q) in out.iter_mut().zip(bytemuck::cast_slice::<u8, i8>(bytes)) {
                    *x = scale * f32::from(q);
                }
            }
            Self::Int4 => int4::decode(bytes, scale, out),
        }
    }
}

fn overflow(column: Option<usize>) -> Result<(), Misfit> {
    column.map_or(Ok(()), |column| Err(Misfit::Overflow(column)))
}

/// The scale at which 127 is the largest magnitude.
fn absmax_scale(row: &[f32]) -> Result<f32, Misfit> {
    let absmax = row.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    // Never zero or subnormal: then a row of zeros needs no rule of its own, and dividing by the scale is exact enough.
    let scale = (absmax / 127.0).max(f32::MIN_POSITIVE);
    if !(scale * 127.0).is_finite() {
        overflow(row.iter().position(|x| x.abs() == absmax))?;
    }
    Ok(scale)
}

impl fmt::Display for RowType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

impl FromStr for RowType {
    type Err = TableError;

    fn from_str(word: &str) -> Result<Self, TableError> {
        Self::ALL
            .into_iter()
            .find(|row_type| row_type.to_string() == word)
            .ok_or_else(|| TableError::Word { word: word.to_owned(), known: "f32, f16, bf16, int8, int4" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(row_type: RowType, row: &[f32]) -> Result<(f32, Vec<f32>), Misfit> {
        let len = row_type.bytes_per_row(row.len());
        // A Vec<u8> need not be aligned as a mapped row is.
        let mut aligned = vec![0_u32; len.div_ceil(4)];
        let bytes: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut aligned)[..len];
        let scale = row_type.encode(row, bytes)?;
        let mut back = vec![f32::NAN; row.len()];
        row_type.decode(bytes, scale, &mut back);
        Ok((scale, back))
    }

    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![-6e4_f32..6e4, -1.0_f32..1.0, -1e-6_f32..1e-6, Just(0.0), Just(f32::MIN_POSITIVE / 3.0)]
    }

    proptest! {
        #[test]
        fn rows_come_back(row in prop::collection::vec(number(), 1..67)) {
            prop_assert_eq!(&round_trip(RowType::F32, &row).unwrap().1, &row);
            let rounded: Vec<f32> = row.iter().map(|&x| f16::from_f32_const(x).to_f32_const()).collect();
            prop_assert_eq!(round_trip(RowType::F16, &row).unwrap().1, rounded);
            let rounded: Vec<f32> = row.iter().map(|&x| bf16::from_f32_const(x).to_f32_const()).collect();
            prop_assert_eq!(round_trip(RowType::Bf16, &row).unwrap().1, rounded);
            let (scale, back) = round_trip(RowType::Int8, &row).unwrap();
            let largest = row.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            prop_assert!(f64::from(scale) <= (f64::from(largest) / 127.0 * 1.000_001).max(f64::from(f32::MIN_POSITIVE)));
            for (x, y) in row.iter().zip(&back) {
                prop_assert!(f64::from((x - y).abs()) <= f64::from(scale) * 0.500_05, "{x} became {y}, scale {scale}");
            }
        }
    }

    #[test]
    fn what_cannot_be_stored_is_refused_by_column() {
        for row_type in RowType::ALL {
            assert_eq!(round_trip(row_type, &[0.0, f32::NAN]), Err(Misfit::NotFinite(1)));
            assert_eq!(round_trip(row_type, &[f32::NEG_INFINITY, 1.0]), Err(Misfit::NotFinite(0)));
        }
        assert_eq!(round_trip(RowType::F16, &[65504.0, 1.0, -65520.0]), Err(Misfit::Overflow(2)));
        assert!(round_trip(RowType::F16, &[65519.0]).is_ok());
        assert_eq!(round_trip(RowType::Bf16, &[f32::MAX]), Err(Misfit::Overflow(0)));
        assert_eq!(round_trip(RowType::Int8, &[1.0, f32::MIN]), Err(Misfit::Overflow(1)));
        assert_eq!(round_trip(RowType::Int8, &[0.0; 5]).unwrap().1, [0.0; 5]);
    }

    #[test]
    fn names_are_words() {
        for word in ["f32", "f16", "bf16", "int8", "int4"] {
            assert_eq!(word.parse::<RowType>().unwrap().to_string(), word);
        }
        assert!("i8".parse::<RowType>().unwrap_err().to_string().contains("int8"));
    }
}
