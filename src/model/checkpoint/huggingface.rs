//! Weights as Hugging Face lays them out: `model.safetensors`, or `model.safetensors.index.json` and the shards that it
//! names.

use std::collections::BTreeMap;
use std::path::Path;

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;

use super::{Entry, File, Kind};
use crate::kernels::Encoding;
use crate::model::ModelError;

/// Bytes before a safetensors file's header, which say its length.
const LENGTH: usize = 8;

/// The part of the index that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The tensors of a single file, which is the `number`-th.
pub(super) fn tensors(
    path: &Path,
    bytes: &Mmap,
    number: usize,
) -> Result<BTreeMap<String, Entry>, ModelError> {
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| {
        let why = format!("not a valid safetensors file, or cut off: {e}");
        ModelError::weights(path, why)
    })?;
    let data = LENGTH + header;
    let entry = |info: &safetensors::tensor::TensorInfo| {
        let (start, end) = info.data_offsets;
        let kind = match info.dtype {
            Dtype::F32 => Kind::Numbers(Encoding::F32),
            Dtype::F16 => Kind::Numbers(Encoding::F16),
            Dtype::BF16 => Kind::Numbers(Encoding::Bf16),
            other => Kind::Other(format!("{other:?}")),
        };
        Entry { file: number, kind, shape: info.shape.clone(), bytes: data + start..data + end }
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect())
}

/// The files and tensors of a directory.
pub(super) fn open(directory: &Path) -> Result<(Vec<File>, BTreeMap<String, Entry>), ModelError> {
    let whole = directory.join("model.safetensors");
    if whole.exists() {
        let file = File::open(&whole)?;
        let tensors = tensors(&whole, &file.map, 0)?;
        return Ok((vec![file], tensors));
    }
    let path = directory.join("model.safetensors.index.json");
    if !path.exists() {
        let why = if directory.join("pytorch_model.bin").exists() {
            "the weights are in pytorch_model.bin, which is not supported: save them as safetensors"
        } else {
            "there are no weights here: neither model.safetensors nor model.safetensors.index.json"
        };
        return Err(ModelError::weights(directory, why));
    }
    let text = std::fs::read_to_string(&path).map_err(ModelError::io(&path))?;
    let index: Index = serde_json::from_str(&text).map_err(|e| ModelError::config(&path, e.to_string()))?;
    shards(directory, &path, index)
}

fn shards(
    directory: &Path,
    path: &Path,
    index: Index,
) -> Result<(Vec<File>, BTreeMap<String, Entry>), ModelError> {
    let (mut files, mut all) = (Vec::new(), BTreeMap::new());
    let mut by_shard = BTreeMap::<String, Vec<String>>::new();
    for (tensor, shard) in index.weight_map {
        by_shard.entry(shard).or_default().push(tensor);
    }
    for (shard, names) in by_shard {
        if Path::new(&shard).file_name() != Some(shard.as_ref()) {
            let why = format!("\"weight_map\": {shard:?} is no plain file name");
            return Err(ModelError::config(path, why));
        }
        let place = directory.join(&shard);
        if !place.exists() {
            let why = format!("the shard {shard} that it names is missing: download it too");
            return Err(ModelError::weights(path, why));
        }
        let file = File::open(&place)?;
        let mut there = tensors(&place, &file.map, files.len())?;
        for name in names {
            let Some(entry) = there.remove(&name) else {
                let why =
                    format!("the tensor \"{name}\" is missing, which model.safetensors.index.json puts here");
                return Err(ModelError::weights(&place, why));
            };
            all.insert(name, entry);
        }
        files.push(file);
    }
    Ok((files, all))
}
