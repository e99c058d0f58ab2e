use super::{Config, RopeScaling};
use crate::model::{Checkpoint, ModelError};

/// Architectures of GGUF files that are computed here.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Values that would change what is computed.
const REFUSED: [&str; 5] =
    ["logit_scale", "residual_scale", "embedding_scale", "attention.scale", "attn_logit_softcapping"];

impl Config {
    /// The shape that a GGUF file describes.
    ///
    /// # Errors
    /// Where it is no GGUF file, its architecture is not supported, or a value is missing or wrong; the message names it.
    pub fn from_gguf(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        read(checkpoint).map_err(|why| ModelError::config(checkpoint.path(), why))
    }
}

fn read(checkpoint: &Checkpoint) -> Result<Config, String> {
    let metadata = checkpoint.metadata().ok_or("it is no GGUF file")?;
    let architecture = metadata.text("general.architecture")?.ok_or("\"general.architecture\" is missing")?;
    if !ARCHITECTURES.contains(&architecture) {
        let known = ARCHITECTURES.join(", ");
        return Err(format!("the architecture \"{architecture}\" is not supported (only {known})"));
    }
    if metadata.integer("split.count")?.is_some_and(|files| files > 1) {
        return Err("a GGUF model in several files is not supported: merge them with llama-gguf-split".into());
    }
    let key = |key: &str| format!("{architecture}.{key}");
    let size = |name: &str| {
        let number = metadata.integer(&key(name))?;
        Ok::<_, String>(number.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    };
    let need = |name: &str| size(name)?.ok_or_else(|| format!("\"{}\" is missing", key(name)));
    let refused = REFUSED.iter().find(|name| metadata.contains(&key(name)));
    if let Some(name) = refused {
        return Err(format!("\"{}\" is not supported", key(name)));
    }
    if size("expert_count")?.is_some_and(|experts| experts > 0) {
        return Err(format!("\"{}\": mixtures of experts are not supported", key("expert_count")));
    }
    let context = need("context_length")?;
    if size("attention.sliding_window")?.is_some_and(|window| window > 0 && window < context) {
        return Err(format!("\"{}\" is not supported", key("attention.sliding_window")));
    }
    let vocab_size = match checkpoint.shape("model.embed_tokens.weight") {
        Some(&[tokens, _]) => tokens,
        _ => metadata.count("tokenizer.ggml.tokens")?.ok_or("the tensor \"token_embd.weight\" is missing")?,
    };
    let bias = |name: &str| checkpoint.contains(&format!("model.layers.0.{name}.bias"));
    if ["gate", "up", "down"].iter().any(|part| bias(&format!("mlp.{part}_proj"))) {
        return Err("biases of the feed-forward layers (\"blk.0.ffn_up.bias\") are not supported".into());
    }
    let has_output_bias = architecture != "qwen2" && bias("self_attn.q_proj");
    if bias("self_attn.o_proj") != has_output_bias {
        return Err("\"blk.0.attn_output.bias\" is supported together with \"blk.0.attn_q.bias\" only".into());
    }
    let config = Config {
        model_type: architecture.to_owned(),
        hidden_size: need("embedding_length")?,
        intermediate_size: need("feed_forward_length")?,
        num_hidden_layers: need("block_count")?,
        num_attention_heads: need("attention.head_count")?,
        num_key_value_heads: size("attention.head_count_kv")?,
        head_dim: size("attention.key_length")?,
        vocab_size,
        max_position_embeddings: context,
        rms_norm_eps: metadata
            .float(&key("attention.layer_norm_rms_epsilon"))?
            .ok_or_else(|| format!("\"{}\" is missing", key("attention.layer_norm_rms_epsilon")))?,
        rope_theta: metadata.float(&key("rope.freq_base"))?.unwrap_or(super::rope_theta()),
        tie_word_embeddings: !checkpoint.contains("lm_head.weight"),
        attention_bias: has_output_bias,
        rope_scaling: None,
    };
    for (name, head) in [
        ("attention.value_length", size("attention.value_length")?),
        ("rope.dimension_count", size("rope.dimension_count")?),
    ] {
        if head.is_some_and(|head| head != config.head()) {
            return Err(format!(
                "\"{}\" other than a head's {} features is not supported",
                key(name),
                config.head()
            ));
        }
    }
    let config =
        Config { rope_scaling: rope_scaling(checkpoint, architecture, config.head() / 2)?, ..config };
    config.check()?;
    Ok(config)
}

/// Scaling of the rotary angles: the factors in `rope_freqs.weight`, or what the metadata says.
fn rope_scaling(
    checkpoint: &Checkpoint,
    architecture: &str,
    pairs: usize,
) -> Result<Option<RopeScaling>, String> {
    let metadata = checkpoint.metadata().ok_or("it is no GGUF file")?;
    let kind = metadata.text(&format!("{architecture}.rope.scaling.type"))?;
    // Older files give the factor alone.
    let old = metadata.float(&format!("{architecture}.rope.scale_linear"))?;
    let factor = metadata.float(&format!("{architecture}.rope.scaling.factor"))?.or(old);
    let linear = match (kind, factor) {
        (Some("none"), _) | (None, None) => None,
        (Some("linear") | None, Some(factor)) => (factor != 1.0).then_some(RopeScaling::Linear { factor }),
        (Some("linear"), None) => return Err("linear scaling of the rotary angles lacks its factor".into()),
        (Some(other), _) => {
            return Err(format!(
                "\"{architecture}.rope.scaling.type\": \"{other}\" is not supported (only none and linear)"
            ));
        }
    };
    if !checkpoint.contains("rope_freqs.weight") {
        return Ok(linear);
    }
    if linear.is_some() {
        return Err("\"rope_freqs.weight\" and linear scaling together are not supported".into());
    }
    let factors = checkpoint.stored("rope_freqs.weight", &[pairs]).map_err(|e| e.to_string())?.decode();
    Ok(Some(RopeScaling::Factors { factors }))
}
