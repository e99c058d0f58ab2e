use candle_core::{DType, Result, Tensor, bail};

use super::{Output, gpu_of, held, node, said, weight_as};
use crate::gpu::{Gpu, ops};

/// The weight is kept in f32 and rounded for each product; its gradient is summed in f32.
pub(in crate::model::ops) fn linear(gpu: &dyn Gpu, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ((tokens, inputs), (outputs, width)) = (x.dims2()?, weight.dims2()?);
    if width != inputs {
        bail!("linear: {inputs} features meet a weight for {width}");
    }
    let sizes = [tokens, inputs, outputs];
    let y = Output::new((tokens, outputs), x.dtype(), x.device())?;
    let rounded = weight_as(gpu, weight, x.dtype())?;
    ops::linear(gpu, held(x)?.slice()?, held(&rounded)?.slice()?, y.slice()?, sizes).map_err(said)?;
    let wanted = [x.track_op(), weight.track_op()];
    node("linear", [x, weight], y, move |[x, weight], _, dy| {
        let Some(gpu) = gpu_of(x.device())? else { return Ok([None, None]) };
        let changes = held(dy)?;
        let mut gradients = [None, None];
        if wanted[0] {
            let dx = Output::new(x.shape(), x.dtype(), x.device())?;
            let rounded = weight_as(&*gpu, weight, x.dtype())?;
            ops::linear_backward_input(&*gpu, changes.slice()?, held(&rounded)?.slice()?, dx.slice()?, sizes)
                .map_err(said)?;
            gradients[0] = Some(dx.into_tensor());
        }
        if wanted[1] {
            let dweight = Output::new(weight.shape(), DType::F32, x.device())?;
            let x = held(x)?;
            ops::linear_backward_weight(&*gpu, changes.slice()?, x.slice()?, dweight.slice()?, sizes, false)
                .map_err(said)?;
            gradients[1] = Some(dweight.into_tensor());
        }
        Ok(gradients)
    })
}
