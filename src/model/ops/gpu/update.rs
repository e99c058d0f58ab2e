use candle_core::{Result, Tensor};

use super::{held, said};
use crate::gpu::{Gpu, ops};

/// Updates a parameter and its moments in place.
pub(crate) fn adamw(
    gpu: &dyn Gpu,
    parameter: &Tensor,
    gradient: &Tensor,
    moments: [&Tensor; 2],
    update: ops::AdamW,
) -> Result<()> {
    for own in [parameter, moments[0], moments[1]] {
        if !own.is_contiguous() {
            candle_core::bail!("adamw: a copy would be updated");
        }
    }
    let (p, g, [m, v]) = (held(parameter)?, held(gradient)?, moments.map(held));
    let (m, v) = (m?, v?);
    ops::adamw(gpu, p.slice()?, g.slice()?, (m.slice()?, v.slice()?), update).map_err(said)
}

/// The sum of the squares of each tensor.
pub(crate) fn square_sums(gpu: &dyn Gpu, tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let held = tensors.iter().map(|tensor| held(tensor)).collect::<Result<Vec<_>>>()?;
    let slices = held.iter().map(super::Held::slice).collect::<Result<Vec<_>>>()?;
    ops::square_sums(gpu, &slices).map_err(said)
}
