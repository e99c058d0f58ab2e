use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var};
use rayon::prelude::*;

use crate::model::ops::contiguous_mut;
use crate::train::OptimizerConfig;

/// Elements a task handles.
const CHUNK: usize = 32 * 1024;

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101): moments in f32, parameter, moments and decay in one pass.
pub struct AdamW {
    config: OptimizerConfig,
    /// First and second moments by parameter.
    pub(in crate::train) moments: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
}

impl AdamW {
    /// Moments of zero.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self { config: config.clone(), moments: BTreeMap::new() }
    }

    /// Updates a parameter. `step` counts from 1; `scale` multiplies the gradient (clipping).
    ///
    /// # Errors
    /// Where gradient and parameter differ in shape.
    pub fn update(
        &mut self,
        name: &str,
        var: &Var,
        gradient: &Tensor,
        step: u64,
        rate: f64,
        scale: f64,
    ) -> Result<()> {
        let len = var.elem_count();
        let (m, v) = self.moments.entry(name.to_owned()).or_insert_with(|| (vec![0.0; len], vec![0.0; len]));
        let c = &self.config;
        let decay = if var.rank() >= 2 { c.weight_decay } else { 0.0 };
        let update = Update {
            moments: Mutex::new((m, v)),
            beta1: c.beta1 as f32,
            beta2: c.beta2 as f32,
            // Both bias corrections, folded into the step size and the epsilon.
            rate: (rate * (1.0 - c.beta2.powf(step as f64)).sqrt() / (1.0 - c.beta1.powf(step as f64)))
                as f32,
            epsilon: (c.epsilon * (1.0 - c.beta2.powf(step as f64)).sqrt()) as f32,
            keep: (1.0 - rate * decay) as f32,
            scale: scale as f32,
        };
        var.as_tensor().inplace_op2(&gradient.contiguous()?, &update)
    }
}

struct Update<'a> {
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
    beta1: f32,
    beta2: f32,
    rate: f32,
    epsilon: f32,
    keep: f32,
    scale: f32,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let p = contiguous_mut(s1, l1)?;
        let Some((from, to)) = l2.contiguous_offsets() else { candle_core::bail!("a gradient in pieces") };
        let g = &s2.as_slice::<f32>()?[from..to];
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (m, v) = &mut *moments;
        if g.len() != p.len() || m.len() != p.len() || v.len() != p.len() {
            candle_core::bail!("parameter, gradient and moments differ in size");
        }
        p.par_chunks_mut(CHUNK)
            .zip(g.par_chunks(CHUNK))
            .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
            .for_each(|((p, g), (m, v))| {
                for i in 0..p.len() {
                    let g = g[i] * self.scale;
                    m[i] = self.beta1 * m[i] + (1.0 - self.beta1) * g;
                    v[i] = self.beta2 * v[i] + (1.0 - self.beta2) * g * g;
                    p[i] = p[i] * self.keep - self.rate * m[i] / (v[i].sqrt() + self.epsilon);
                }
            });
        Ok(())
    }
}
