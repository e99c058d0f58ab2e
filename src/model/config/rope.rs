use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

/// How rotary angles were changed so that positions beyond those of the first training mean something. Written as
/// Hugging Face writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// All angles divided by a factor (Chen et al., arXiv 2306.15595).
    Linear {
        /// What they are divided by.
        factor: f64,
    },
    /// As Llama 3.1 has it: slow pairs, those that turn less than `low_freq_factor` times in the original context,
    /// are divided by the factor; fast ones, which turn more than `high_freq_factor` times, stay; those between pass
    /// smoothly from one to the other (`_compute_llama3_parameters` in Hugging Face's `modeling_rope_utils`).
    Llama3 {
        /// What slow angles are divided by.
        factor: f64,
        /// Turns in the original context up to which a pair is slow.
        low_freq_factor: f64,
        /// Turns in the original context from which a pair is fast.
        high_freq_factor: f64,
        /// The context of the first training.
        original_max_position_embeddings: usize,
    },
    /// Each angle divided by its own factor: GGUF's tensor `rope_freqs.weight`, in which llama.cpp's converter writes
    /// down what `Llama3` computes.
    Factors {
        /// By pair.
        factors: Vec<f32>,
    },
}

impl RopeScaling {
    /// Whether the numbers make sense for heads of so many pairs.
    pub(super) fn check(&self, pairs: usize) -> Result<(), String> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let sound = match self {
            Self::Linear { factor } => positive(*factor),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => positive(*factor) && positive(*low) && positive(*high) && low < high && *original > 0,
            Self::Factors { factors } => {
                factors.len() == pairs && factors.iter().all(|&factor| positive(factor.into()))
            }
        };
        let why = "the numbers must be positive, low_freq_factor below high_freq_factor, one for each pair of features";
        if sound { Ok(()) } else { Err(format!("\"rope_scaling\": {self:?} does not work: {why}")) }
    }

    /// The angle of pair `i`, which would be `angle` without scaling.
    pub(super) fn scale(&self, i: usize, angle: f32) -> f32 {
        match self {
            Self::Linear { factor } => (f64::from(angle) / factor) as f32,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let plain = f64::from(angle);
                let turns = *original_max_position_embeddings as f64 * plain / TAU;
                let fast = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let fast = fast.clamp(0.0, 1.0);
                ((1.0 - fast) * plain / factor + fast * plain) as f32
            }
            Self::Factors { factors } => angle / factors[i],
        }
    }
}
