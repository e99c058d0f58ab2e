use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::Tensor;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::new_file::NewFile;
use crate::train::update::Moments;
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

/// All that a run is at one moment, copied, so that it can be written while the run goes on.
///
/// The file is a safetensors file: `p/NAME` are parameters, `m/NAME` and `v/NAME` their moments, all f32; its metadata
/// holds the state, as JSON, and the CRC-32 of state, names and tensors.
pub(super) struct Snapshot {
    pub(super) state: State,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Snapshot {
    /// Copies parameters and, where an optimizer is given, their moments.
    pub(super) fn take(
        parameters: &Parameters,
        optimizer: Option<&AdamW>,
        state: &State,
    ) -> Result<Self, TrainError> {
        let mut tensors = BTreeMap::new();
        for (name, var) in parameters.iter() {
            tensors.insert(format!("p/{name}"), (var.dims().to_vec(), var.flatten_all()?.to_vec1()?));
        }
        for (name, moments) in optimizer.into_iter().flat_map(|optimizer| &optimizer.moments) {
            let (m, v) = moments.values()?;
            tensors.insert(format!("m/{name}"), (vec![m.len()], m));
            tensors.insert(format!("v/{name}"), (vec![v.len()], v));
        }
        Ok(Self { state: state.clone(), tensors })
    }

    /// Writes it beside `path` and renames it there, so a kill leaves the old file; without `moments`, what is needed to
    /// use the weights but not to train on.
    ///
    /// The header is our own: the safetensors crate would first put a second copy of all tensors together in memory.
    pub(super) fn write(&self, path: &Path, moments: bool) -> Result<(), TrainError> {
        let broken =
            |e: serde_json::Error| TrainError::Checkpoint { path: path.to_owned(), why: e.to_string() };
        let tensors = || self.tensors.iter().filter(|(name, _)| moments || name.starts_with("p/"));
        let state = serde_json::to_string(&self.state).map_err(broken)?;
        let mut header = Map::new();
        let (mut crc, mut end) = (Checksum::new(&state), 0);
        for (name, (shape, values)) in tensors() {
            let data: &[u8] = bytemuck::cast_slice(values);
            crc.add(name, data);
            let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [end, end + data.len()] });
            header.insert(name.clone(), entry);
            end += data.len();
        }
        header.insert("__metadata__".to_owned(), json!({ "state": state, "crc32": crc.finish() }));
        let mut header = serde_json::to_vec(&header).map_err(broken)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let write = || {
            let mut file = BufWriter::new(NewFile::create(path)?);
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            for (_, (_, values)) in tensors() {
                file.write_all(bytemuck::cast_slice(values))?;
            }
            file.into_inner().map_err(std::io::IntoInnerError::into_error)?.commit()
        };
        write().map_err(TrainError::io(path))
    }

    /// Reads a file that [`Snapshot::write`] has written.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] where it is damaged, [`TrainError::Io`] where it cannot be read.
    pub(super) fn read(path: &Path) -> Result<Self, TrainError> {
        let bytes = std::fs::read(path).map_err(TrainError::io(path))?;
        let damaged =
            |why: String| TrainError::Checkpoint { path: path.to_owned(), why: format!("damaged: {why}") };
        let unreadable = |e: safetensors::SafeTensorError| damaged(e.to_string());
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(unreadable)?;
        let metadata =
            |key: &str| header.metadata().as_ref().and_then(|map| map.get(key)).map(String::as_str);
        let state = metadata("state").unwrap_or_default();
        let views = SafeTensors::deserialize(&bytes).map_err(unreadable)?;
        let views: BTreeMap<_, _> = views.tensors().into_iter().collect();
        let mut crc = Checksum::new(state);
        views.iter().for_each(|(name, view)| crc.add(name, view.data()));
        if metadata("crc32") != Some(crc.finish().as_str()) {
            return Err(damaged("its checksum is not that of its contents".to_owned()));
        }
        let state =
            serde_json::from_str(state).map_err(|e| damaged(format!("no state of a run in it: {e}")))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in views {
            if view.dtype() != Dtype::F32 {
                return Err(damaged(format!("{name} is not F32")));
            }
            let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            tensors.insert(name, (view.shape().to_vec(), values.collect()));
        }
        Ok(Self { state, tensors })
    }

    /// Sets parameters and moments, which have the right shapes already. `path` is what errors name.
    ///
    /// # Errors
    /// Where a tensor is missing or has another size.
    pub(super) fn restore(
        mut self,
        path: &Path,
        parameters: &Parameters,
        optimizer: Option<&mut AdamW>,
    ) -> Result<(), TrainError> {
        let mut take = |name: String, len: usize| match self.tensors.remove(&name) {
            Some((_, values)) if values.len() == len => Ok(values),
            _ => Err(TrainError::Checkpoint {
                path: path.to_owned(),
                why: format!("{name} is missing or has another size than the configuration's"),
            }),
        };
        for (name, var) in parameters.iter() {
            let values = take(format!("p/{name}"), var.elem_count())?;
            var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
        }
        // Before the first update there are none.
        if let Some(optimizer) = optimizer.filter(|_| self.state.step > 0) {
            for (name, var) in parameters.trained() {
                let len = var.elem_count();
                let (m, v) = (take(format!("m/{name}"), len)?, take(format!("v/{name}"), len)?);
                optimizer.moments.insert(name.to_owned(), Moments::new(m, v, var.device())?);
            }
        }
        Ok(())
    }
}

/// The CRC-32 of a state and of tensors with their names, in the order of the names.
struct Checksum(crc32fast::Hasher);

impl Checksum {
    fn new(state: &str) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(state.as_bytes());
        Self(hasher)
    }

    fn add(&mut self, name: &str, data: &[u8]) {
        self.0.update(name.as_bytes());
        self.0.update(data);
    }

    fn finish(self) -> String {
        format!("{:08x}", self.0.finalize())
    }
}
