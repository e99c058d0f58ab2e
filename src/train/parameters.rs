use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};

use crate::model::ModelError;

/// The trained parameters by name: those of the main model under `main/`, those of the f-gram model under `fgram/`.
pub struct Parameters {
    vars: BTreeMap<String, Var>,
    /// The part that is not trained, with its `/`.
    frozen: Option<String>,
    seed: u64,
    std: f64,
    device: Device,
}

impl Parameters {
    /// None yet; `std` is the standard deviation of initial matrices, `device` where they will be.
    pub fn new(seed: u64, std: f64, device: &Device) -> Self {
        Self { vars: BTreeMap::new(), frozen: None, seed, std, device: device.clone() }
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Holds a part fixed: parameters of it that are made from now on are outside of autograd, and not
    /// [trained](Parameters::trained).
    pub fn freeze(&mut self, part: &str) {
        self.frozen = Some(format!("{part}/"));
    }

    fn is_frozen(&self, name: &str) -> bool {
        self.frozen.as_ref().is_some_and(|part| name.starts_with(part))
    }

    /// Makes the parameter `part/name` at its initial value: norms 1, matrices
    /// normal; those that write to the residual stream narrower by the root of their number (Radford et al., 2019, section 2.3).
    ///
    /// The value depends on seed and name alone, so a SCONE model and its baseline start from the same main model.
    ///
    /// # Errors
    /// Where the device has not enough memory.
    pub fn create(
        &mut self,
        part: &str,
        name: &str,
        shape: &[usize],
        layers: usize,
    ) -> Result<Tensor, ModelError> {
        let name = format!("{part}/{name}");
        let len: usize = shape.iter().product();
        let data = if name.ends_with("norm.weight") {
            vec![1.0; len]
        } else {
            let residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
            let std = if residual { self.std / (2.0 * layers as f64).sqrt() } else { self.std };
            normal(self.seed, &name, std, len)
        };
        self.insert(name, data, shape)
    }

    /// Makes the parameter `part/name` of zeros.
    ///
    /// # Errors
    /// As [`Parameters::create`].
    pub fn create_zeros(&mut self, part: &str, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.insert(format!("{part}/{name}"), vec![0.0; shape.iter().product()], shape)
    }

    fn insert(&mut self, name: String, data: Vec<f32>, shape: &[usize]) -> Result<Tensor, ModelError> {
        let var = Var::from_vec(data, shape, &self.device)?;
        let tensor = if self.is_frozen(&name) { var.as_detached_tensor() } else { var.as_tensor().clone() };
        self.vars.insert(name, var);
        Ok(tensor)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// Those that are trained, in the order of their names.
    pub fn trained(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.iter().filter(|(name, _)| !self.is_frozen(name))
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.vars.get(name)
    }

    /// How many numbers there are in the parameters of a part.
    pub fn count(&self, part: &str) -> usize {
        let part = format!("{part}/");
        self.iter().filter(|(name, _)| name.starts_with(&part)).map(|(_, var)| var.elem_count()).sum()
    }

    /// The values of a part's parameters, on the CPU, by their names in its weight file.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn values(&self, part: &str) -> candle_core::Result<BTreeMap<String, Tensor>> {
        let part = format!("{part}/");
        let own = self.iter().filter_map(|(name, var)| Some((name.strip_prefix(&part)?.to_owned(), var)));
        own.map(|(name, var)| Ok((name, var.as_detached_tensor().to_device(&Device::Cpu)?))).collect()
    }
}

/// Normal numbers (Box and Muller) from a stream of their own.
fn normal(seed: u64, name: &str, std: f64, len: usize) -> Vec<f32> {
    let mut key = [0u8; 32];
    key.copy_from_slice(&Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize());
    let mut rng = rand_chacha::ChaCha8Rng::from_seed(key);
    let mut next = || {
        let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
        (std * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    };
    (0..len).map(|_| next()).collect()
}
