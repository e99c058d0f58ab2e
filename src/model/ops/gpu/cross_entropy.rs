use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, bail};

use super::{Output, gpu_of, held, indices, node, said, weight_as};
use crate::gpu::{Gpu, Slice, Type, ops};

pub(in crate::model::ops) fn cross_entropy(
    gpu: &dyn Gpu,
    h: &Tensor,
    head: &Tensor,
    targets: &Arc<Vec<u32>>,
) -> Result<Tensor> {
    let ((tokens, d), (vocabulary, d_head)) = (h.dims2()?, head.dims2()?);
    if d != d_head || targets.len() != tokens || targets.iter().any(|&t| t as usize >= vocabulary) {
        bail!("cross-entropy: {tokens} states of {d} and {} targets do not fit the head", targets.len());
    }
    let trained = h.track_op() || head.track_op();
    let dh = trained.then(|| Output::new(h.shape(), h.dtype(), h.device())).transpose()?;
    let dhead = head.track_op().then(|| Output::new(head.shape(), DType::F32, h.device())).transpose()?;
    let losses = Output::new(tokens, DType::F32, h.device())?;
    let (rounded, places) = (held(&weight_as(gpu, head, h.dtype())?)?, indices(gpu, targets)?);
    let states = held(h)?;
    let operands = ops::CrossEntropy {
        h: states.slice()?,
        head: rounded.slice()?,
        targets: places.of(Type::U32),
        dh: or_none(&dh, states.slice()?.kind())?,
        dhead: or_none(&dhead, Type::F32)?,
        losses: losses.slice()?,
    };
    ops::cross_entropy(gpu, operands, d).map_err(said)?;
    let loss = Output::new((), DType::F32, h.device())?;
    ops::sum(gpu, losses.slice()?, loss.slice()?, 1.0 / tokens as f32).map_err(said)?;
    let gradients = Mutex::new(Some((dh, dhead)));
    node("cross-entropy", [h, head], loss, move |[h, _], _, dloss| {
        let Some(gpu) = gpu_of(h.device())? else { return Ok([None, None]) };
        let Some((dh, dhead)) = gradients.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("cross-entropy: backward ran twice")
        };
        let scale = dloss.to_scalar::<f32>()?;
        if scale != 1.0 {
            for gradient in [&dh, &dhead].into_iter().flatten() {
                ops::scale(&*gpu, gradient.slice()?, scale).map_err(said)?;
            }
        }
        Ok([dh.map(Output::into_tensor), dhead.map(Output::into_tensor)])
    })
}

fn or_none(gradient: &Option<Output>, kind: Type) -> Result<Slice<'_>> {
    gradient.as_ref().map_or(Ok(Slice::none(kind)), Output::slice)
}
