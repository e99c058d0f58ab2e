use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

/// What activations and matrix products are computed in. Weights, their gradients, moments and norms are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// bf16, on a GPU: weights are rounded for each product.
    Bf16,
}

impl Precision {
    /// The type of activations.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Why a device cannot compute in it, if it cannot.
    pub(super) fn objection(self, device: &Device) -> Option<String> {
        (self == Self::Bf16 && device.is_cpu()).then(|| {
            "precision = \"bf16\" in [train] is for GPUs, and this run is on the CPU: use \"f32\", or --device cuda".to_owned()
        })
    }
}
