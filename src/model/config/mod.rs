//! The shape of a model, from Hugging Face's `config.json` or a GGUF file's metadata.

mod gguf;
mod huggingface;
mod rope;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use rope::RopeScaling;

/// The shape of a Llama-like decoder: the fields of Hugging Face's `config.json` that matter here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// One of [`Config::TYPES`]; anything else is refused.
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
    /// Whether the projections of attention have biases, all four of them. Those of `qwen2` have them in any case, but
    /// none after attention.
    #[serde(default, skip_serializing_if = "is_false")]
    pub attention_bias: bool,
    /// How the rotary angles were changed for a longer context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
}

fn rope_theta() -> f64 {
    10_000.0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Config {
    /// The kinds of decoders that there are. `mistral` is computed as `llama`; `qwen2` has biases on queries, keys and
    /// values; `qwen3` norms every head of queries and keys.
    pub const TYPES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

    /// Whether the numbers fit each other.
    ///
    /// # Errors
    /// A message that names the field.
    pub fn check(&self) -> Result<(), String> {
        let no = |why: String| Err(why);
        if !Self::TYPES.contains(&&*self.model_type) {
            let known = Self::TYPES.join("\", \"");
            return no(format!(
                "\"model_type\": \"{}\" is not supported (only \"{known}\")",
                self.model_type
            ));
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
        self.rope_scaling.as_ref().map_or(Ok(()), |scaling| scaling.check(self.head() / 2))
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Features of a head.
    pub fn head(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Whether queries, keys and values have biases.
    pub fn qkv_bias(&self) -> bool {
        self.attention_bias || self.model_type == "qwen2"
    }

    /// Whether the projection after attention has a bias.
    pub fn output_bias(&self) -> bool {
        self.attention_bias
    }

    /// Whether every head of queries and keys is normed, before it is rotated, with a gain by feature of a head
    /// (`self_attn.q_norm`, `self_attn.k_norm`, with [`Config::rms_norm_eps`]).
    pub fn qk_norm(&self) -> bool {
        self.model_type == "qwen3"
    }

    /// The rotary angles of position 1, one for each pair `(i, i + head / 2)` of a head's features: position `p` turns
    /// the pair by `p` times as much. In the arithmetic of Hugging Face's `modeling_rope_utils`: f32 angles.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let (head, half) = (self.head() as f64, self.head() / 2);
        let plain = (0..half).map(|i| (1.0 / self.rope_theta.powf(2.0 * i as f64 / head)) as f32);
        match &self.rope_scaling {
            None => plain.collect(),
            Some(scaling) => plain.enumerate().map(|(i, angle)| scaling.scale(i, angle)).collect(),
        }
    }

    /// Parameters of the blocks and the last norm, without embedding and head.
    pub fn decoder_parameters(&self) -> usize {
        let (d, q, kv) =
            (self.hidden_size, self.num_attention_heads * self.head(), self.kv_heads() * self.head());
        let biases = if self.qkv_bias() { q + 2 * kv } else { 0 } + if self.output_bias() { d } else { 0 };
        let norms = 2 * d + if self.qk_norm() { 2 * self.head() } else { 0 };
        self.num_hidden_layers * (2 * d * q + 2 * d * kv + 3 * d * self.intermediate_size + norms + biases)
            + d
    }

    /// All parameters; a tied head counts once.
    pub fn parameters(&self) -> usize {
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        self.decoder_parameters() + embeddings * self.vocab_size * self.hidden_size
    }
}

/// The shape of an f-gram model: a decoder without head, whose embeddings it reads, and the form of its output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FgramConfig {
    /// The decoder.
    #[serde(flatten)]
    pub decoder: Config,
    /// Whether `norm(h_n)`, with a gain or through a projection that starts at 0, is added to `x_n` or stands alone.
    #[serde(default)]
    pub residual_output: bool,
    /// Whether it reads token embeddings of its own, of its own width, instead of the main model's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_embedding: bool,
    /// The main model's width, where that is not its own: then `output_proj` maps the one to the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_size: Option<usize>,
}

impl FgramConfig {
    /// All parameters of the f-gram model, an embedding of its own and its output included.
    pub fn parameters(&self) -> usize {
        let width = self.decoder.hidden_size;
        let embedding = if self.own_embedding { self.decoder.vocab_size * width } else { 0 };
        let output = match self.output_size {
            Some(d) => d * width,
            None if self.residual_output => width,
            None => 0,
        };
        self.decoder.decoder_parameters() + embedding + output
    }
}
