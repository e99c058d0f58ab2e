use serde::{Deserialize, Serialize};

/// The shape of a Llama decoder: the fields of Hugging Face's `config.json` that matter here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Always `llama`; anything else is refused.
    pub model_type: String,
    /// d: the width of embeddings and of the residual stream.
    pub hidden_size: usize,
    /// The width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; as many as query heads where the file does not say.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// Features of a head; `hidden_size / num_attention_heads` where the file does not say.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// The context: positions that the model was trained with.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// The base of the rotary angles.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// Whether the output head is the token embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

fn rope_theta() -> f64 {
    10_000.0
}

impl Config {
    /// Reads the file's text and refuses by name what this program does not support.
    ///
    /// # Errors
    /// A message that names the field.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: serde_json::Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        for (field, supported) in [
            ("rope_scaling", serde_json::Value::Null),
            ("attention_bias", false.into()),
            ("mlp_bias", false.into()),
            ("hidden_act", "silu".into()),
        ] {
            if let Some(value) = raw.get(field)
                && *value != supported
            {
                return Err(format!("\"{field}\": {value} is not supported (only {supported})"));
            }
        }
        let config: Self = serde_json::from_value(raw).map_err(|e| e.to_string())?;
        config.check()?;
        Ok(config)
    }

    /// Whether the numbers fit each other.
    ///
    /// # Errors
    /// A message that names the field.
    pub fn check(&self) -> Result<(), String> {
        let no = |why: String| Err(why);
        if self.model_type != "llama" {
            return no(format!("\"model_type\": \"{}\" is not supported (only \"llama\")", self.model_type));
        }
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head()),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 || value > 1 << 24 {
                return no(format!("\"{field}\": {value} is out of range"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            return no(format!(
                "\"num_attention_heads\": {} is no multiple of \"num_key_value_heads\": {}",
                self.num_attention_heads,
                self.kv_heads()
            ));
        }
        if !self.head().is_multiple_of(2) {
            return no(format!(
                "heads of {} features cannot be rotated: an even number is needed",
                self.head()
            ));
        }
        let positive = |x: f64| x > 0.0 && x.is_finite();
        if !positive(self.rms_norm_eps) || !positive(self.rope_theta) {
            return no("\"rms_norm_eps\" and \"rope_theta\" must be positive".into());
        }
        Ok(())
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Features of a head.
    pub fn head(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.hidden_size / self.num_attention_heads.max(1))
    }

    pub fn qkv_bias(&self) -> bool {
        false
    }
    pub fn output_bias(&self) -> bool {
        false
    }
    pub fn qk_norm(&self) -> bool {
        false
    }
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        (0..self.head() / 2)
            .map(|i| (1.0 / self.rope_theta.powf(2.0 * i as f64 / self.head() as f64)) as f32)
            .collect()
    }

    /// Parameters of the blocks and the last norm, without embedding and head.
    pub fn decoder_parameters(&self) -> usize {
        let (d, q, kv) =
            (self.hidden_size, self.num_attention_heads * self.head(), self.kv_heads() * self.head());
        self.num_hidden_layers * (2 * d * q + 2 * d * kv + 3 * d * self.intermediate_size + 2 * d) + d
    }

    /// All parameters; a tied head counts once.
    pub fn parameters(&self) -> usize {
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        self.decoder_parameters() + embeddings * self.vocab_size * self.hidden_size
    }
}

/// The shape of an f-gram model: a decoder of the main model's width without embedding or head, and the form of its
/// output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FgramConfig {
    /// The decoder.
    #[serde(flatten)]
    pub decoder: Config,
    /// `x_n + gain * norm(h_n)` if true, `norm(h_n)` if false.
    #[serde(default)]
    pub residual_output: bool,
}
