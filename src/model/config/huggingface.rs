use serde_json::Value;

use super::{Config, RopeScaling};

/// A head's features in Qwen 3 where the file does not say (`Qwen3Config`).
const QWEN3_HEAD: u64 = 128;

impl Config {
    /// Reads the text of a `config.json` and refuses by name what this program does not support.
    ///
    /// # Errors
    /// A message that names the field.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut raw: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        refuse(&raw)?;
        let (theta, scaling) = rope(&raw)?;
        let Some(fields) = raw.as_object_mut() else { return Err("not a JSON object".into()) };
        if let Some(theta) = theta {
            fields.insert("rope_theta".into(), theta);
        }
        fields.insert("rope_scaling".into(), serde_json::to_value(scaling).map_err(|e| e.to_string())?);
        if fields.get("model_type").is_some_and(|kind| kind == "qwen3") {
            let head = fields.entry("head_dim").or_insert(Value::Null);
            if head.is_null() {
                *head = QWEN3_HEAD.into();
            }
        }
        // Their defaults are not what the fields mean here; a missing one is.
        fields.retain(|_, value| !value.is_null());
        let config: Self = serde_json::from_value(raw).map_err(|e| e.to_string())?;
        config.check()?;
        Ok(config)
    }
}

/// Fields that would change what is computed, each with the one value that is supported. Null and a missing field are
/// always that value.
const ONLY: [(&str, Only); 11] = [
    ("hidden_act", Only::Text("silu")),
    ("mlp_bias", Only::False),
    ("quantization_config", Only::Missing),
    ("num_experts", Only::Missing),
    ("num_local_experts", Only::Missing),
    ("partial_rotary_factor", Only::One),
    ("logits_scaling", Only::One),
    ("embedding_multiplier", Only::One),
    ("residual_multiplier", Only::One),
    ("attn_logit_softcapping", Only::Missing),
    ("final_logit_softcapping", Only::Missing),
];

enum Only {
    False,
    Missing,
    One,
    Text(&'static str),
}

fn refuse(raw: &Value) -> Result<(), String> {
    for (field, only) in ONLY {
        let value = raw.get(field).unwrap_or(&Value::Null);
        let (supported, name) = match only {
            Only::False => (value == &Value::Bool(false), "only false"),
            Only::Missing => (false, "leave it out"),
            Only::One => (value.as_f64() == Some(1.0), "only 1"),
            Only::Text(text) => (value == text, text),
        };
        if !value.is_null() && !supported {
            let value = shortened(value);
            return Err(match only {
                Only::Text(text) => format!("\"{field}\": {value} is not supported (only \"{text}\")"),
                Only::Missing => format!("\"{field}\": {value} is not supported"),
                Only::False | Only::One => format!("\"{field}\": {value} is not supported ({name})"),
            });
        }
    }
    sliding_window(raw)
}

/// A value as a message shows it.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// Refuses a window of attention that is in use: one shorter than the context, unless the file switches it off as Qwen's
/// do, or has it for layers that are not there.
fn sliding_window(raw: &Value) -> Result<(), String> {
    let number = |field: &str| raw.get(field).and_then(Value::as_u64);
    let kinds = raw.get("layer_types").and_then(Value::as_array);
    if let Some(other) = kinds.and_then(|kinds| kinds.iter().find(|kind| *kind != "full_attention")) {
        return Err(format!(
            "\"layer_types\": {} is not supported (only \"full_attention\")",
            shortened(other)
        ));
    }
    let Some(window) = number("sliding_window") else { return Ok(()) };
    let is_off = raw.get("use_sliding_window") == Some(&Value::Bool(false)) || kinds.is_some();
    let in_no_layer =
        number("max_window_layers") >= number("num_hidden_layers") && raw.get("max_window_layers").is_some();
    let is_long = number("max_position_embeddings").is_some_and(|context| window >= context);
    if is_off || in_no_layer || is_long {
        return Ok(());
    }
    Err(format!("\"sliding_window\": {window} is not supported (only null, or one as long as the context)"))
}

/// The rotary base and scaling: `rope_theta` and `rope_scaling`, or both in `rope_parameters` as newer files have it.
fn rope(raw: &Value) -> Result<(Option<Value>, Option<RopeScaling>), String> {
    let given = |field: &str| raw.get(field).filter(|value| !value.is_null());
    let field = if given("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let Some(parameters) = given(field) else { return Ok((given("rope_theta").cloned(), None)) };
    let theta = parameters.get("rope_theta").or(given("rope_theta")).cloned();
    let kind = parameters.get("rope_type").or(parameters.get("type")).and_then(Value::as_str);
    let mut parameters = match parameters.as_object() {
        Some(parameters) => parameters.clone(),
        None => return Err(format!("\"{field}\": {} is no object", shortened(parameters))),
    };
    if parameters.get("partial_rotary_factor").is_some_and(|share| share.as_f64() != Some(1.0)) {
        return Err(format!("\"{field}\": \"partial_rotary_factor\" is not supported (only 1)"));
    }
    match kind {
        Some("default") => Ok((theta, None)),
        Some(kind @ ("linear" | "llama3")) => {
            parameters.insert("rope_type".into(), kind.into());
            let scaling = serde_json::from_value(parameters.into());
            Ok((theta, Some(scaling.map_err(|e| format!("\"{field}\": {e}"))?)))
        }
        // One set of parameters for each type of layer has no type of its own.
        None if parameters.values().any(Value::is_object) => {
            Err(format!("\"{field}\" that differs by layer is not supported"))
        }
        None if parameters.keys().all(|key| key == "rope_theta" || key == "partial_rotary_factor") => {
            Ok((theta, None))
        }
        None => Err(format!("\"{field}\" does not say its \"rope_type\"")),
        Some(kind) => Err(format!(
            "\"{field}\": the type \"{kind}\" is not supported (only \"default\", \"linear\" and \"llama3\")"
        )),
    }
}
