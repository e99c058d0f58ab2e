//! Gradients, parameters and moments, as the values that a [`Group`] carries.

use candle_core::Tensor;

use super::Group;
use crate::train::update::Moments;
use crate::train::{AdamW, Gradient, Gradients, Parameters, TrainError};

/// Adds up the gradients of all processes, all in one message.
pub(in crate::train) fn sum_gradients(
    group: &mut dyn Group,
    gradients: &mut Gradients,
) -> Result<(), TrainError> {
    if group.is_alone() {
        return Ok(());
    }
    let (mut values, mut places) = (Vec::new(), Vec::with_capacity(gradients.len()));
    for gradient in gradients.values() {
        let whole = gradient.whole()?;
        values.reserve_exact(whole.elem_count());
        values.extend(whole.flatten_all()?.to_vec1::<f32>()?);
        places.push((whole.shape().clone(), whole.device().clone()));
    }
    group.sum(&mut values)?;
    let mut rest = values.as_slice();
    for (gradient, (shape, device)) in gradients.values_mut().zip(places) {
        let (own, after) = rest.split_at(shape.elem_count());
        *gradient = Gradient::Whole(Tensor::from_slice(own, &shape, &device)?);
        rest = after;
    }
    Ok(())
}

/// Gives all processes rank 0's parameters, and its moments if there are any.
pub(in crate::train) fn share_parameters(
    group: &mut dyn Group,
    parameters: &Parameters,
    optimizer: &mut AdamW,
) -> Result<(), TrainError> {
    if group.is_alone() {
        return Ok(());
    }
    let with_moments = group.any(!optimizer.moments.is_empty())?;
    for (_, var) in parameters.iter() {
        let mut values = var.flatten_all()?.to_vec1::<f32>()?;
        group.broadcast(bytemuck::cast_slice_mut(&mut values))?;
        var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
    }
    for (name, var) in parameters.trained().filter(|_| with_moments) {
        let (mut m, mut v) = match optimizer.moments.get(name) {
            Some(moments) => moments.values()?,
            None => (vec![0f32; var.elem_count()], vec![0f32; var.elem_count()]),
        };
        group.broadcast(bytemuck::cast_slice_mut(&mut m))?;
        group.broadcast(bytemuck::cast_slice_mut(&mut v))?;
        optimizer.moments.insert(name.to_owned(), Moments::new(m, v, var.device())?);
    }
    Ok(())
}

/// A checksum of all parameters, by which processes find that theirs are no longer the same.
pub(in crate::train) fn checksum(parameters: &Parameters) -> Result<u32, TrainError> {
    let mut hasher = crc32fast::Hasher::new();
    for (_, var) in parameters.iter() {
        hasher.update(bytemuck::cast_slice(&var.flatten_all()?.to_vec1::<f32>()?));
    }
    Ok(hasher.finalize())
}
