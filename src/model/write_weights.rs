use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView};

use super::ModelError;
use crate::new_file;

/// Writes tensors, as `dtype` (F32, F16 or BF16), beside `path` and renames them there.
///
/// # Errors
/// Where the disk refuses; then `path` is as it was.
pub fn write_weights(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    dtype: DType,
) -> Result<(), ModelError> {
    let kind = match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let mut bytes = Vec::new();
        tensor.to_dtype(dtype)?.contiguous()?.write_bytes(&mut bytes)?;
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
