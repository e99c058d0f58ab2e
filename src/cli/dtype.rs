//! The flag that says how a model's weights are held.

use clap::ValueEnum;

use crate::kernels::Encoding;

/// How weights are held in memory. Each product of a token reads all of them, so fewer bytes are also more speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Dtype {
    /// As the file has them
    Auto,
    /// 4 bytes a weight: exact for every file
    F32,
    /// 2 bytes a weight, the range of f32 with 3 digits: exact for models published in bf16
    Bf16,
    /// 2 bytes a weight, 4 digits up to 65,504: exact for models published in f16
    F16,
    /// 1.06 bytes a weight: 8 bits and a scale for every 32; hardly ever to be told from the original
    #[value(name = "q8_0")]
    Q8_0,
    /// 0.56 bytes a weight: 4 bits and a scale for every 32; small models lose some quality
    #[value(name = "q4_0")]
    Q4_0,
    /// 0.63 bytes a weight: 4 bits, a scale and a least value for every 32; a little better than q4_0
    #[value(name = "q4_1")]
    Q4_1,
}

/// The flag, for every command that loads a model.
#[derive(Debug, clap::Args)]
pub(super) struct DtypeFlag {
    /// How weights are held in memory; other than as stored they are converted at the start. A matrix whose rows are no
    /// multiple of 32 numbers stays as stored where a type has blocks of 32
    #[arg(long, value_enum, default_value_t = Dtype::Auto, value_name = "TYPE", env = "SCONE_DTYPE")]
    dtype: Dtype,
}

impl DtypeFlag {
    /// What to convert to; None to keep what is stored.
    pub(super) fn encoding(&self) -> Option<Encoding> {
        match self.dtype {
            Dtype::Auto => None,
            Dtype::F32 => Some(Encoding::F32),
            Dtype::Bf16 => Some(Encoding::Bf16),
            Dtype::F16 => Some(Encoding::F16),
            Dtype::Q8_0 => Some(Encoding::Q8_0),
            Dtype::Q4_0 => Some(Encoding::Q4_0),
            Dtype::Q4_1 => Some(Encoding::Q4_1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_its_encodings() {
        for &dtype in Dtype::value_variants() {
            let name = dtype.to_possible_value().map(|value| value.get_name().to_owned());
            let encoding = DtypeFlag { dtype }.encoding();
            assert_eq!(name.as_deref(), Some(encoding.map_or("auto", Encoding::name)));
        }
    }
}
