use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::Gradient;

/// The sum of the squares of each of some gradients of one device, which is waited for once.
///
/// On a CPU in f64 and row by row, so that rows which are not there count exactly as much as if they were there as
/// zeros. On a GPU in f32, where a norm beyond 1.8e19 is infinite.
///
/// # Errors
/// Where the device fails.
pub fn square_sums<'a>(gradients: impl IntoIterator<Item = &'a Gradient>) -> Result<Vec<f64>> {
    let gradients: Vec<&Gradient> = gradients.into_iter().collect();
    #[cfg(any(feature = "cuda", test))]
    if let Some(Gradient::Whole(first)) = gradients.first()
        && let Some(gpu) = crate::model::ops::gpu::gpu_of(first.device())?
    {
        let tensors = gradients.iter().map(|gradient| gradient.whole()).collect::<Result<Vec<_>>>()?;
        return crate::model::ops::gpu::square_sums(&*gpu, &tensors.iter().collect::<Vec<_>>());
    }
    gradients.into_par_iter().map(square_sum).collect()
}

fn square_sum(gradient: &Gradient) -> Result<f64> {
    match gradient {
        Gradient::Rows(rows) => Ok(rows.iter().map(|(_, row)| of_row(row)).sum()),
        Gradient::Whole(whole) => of_rows(whole),
    }
}

fn of_rows(whole: &Tensor) -> Result<f64> {
    let width = whole.dims().last().copied().unwrap_or(1).max(1);
    let whole = whole.contiguous()?;
    let (storage, layout) = whole.storage_and_layout();
    let (candle_core::Storage::Cpu(storage), Some((from, to))) = (&*storage, layout.contiguous_offsets())
    else {
        candle_core::bail!("a gradient that is not on the CPU")
    };
    Ok(storage.as_slice::<f32>()?[from..to].chunks(width).map(of_row).sum())
}

/// Eight sums side by side, which a processor adds at once.
fn of_row(row: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    let (whole, rest) = row.as_chunks::<8>();
    for part in whole {
        for (sum, &x) in sums.iter_mut().zip(part) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
}
