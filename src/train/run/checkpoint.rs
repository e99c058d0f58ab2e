use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::new_file;
use crate::train::{AdamW, Parameters, TrainError};

/// Where a run stands, besides weights and moments. The data's position and the learning rate follow from the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::train) struct State {
    /// Updates done.
    pub(in crate::train) step: u64,
    /// The lowest validation loss so far, in nats a token, and its step.
    pub(in crate::train) best: Option<(f64, u64)>,
    /// The configuration, as TOML: a checkpoint continues its own run only.
    pub(in crate::train) config: String,
}

/// Writes parameters, moments and state into one safetensors file, beside and renamed: a kill leaves the old one.
pub(super) fn save(
    path: &Path,
    parameters: &Parameters,
    optimizer: Option<&AdamW>,
    state: &State,
) -> Result<(), TrainError> {
    let broken = |why: String| TrainError::Checkpoint { path: path.to_owned(), why };
    let mut data: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for (name, var) in parameters.iter() {
        data.insert(format!("p/{name}"), (var.dims().to_vec(), var.flatten_all()?.to_vec1()?));
    }
    for (name, (m, v)) in optimizer.into_iter().flat_map(|optimizer| &optimizer.moments) {
        data.insert(format!("m/{name}"), (vec![m.len()], m.clone()));
        data.insert(format!("v/{name}"), (vec![v.len()], v.clone()));
    }
    let views = data
        .iter()
        .map(|(name, (shape, values))| {
            Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values))?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| broken(e.to_string()))?;
    let state = serde_json::to_string(state).map_err(|e| broken(e.to_string()))?;
    let metadata = HashMap::from([("state".to_owned(), state)]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| broken(e.to_string()))?;
    new_file::write(path, &bytes).map_err(TrainError::io(path))
}

/// Reads a checkpoint into parameters and optimizer, which have the right shapes already.
pub(super) fn load(
    path: &Path,
    parameters: &Parameters,
    optimizer: Option<&mut AdamW>,
    config: &str,
) -> Result<State, TrainError> {
    let bytes = std::fs::read(path).map_err(TrainError::io(path))?;
    let broken = |why: String| TrainError::Checkpoint { path: path.to_owned(), why };
    let damaged = |e: safetensors::SafeTensorError| broken(format!("damaged: {e}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    let state =
        header.metadata().as_ref().and_then(|m| m.get("state")).map(String::as_str).unwrap_or_default();
    let state: State =
        serde_json::from_str(state).map_err(|e| broken(format!("no state of a run in it: {e}")))?;
    if state.config != config {
        return Err(broken(
            "it belongs to another configuration: --resume continues a run unchanged; for other settings start a new \
             --output"
                .into(),
        ));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(damaged)?;
    let read = |name: String, len: usize| -> Result<Vec<f32>, TrainError> {
        let view = tensors.tensor(&name).map_err(damaged)?;
        if view.dtype() != Dtype::F32 || view.data().len() != len * 4 {
            return Err(broken(format!("{name} has another size than the configuration's")));
        }
        Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    for (name, var) in parameters.iter() {
        let values = read(format!("p/{name}"), var.elem_count())?;
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
    }
    if let Some(optimizer) = optimizer {
        for (name, var) in parameters.trained() {
            let len = var.elem_count();
            // Before the first update there are none.
            let moments = match state.step {
                0 => (vec![0.0; len], vec![0.0; len]),
                _ => (read(format!("m/{name}"), len)?, read(format!("v/{name}"), len)?),
            };
            optimizer.moments.insert(name.to_owned(), moments);
        }
    }
    Ok(state)
}
