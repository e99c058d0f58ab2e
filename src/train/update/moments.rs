#[cfg(any(feature = "cuda", test))]
use candle_core::Tensor;
use candle_core::{Device, Result};

/// First and second moments of a parameter, where the parameter is.
pub(in crate::train) enum Moments {
    /// On the CPU.
    Host(Vec<f32>, Vec<f32>),
    /// On a GPU.
    #[cfg(any(feature = "cuda", test))]
    Gpu([Tensor; 2]),
}

impl Moments {
    /// Of these values, for a parameter on `device`.
    ///
    /// # Errors
    /// Where the device has not enough memory.
    pub(in crate::train) fn new(
        m: Vec<f32>,
        v: Vec<f32>,
        #[cfg_attr(
            not(any(feature = "cuda", test)),
            allow(unused_variables, reason = "there is the CPU only")
        )]
        device: &Device,
    ) -> Result<Self> {
        #[cfg(any(feature = "cuda", test))]
        if crate::model::ops::gpu::gpu_of(device)?.is_some() {
            let len = m.len();
            return Ok(Self::Gpu([Tensor::from_vec(m, len, device)?, Tensor::from_vec(v, len, device)?]));
        }
        Ok(Self::Host(m, v))
    }

    /// The values.
    ///
    /// # Errors
    /// Where the device fails.
    pub(in crate::train) fn values(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        match self {
            Self::Host(m, v) => Ok((m.clone(), v.clone())),
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu([m, v]) => Ok((m.to_vec1()?, v.to_vec1()?)),
        }
    }
}
