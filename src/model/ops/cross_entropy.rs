use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::gemm::{Matrix, Put, gemm};
#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::simd::{exp_shifted, vectorized};
use super::slices::{contiguous, output, wanted};

/// Rows whose logits exist at a time: `[tokens, vocabulary]` as a whole would be the largest thing in training.
const CHUNK: usize = 128;

/// The mean cross-entropy, in nats, of `targets` under `softmax(h * head^T)`: `h` is `[tokens, d]`, `head`
/// `[vocabulary, d]`; a scalar.
///
/// The gradients are made in the same pass, while a chunk of logits is at hand, and kept for the backward pass; where
/// nothing is being trained, as in validation, they are not made.
pub fn cross_entropy(h: &Tensor, head: &Tensor, targets: &Arc<Vec<u32>>) -> Result<Tensor> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(h.device())? {
        return gpu::cross_entropy(&*gpu, h, head, targets);
    }
    let trained = (h.track_op() || head.track_op(), head.track_op());
    h.apply_op2(head, CrossEntropy { targets: targets.clone(), trained, gradients: Mutex::default() })
}

struct CrossEntropy {
    targets: Arc<Vec<u32>>,
    /// Whether anything is trained, and whether the head is.
    trained: (bool, bool),
    /// Of `h` and of `head`, for a loss gradient of 1.
    gradients: Mutex<Option<(Vec<f32>, Vec<f32>)>>,
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (h, head) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let ((tokens, d), (vocabulary, d_head)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        if d != d_head
            || self.targets.len() != tokens
            || self.targets.iter().any(|&t| t as usize >= vocabulary)
        {
            bail!(
                "cross-entropy: {tokens} states of {d} and {} targets do not fit the head",
                self.targets.len()
            );
        }
        let (trained, _) = self.trained;
        let mut dh = vec![0f32; if trained { h.len() } else { 0 }];
        // Each thread takes a run of tokens and sums up a gradient of the head of its own: waiting for each other at
        // every product costs more than adding these up.
        let run = tokens.div_ceil(rayon::current_num_threads()).max(CHUNK);
        let work: Vec<_> = h
            .chunks(run * d)
            .zip(split_or_empty(&mut dh, run * d, tokens.div_ceil(run)))
            .zip(self.targets.chunks(run))
            .collect();
        let weight = Matrix::new(head, vocabulary, d, d);
        let sums: Vec<(f64, Vec<f32>)> = work
            .into_par_iter()
            .map(|((h, dh), targets)| self.run(h, dh, targets, weight, 1.0 / tokens as f32))
            .collect();
        let loss: f64 = sums.iter().map(|(loss, _)| loss).sum();
        let mut dheads = sums.into_iter().map(|(_, dhead)| dhead);
        let mut dhead = dheads.next().unwrap_or_default();
        for other in dheads {
            dhead.par_iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
        }
        let gradients = trained.then_some((dh, dhead));
        *self.gradients.lock().unwrap_or_else(PoisonError::into_inner) = gradients;
        Ok(output(vec![(loss / tokens as f64) as f32], ()))
    }

    fn bwd(
        &self,
        h: &Tensor,
        head: &Tensor,
        _loss: &Tensor,
        dloss: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = self.gradients.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((mut dh, mut dhead)) = gradients else {
            bail!("cross-entropy: nothing is trained, or backward ran twice")
        };
        let scale = dloss.to_scalar::<f32>()?;
        if scale != 1.0 {
            dh.iter_mut().chain(&mut dhead).for_each(|x| *x *= scale);
        }
        Ok((wanted(h, || dh)?, wanted(head, || dhead)?))
    }
}

/// So many parts of `data`, of `len` elements each; empty ones of an empty slice.
fn split_or_empty(mut data: &mut [f32], len: usize, parts: usize) -> Vec<&mut [f32]> {
    let part = |_| {
        let len = len.min(data.len());
        data.split_off_mut(..len).unwrap_or_default()
    };
    (0..parts).map(part).collect()
}

impl CrossEntropy {
    /// The summed loss of a run of tokens and its gradient of the head; that of `h` goes into `dh`.
    fn run(
        &self,
        h: &[f32],
        dh: &mut [f32],
        targets: &[u32],
        weight: Matrix<'_>,
        scale: f32,
    ) -> (f64, Vec<f32>) {
        let (vocabulary, d) = weight.shape();
        let (trained, head_trained) = self.trained;
        let mut dhead = vec![0f32; if head_trained { vocabulary * d } else { 0 }];
        let mut logits = vec![0f32; CHUNK.min(targets.len()) * vocabulary];
        let mut loss = 0f64;
        let parts = targets.len().div_ceil(CHUNK);
        let chunks = h.chunks(CHUNK * d).zip(split_or_empty(dh, CHUNK * d, parts)).zip(targets.chunks(CHUNK));
        for ((h, dh), targets) in chunks {
            let rows = targets.len();
            let h = Matrix::new(h, rows, d, d);
            gemm(&mut logits, vocabulary, Put::Replace, h, weight.t(), 1.0, false);
            for (row, &target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
                loss += loss_and_gradient(row, target, scale);
            }
            if trained {
                let dlogits = Matrix::new(&logits, rows, vocabulary, vocabulary);
                gemm(dh, d, Put::Replace, dlogits, weight, 1.0, false);
                if head_trained {
                    gemm(&mut dhead, d, Put::Add, dlogits.t(), h, 1.0, false);
                }
            }
        }
        (loss, dhead)
    }
}

/// Turns a row of logits into the gradient of its loss, times `scale`; returns the loss.
fn loss_and_gradient(row: &mut [f32], target: u32, scale: f32) -> f64 {
    let target = target as usize;
    let target_logit = row[target];
    let (max, sum) = vectorized(
        #[inline(always)]
        || {
            let (max, sum) = exp_shifted(row);
            let factor = scale / sum;
            for x in row.iter_mut() {
                *x *= factor;
            }
            (max, sum)
        },
    );
    row[target] -= scale;
    f64::from(sum).ln() + f64::from(max) - f64::from(target_logit)
}
