use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

use super::ModelError;

/// A weight file, read whole.
pub struct Weights {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Weights {
    /// Reads `path` and checks its header.
    ///
    /// # Errors
    /// Where it cannot be read or is not a valid safetensors file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let bytes = std::fs::read(path).map_err(ModelError::io(path))?;
        let weights = Self { path: path.to_owned(), bytes };
        weights.tensors()?;
        Ok(weights)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, ModelError> {
        SafeTensors::deserialize(&self.bytes)
            .map_err(|e| ModelError::weights(&self.path, format!("not a valid safetensors file: {e}")))
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors().is_ok_and(|tensors| tensors.tensor(name).is_ok())
    }

    /// A tensor of the given shape, as f32.
    ///
    /// # Errors
    /// Where it is not there, or has another shape or an unsupported type; the message names it.
    pub fn get(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor, ModelError> {
        let tensors = self.tensors()?;
        let view = tensors
            .tensor(name)
            .map_err(|_| ModelError::weights(&self.path, format!("the tensor \"{name}\" is missing")))?;
        if view.shape() != shape {
            let why = format!("\"{name}\" has shape {:?}, config.json asks for {shape:?}", view.shape());
            return Err(ModelError::weights(&self.path, why));
        }
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                let why = format!("\"{name}\" is {other:?}; F32, F16 and BF16 are supported");
                return Err(ModelError::weights(&self.path, why));
            }
        };
        Ok(Tensor::from_raw_buffer(view.data(), dtype, shape, device)?.to_dtype(DType::F32)?)
    }

    /// SHA-256 of one tensor as it is stored: type, shape and bytes.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn tensor_sha256(&self, name: &str) -> Result<String, ModelError> {
        let tensors = self.tensors()?;
        let view = tensors
            .tensor(name)
            .map_err(|_| ModelError::weights(&self.path, format!("the tensor \"{name}\" is missing")))?;
        let mut hash = Sha256::new();
        hash_view(&mut hash, &view);
        Ok(hex(hash))
    }

    /// SHA-256 of `preamble` and of all tensors by name, each as it is stored.
    ///
    /// # Errors
    /// Never for a file that opened.
    pub fn sha256(&self, preamble: &str) -> Result<String, ModelError> {
        let mut hash = Sha256::new();
        hash.update(preamble);
        let tensors: BTreeMap<_, _> = self.tensors()?.tensors().into_iter().collect();
        for (name, view) in &tensors {
            hash.update(name);
            hash.update([0]);
            hash_view(&mut hash, view);
        }
        Ok(hex(hash))
    }
}

fn hash_view(hash: &mut Sha256, view: &TensorView<'_>) {
    hash.update(format!("{:?} {:?}\0", view.dtype(), view.shape()));
    hash.update(view.data());
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

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
    write_beside(path, &bytes)
}

/// Writes a file beside its final name, forces it to disk, and renames it.
pub(crate) fn write_beside(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".partial-").tempfile_in(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        std::fs::File::open(directory)?.sync_all()
    };
    write().map_err(ModelError::io(path))
}
