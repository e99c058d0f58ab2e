use serde::{Deserialize, Serialize};

/// `[samples]`: how the model continues a few prompts as it is trained, in `samples.jsonl`. Without prompts: no samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplesConfig {
    /// What is continued; "" begins a document.
    pub prompts: Vec<String>,
    /// Tokens of a continuation, unless the text ends before.
    pub tokens: usize,
    /// Validations from one time to the next; there is one more at the end.
    pub every: u64,
    /// 0 takes the most likely token; 1 draws as the model has it, with the run's seed.
    pub temperature: f64,
}

impl Default for SamplesConfig {
    fn default() -> Self {
        Self { prompts: Vec::new(), tokens: 48, every: 1, temperature: 0.0 }
    }
}
