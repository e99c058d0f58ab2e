use candle_core::{Result, Tensor};

/// The sum of the squares of each of some f32 tensors of one device, which is waited for once.
///
/// # Errors
/// Where the device fails.
pub fn square_sums(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(first) = tensors.first()
        && let Some(gpu) = crate::model::ops::gpu::gpu_of(first.device())?
    {
        return crate::model::ops::gpu::square_sums(&*gpu, tensors);
    }
    tensors.iter().map(|tensor| Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?))).collect()
}
