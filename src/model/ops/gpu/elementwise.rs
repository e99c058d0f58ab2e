use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::super::rope::Rope;
use super::{Output, gpu_of, held, indices, node, said};
use crate::gpu::{Gpu, Type, ops};

pub(in crate::model::ops) fn add(gpu: &dyn Gpu, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let sum = Output::new(x.shape(), x.dtype(), x.device())?;
    ops::add(gpu, held(x)?.slice()?, held(y)?.slice()?, sum.slice()?).map_err(said)?;
    node("add", [x, y], sum, |_, _, dsum| Ok([Some(dsum.clone()), Some(dsum.clone())]))
}

pub(in crate::model::ops) fn swiglu(gpu: &dyn Gpu, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let y = Output::new(gate.shape(), gate.dtype(), gate.device())?;
    ops::swiglu(gpu, held(gate)?.slice()?, held(up)?.slice()?, y.slice()?).map_err(said)?;
    node("swiglu", [gate, up], y, |[gate, up], _, dy| {
        let Some(gpu) = gpu_of(gate.device())? else { return Ok([None, None]) };
        let [dgate, dup] = [(), ()].map(|()| Output::new(gate.shape(), gate.dtype(), gate.device()));
        let (dgate, dup, gate, up, dy) = (dgate?, dup?, held(gate)?, held(up)?, held(dy)?);
        let gradients = (dgate.slice()?, dup.slice()?);
        ops::swiglu_backward(&*gpu, gate.slice()?, up.slice()?, dy.slice()?, gradients.0, gradients.1)
            .map_err(said)?;
        Ok([Some(dgate.into_tensor()), Some(dup.into_tensor())])
    })
}

pub(in crate::model::ops) fn rope(
    gpu: &dyn Gpu,
    x: &Tensor,
    angles: &Arc<Rope>,
    positions: &Arc<Vec<u32>>,
) -> Result<Tensor> {
    if positions.iter().any(|&position| position as usize >= angles.positions()) {
        candle_core::bail!("a position beyond the model's context");
    }
    let y = turned(gpu, x, angles, positions, false)?;
    let (angles, positions) = (angles.clone(), positions.clone());
    node("rope", [x], y, move |[x], _, dy| {
        let Some(gpu) = gpu_of(x.device())? else { return Ok([None]) };
        Ok([Some(turned(&*gpu, dy, &angles, &positions, true)?.into_tensor())])
    })
}

fn turned(gpu: &dyn Gpu, x: &Tensor, angles: &Rope, positions: &[u32], back: bool) -> Result<Output> {
    let y = Output::new(x.shape(), x.dtype(), x.device())?;
    let places = indices(gpu, positions)?;
    let [cos, sin] = angles.on_gpu(gpu).map_err(said)?;
    let tables = (cos.of(Type::F32), sin.of(Type::F32));
    let (x, half) = (held(x)?, angles.half());
    ops::rope(gpu, x.slice()?, y.slice()?, places.of(Type::U32), tables, half, back).map_err(said)?;
    Ok(y)
}
