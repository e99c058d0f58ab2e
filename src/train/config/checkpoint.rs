use serde::{Deserialize, Serialize};

use crate::model::WeightType;

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints; there is one more at the end.
    pub every: u64,
    /// How many checkpoints stay: the newest.
    pub keep: usize,
    /// How the finished model's weights are stored.
    pub dtype: WeightType,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 200, keep: 2, dtype: WeightType::F16 }
    }
}
