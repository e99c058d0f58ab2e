use candle_core::{DType, Result, Tensor};

use super::{Output, gpu_of, held, node, said};
use crate::gpu::{Gpu, ops};

pub(in crate::model::ops) fn rms_norm(
    gpu: &dyn Gpu,
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let eps = eps as f32;
    let y = Output::new(x.shape(), x.dtype(), x.device())?;
    ops::rms_norm(gpu, held(x)?.slice()?, held(weight)?.slice()?, y.slice()?, eps).map_err(said)?;
    node("rms-norm", [x, weight], y, move |[x, weight], _, dy| {
        let Some(gpu) = gpu_of(x.device())? else { return Ok([None, None]) };
        let dx = Output::new(x.shape(), x.dtype(), x.device())?;
        let dweight = Output::new(weight.shape(), DType::F32, x.device())?;
        let (x, weight, dy) = (held(x)?, held(weight)?, held(dy)?);
        let (dx_at, dweight_at) = (dx.slice()?, dweight.slice()?);
        ops::rms_norm_backward(&*gpu, x.slice()?, weight.slice()?, dy.slice()?, dx_at, dweight_at, eps)
            .map_err(said)?;
        Ok([Some(dx.into_tensor()), Some(dweight.into_tensor())])
    })
}
