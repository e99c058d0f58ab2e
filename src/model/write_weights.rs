use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use super::ModelError;
use crate::kernels::Encoding;
use crate::new_file;

/// How the weights of a model that is written are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// IEEE single precision.
    F32,
}

impl WeightType {
    /// Candle's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::F32 => DType::F32,
        }
    }

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        self.dtype().size_in_bytes()
    }

    /// Its name in a `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
        }
    }

    /// That of weights stored as `encoding`, which is none for blocks.
    pub fn of(encoding: Encoding) -> Option<Self> {
        match encoding {
            Encoding::F16 => Some(Self::F16),
            Encoding::Bf16 => Some(Self::Bf16),
            Encoding::F32 => Some(Self::F32),
            _ => None,
        }
    }
}

impl std::fmt::Display for WeightType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

/// Writes tensors, rounded to `weights`, beside `path` and renames them there.
///
/// # Errors
/// Where the disk refuses; then `path` is as it was.
pub fn write_weights(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    weights: WeightType,
) -> Result<(), ModelError> {
    let kind = match weights {
        WeightType::F16 => Dtype::F16,
        WeightType::Bf16 => Dtype::BF16,
        WeightType::F32 => Dtype::F32,
    };
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let mut bytes = Vec::new();
        tensor.to_dtype(weights.dtype())?.contiguous()?.write_bytes(&mut bytes)?;
        data.push((name.as_str(), tensor.dims().to_vec(), bytes));
    }
    let views = data
        .iter()
        .map(|(name, shape, bytes)| TensorView::new(kind, shape.clone(), bytes).map(|view| (*name, view)))
        .collect::<Result<Vec<_>, _>>();
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let bytes = views
        .and_then(|views| safetensors::serialize(views, metadata))
        .map_err(|e| ModelError::weights(path, e.to_string()))?;
    new_file::write(path, &bytes).map_err(ModelError::io(path))
}
