use std::collections::BTreeMap;

use serde_json::Number;

use crate::engine::{Penalties, Sampling};
use crate::server::wire::body::Fields;
use crate::server::wire::error::ApiError;

/// The fields that say how the next token is chosen.
pub(super) fn take_sampling(fields: &mut Fields) -> Result<Sampling, ApiError> {
    let temperature = fields.take_number("temperature", 0.0..=f64::MAX)?.unwrap_or(1.0);
    let top_p = fields.take_number("top_p", 0.0..=1.0)?.unwrap_or(1.0);
    // -1 and 0 both stand for all tokens, as they do elsewhere.
    let top_k = fields.take_integer("top_k", -1..=i64::MAX)?.unwrap_or(0).max(0) as usize;
    let min_p = fields.take_number("min_p", 0.0..=1.0)?.unwrap_or(0.0);
    Ok(Sampling {
        temperature,
        top_p,
        top_k,
        min_p,
        penalties: take_penalties(fields)?,
        logit_bias: take_logit_bias(fields)?,
        seed: take_seed(fields)?,
        stream: 0,
    })
}

fn take_penalties(fields: &mut Fields) -> Result<Penalties, ApiError> {
    let repetition = fields.take_number("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0);
    let frequency = fields.take_number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    let presence = fields.take_number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    Ok(Penalties { repetition: repetition as f32, frequency: frequency as f32, presence: presence as f32 })
}

/// Any whole number of 64 bits, with a sign or without.
fn take_seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(number) = fields.take::<Number>("seed")? else { return Ok(None) };
    let float = || {
        let whole = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= 2f64.powi(53));
        whole.map(|float| (float as i64).cast_unsigned())
    };
    let seed = number.as_i64().map(i64::cast_unsigned).or_else(|| number.as_u64()).or_else(float);
    let seed = seed.ok_or_else(|| {
        ApiError::invalid("seed", format!("`seed` is {number}, but must be a whole number of 64 bits"))
    });
    seed.map(Some)
}

/// Token ids, as strings since JSON has no other keys, and what is added to their logits.
fn take_logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let bias: Option<BTreeMap<u32, f32>> = fields.take("logit_bias")?;
    let bias: Vec<_> = bias.unwrap_or_default().into_iter().collect();
    if let Some((id, bias)) = bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
        let message = format!("`logit_bias` of token {id} is {bias}, but must be between -100 and 100");
        return Err(ApiError::invalid("logit_bias", message));
    }
    Ok(bias)
}
