use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Var, bail};
use rayon::prelude::*;

use super::Moments;
use crate::model::ops::contiguous_mut;
#[cfg(any(feature = "cuda", test))]
use crate::model::ops::gpu::gpu_of;
use crate::train::{Gradient, OptimizerConfig, RowGradient};

/// Elements a task handles.
const CHUNK: usize = 32 * 1024;

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101): moments in f32, parameter, moments and decay in one pass.
pub struct AdamW {
    config: OptimizerConfig,
    /// Moments by parameter.
    pub(in crate::train) moments: BTreeMap<String, Moments>,
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
        gradient: &Gradient,
        step: u64,
        rate: f64,
        scale: f64,
    ) -> Result<()> {
        let len = var.elem_count();
        if !self.moments.contains_key(name) {
            let zero = Moments::new(vec![0.0; len], vec![0.0; len], var.device())?;
            self.moments.insert(name.to_owned(), zero);
        }
        let Some(moments) = self.moments.get_mut(name) else { bail!("{name} has no moments") };
        let c = &self.config;
        let decay = if var.rank() >= 2 { c.weight_decay } else { 0.0 };
        let numbers = Numbers {
            beta1: c.beta1 as f32,
            beta2: c.beta2 as f32,
            // Both bias corrections, folded into the step size and the epsilon.
            rate: (rate * (1.0 - c.beta2.powf(step as f64)).sqrt() / (1.0 - c.beta1.powf(step as f64)))
                as f32,
            epsilon: (c.epsilon * (1.0 - c.beta2.powf(step as f64)).sqrt()) as f32,
            keep: (1.0 - rate * decay) as f32,
            scale: scale as f32,
        };
        match moments {
            Moments::Host(m, v) => {
                let update = Update { moments: Mutex::new((m, v)), numbers };
                match gradient {
                    Gradient::Whole(whole) => var.as_tensor().inplace_op2(&whole.contiguous()?, &update),
                    Gradient::Rows(rows) => var.as_tensor().inplace_op1(&RowUpdate { rows, update }),
                }
            }
            #[cfg(any(feature = "cuda", test))]
            Moments::Gpu([m, v]) => {
                let Numbers { beta1, beta2, rate, epsilon, keep, scale } = numbers;
                let update = crate::gpu::ops::AdamW { beta1, beta2, rate, epsilon, keep, scale };
                let Some(gpu) = gpu_of(var.device())? else { bail!("{name} left the GPU") };
                crate::model::ops::gpu::adamw(&*gpu, var.as_tensor(), &gradient.whole()?, [m, v], update)
            }
        }
    }
}

/// The numbers of an update.
#[derive(Clone, Copy)]
struct Numbers {
    beta1: f32,
    beta2: f32,
    rate: f32,
    epsilon: f32,
    keep: f32,
    scale: f32,
}

impl Numbers {
    /// Moves weights and their moments, given the gradient of the `i`-th.
    #[inline]
    fn apply(&self, p: &mut [f32], g: impl Fn(usize) -> f32, m: &mut [f32], v: &mut [f32]) {
        // Of one length for certain, so that the loop needs no checks.
        let (m, v) = (&mut m[..p.len()], &mut v[..p.len()]);
        for i in 0..p.len() {
            let g = g(i) * self.scale;
            m[i] = self.beta1 * m[i] + (1.0 - self.beta1) * g;
            v[i] = self.beta2 * v[i] + (1.0 - self.beta2) * g * g;
            p[i] = p[i] * self.keep - self.rate * m[i] / (v[i].sqrt() + self.epsilon);
        }
    }
}

struct Update<'a> {
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
    numbers: Numbers,
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
                let g = &g[..p.len()];
                self.numbers.apply(p, |i| g[i], m, v);
            });
        Ok(())
    }
}

/// The same of a table of which few rows have a gradient. The others move too: their moments decay.
struct RowUpdate<'a> {
    rows: &'a RowGradient,
    update: Update<'a>,
}

impl InplaceOp1 for RowUpdate<'_> {
    fn name(&self) -> &'static str {
        "adamw-rows"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (p, numbers) = (contiguous_mut(storage, layout)?, self.update.numbers);
        let mut moments = self.update.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (m, v) = &mut *moments;
        if self.rows.table_len() != p.len() || m.len() != p.len() || v.len() != p.len() {
            candle_core::bail!("parameter, gradient and moments differ in size");
        }
        let d = self.rows.width();
        let rows_a_task = CHUNK.div_ceil(d);
        p.par_chunks_mut(rows_a_task * d)
            .zip(m.par_chunks_mut(rows_a_task * d).zip(v.par_chunks_mut(rows_a_task * d)))
            .enumerate()
            .for_each(|(task, (p, (m, v)))| {
                let first = task * rows_a_task;
                let mut gradients = self.rows.starting_at(first).peekable();
                let rows = p.chunks_exact_mut(d).zip(m.chunks_exact_mut(d).zip(v.chunks_exact_mut(d)));
                for (row, (p, (m, v))) in rows.enumerate() {
                    match gradients.next_if(|(at, _)| *at == first + row) {
                        Some((_, g)) => {
                            let g = &g[..p.len()];
                            numbers.apply(p, |i| g[i], m, v);
                        }
                        None => numbers.apply(p, |_| 0.0, m, v),
                    }
                }
            });
        Ok(())
    }
}
