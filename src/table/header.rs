//! The header of a safetensors file: <https://github.com/huggingface/safetensors#format>.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

/// The longest header that we read or write, in bytes: opening stays quick whatever the file says.
pub(super) const MAX_HEADER: usize = 1 << 20;

/// A tensor and where it lies, in bytes from the end of the header.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: &'static str,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) range: Range<usize>,
}

/// Appends a tensor after those that are there.
pub(super) fn append(
    tensors: &mut Vec<Tensor>,
    name: &'static str,
    dtype: Dtype,
    shape: &[usize],
) -> Range<usize> {
    let start = tensors.last().map_or(0, |last| last.range.end);
    let range = start..start + shape.iter().product::<usize>() * dtype.bitsize() / 8;
    tensors.push(Tensor { name, dtype, shape: shape.to_vec(), range: range.clone() });
    range
}

/// All bytes before the first tensor, padded with spaces to a multiple of `align`; `None` if that exceeds
/// [`MAX_HEADER`].
pub(super) fn encode(tensors: &[Tensor], metadata: &BTreeMap<&str, String>, align: usize) -> Option<Vec<u8>> {
    let mut json = serde_json::Map::new();
    json.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    for tensor in tensors {
        let place = [tensor.range.start, tensor.range.end];
        let info = serde_json::json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": place });
        json.insert(tensor.name.to_owned(), info);
    }
    let json = serde_json::Value::Object(json).to_string();
    let len = (8 + json.len()).next_multiple_of(align);
    let mut bytes = (len as u64 - 8).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(len, b' ');
    (len <= MAX_HEADER).then_some(bytes)
}

/// A header as it was read.
#[derive(Debug)]
pub(super) struct Header {
    /// Bytes before the first tensor.
    pub(super) len: usize,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

#[derive(Deserialize)]
struct Json {
    #[serde(rename = "__metadata__", default)]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

/// Reads the header of a file's bytes; the error says in words why they are no safetensors file.
pub(super) fn parse(file: &[u8]) -> Result<Header, String> {
    let Some((len, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("it has only {} bytes", file.len()));
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER as u64 - 8 {
        return Err(format!("as a safetensors file it would have a header of {len} bytes"));
    }
    let Some(json) = rest.get(..len as usize) else {
        return Err(format!(
            "it has {} bytes, and as a safetensors file it would have a header of {len}",
            file.len()
        ));
    };
    let json: Json =
        serde_json::from_slice(json).map_err(|e| format!("it has no safetensors header ({e})"))?;
    Ok(Header { len: 8 + len as usize, metadata: json.metadata, tensors: json.tensors })
}
