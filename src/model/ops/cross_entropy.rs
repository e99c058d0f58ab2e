use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::gemm::{Matrix, Put, gemm};
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
        let (trained, head_trained) = self.trained;
        let mut dh = vec![0f32; h.len()];
        let mut dhead = vec![0f32; if head_trained { head.len() } else { 0 }];
        let mut logits = vec![0f32; CHUNK * vocabulary];
        let mut loss = 0f64;
        let w = Matrix::new(head, vocabulary, d, d);
        for ((h, dh), targets) in
            h.chunks(CHUNK * d).zip(dh.chunks_mut(CHUNK * d)).zip(self.targets.chunks(CHUNK))
        {
            let rows = targets.len();
            let h = Matrix::new(h, rows, d, d);
            gemm(&mut logits, vocabulary, Put::Replace, h, w.t(), 1.0, true);
            let losses: Vec<f64> = logits
                .par_chunks_exact_mut(vocabulary)
                .zip(targets)
                .map(|(row, &target)| loss_and_gradient(row, target, 1.0 / tokens as f32))
                .collect();
            loss += losses.iter().sum::<f64>();
            if !trained {
                continue;
            }
            let dlogits = Matrix::new(&logits, rows, vocabulary, vocabulary);
            gemm(dh, d, Put::Replace, dlogits, w, 1.0, true);
            if head_trained {
                gemm(&mut dhead, d, Put::Add, dlogits.t(), h, 1.0, true);
            }
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
