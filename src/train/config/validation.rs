use serde::{Deserialize, Serialize};

/// `[validation]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// Steps between two validations; there is one more at the end.
    pub every: u64,
    /// About how many tokens of the validation split are scored, in windows spread evenly over it.
    pub tokens: usize,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { every: 200, tokens: 50_000 }
    }
}
