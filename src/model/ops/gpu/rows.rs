use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::{Output, gpu_of, held, indices, node, said};
use crate::gpu::{Gpu, Slice, Type, ops};

/// Rows of `a`, with those of `b` below it where there is one.
pub(in crate::model::ops) fn take_rows_of_two(
    gpu: &dyn Gpu,
    a: &Tensor,
    b: Option<&Tensor>,
    rows: &Arc<Vec<u32>>,
) -> Result<Tensor> {
    let ((n, d), (m, d_b)) = (a.dims2()?, b.map_or(a.dims2().map(|(_, d)| (0, d)), Tensor::dims2)?);
    if d != d_b || rows.iter().any(|&row| row as usize >= n + m) {
        bail!("rows of two tensors of {n} and {m} rows, {d} and {d_b} wide");
    }
    let y = Output::new((rows.len(), d), a.dtype(), a.device())?;
    let places = indices(gpu, rows)?;
    let (above, below) = (held(a)?, b.map(held).transpose()?);
    let none = Slice::none(above.slice()?.kind());
    let both = (above.slice()?, below.as_ref().map_or(Ok(none), |below| below.slice())?);
    ops::take_rows(gpu, both, places.of(Type::U32), y.slice()?, d).map_err(said)?;
    let rows = rows.clone();
    match b {
        None => node("take-rows", [a], y, move |[a], _, dy| {
            let [da, _] = backward(a, None, &rows, dy)?;
            Ok([da])
        }),
        Some(b) => node("take-rows-of-two", [a, b], y, move |[a, b], _, dy| backward(a, Some(b), &rows, dy)),
    }
}

fn backward(a: &Tensor, b: Option<&Tensor>, rows: &[u32], dy: &Tensor) -> Result<[Option<Tensor>; 2]> {
    let Some(gpu) = gpu_of(a.device())? else { return Ok([None, None]) };
    let gpu = &*gpu;
    let (n, d) = a.dims2()?;
    let zeros = |operand: Option<&Tensor>| -> Result<Option<Output>> {
        let Some(operand) = operand.filter(|operand| operand.track_op()) else { return Ok(None) };
        let gradient = Output::new(operand.shape(), operand.dtype(), operand.device())?;
        gpu.zero(gradient.slice()?).map_err(said)?;
        Ok(Some(gradient))
    };
    let (da, db, dy) = (zeros(Some(a))?, zeros(b)?, held(dy)?);
    let changes = dy.slice()?;
    let none = Slice::none(changes.kind());
    fn at<'a>(gradient: &'a Option<Output>, none: Slice<'a>) -> Result<Slice<'a>> {
        gradient.as_ref().map_or(Ok(none), Output::slice)
    }
    let scatter = ops::Scatter::of(rows);
    let [targets, starts, order] =
        [&scatter.targets, &scatter.starts, &scatter.order].map(|list| indices(gpu, list));
    let lists = [targets?, starts?, order?];
    let lists = lists.each_ref().map(|list| list.of(Type::U32));
    ops::add_rows(gpu, changes, lists, (at(&da, none)?, at(&db, none)?), n, d).map_err(said)?;
    Ok([da.map(Output::into_tensor), db.map(Output::into_tensor)])
}
