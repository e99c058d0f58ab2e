//! GGUF files and Hugging Face directories of random weights, written by candle and safetensors: the twins of the readers.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use scone::model::{Config, WeightType, write_weights};
use scone::tokenizer::train_bpe;

/// A model as the tests make it.
pub(crate) struct Made {
    pub(crate) config: Config,
    /// By Hugging Face's names.
    pub(crate) tensors: BTreeMap<String, Tensor>,
    /// The text of a `tokenizer.json`.
    pub(crate) tokenizer: String,
}

/// Random numbers from a seed, between -1 and 1.
fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// A shape of this kind, `width` wide in every direction.
pub(crate) fn config(kind: &str, width: usize) -> Config {
    Config {
        model_type: kind.into(),
        hidden_size: width,
        intermediate_size: 2 * width,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: Some(2),
        head_dim: Some(width / 4),
        vocab_size: 290,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 100_000.0,
        tie_word_embeddings: false,
        attention_bias: false,
        rope_scaling: None,
    }
}

/// Every tensor that a model of this shape has, and its shape.
pub(crate) fn shapes(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (d, ffn, head) = (config.hidden_size, config.intermediate_size, config.head());
    let (q, kv) = (config.num_attention_heads * head, config.kv_heads() * head);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, d]),
        ("model.norm.weight".to_owned(), vec![d]),
    ];
    if !config.tie_word_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab_size, d]));
    }
    for layer in 0..config.num_hidden_layers {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[d]);
        add("post_attention_layernorm.weight", &[d]);
        add("self_attn.q_proj.weight", &[q, d]);
        add("self_attn.k_proj.weight", &[kv, d]);
        add("self_attn.v_proj.weight", &[kv, d]);
        add("self_attn.o_proj.weight", &[d, q]);
        add("mlp.gate_proj.weight", &[ffn, d]);
        add("mlp.up_proj.weight", &[ffn, d]);
        add("mlp.down_proj.weight", &[d, ffn]);
        if config.qkv_bias() {
            add("self_attn.q_proj.bias", &[q]);
            add("self_attn.k_proj.bias", &[kv]);
            add("self_attn.v_proj.bias", &[kv]);
        }
        if config.output_bias() {
            add("self_attn.o_proj.bias", &[d]);
        }
        if config.qk_norm() {
            add("self_attn.q_norm.weight", &[head]);
            add("self_attn.k_norm.weight", &[head]);
        }
    }
    shapes
}

/// A model with random weights and a trained tokenizer.
pub(crate) fn make(config: Config) -> Made {
    let tensors = shapes(&config).into_iter().enumerate();
    let tensors = tensors.map(|(i, (name, shape))| (name, random(i as u64 + 1, &shape))).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    let texts =
        (0..60).map(|i| format!("The naïve café, it's 日本語 {i}: the theme isn't there.\n\n  And then 🦀"));
    train_bpe(texts, 290, &path).unwrap();
    Made { config, tensors, tokenizer: std::fs::read_to_string(path).unwrap() }
}

impl Made {
    /// As a Hugging Face directory.
    pub(crate) fn write_directory(&self, directory: &Path, dtype: WeightType) {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("config.json"), serde_json::to_string(&self.config).unwrap()).unwrap();
        std::fs::write(directory.join("tokenizer.json"), &self.tokenizer).unwrap();
        write_weights(&directory.join("model.safetensors"), &self.tensors, dtype).unwrap();
    }

    /// The header of its GGUF form.
    pub(crate) fn metadata(&self) -> Vec<(String, Value)> {
        let c = &self.config;
        let key = |name: &str| format!("{}.{name}", c.model_type);
        let size = |n: usize| Value::U32(n as u32);
        let mut metadata = vec![
            ("general.architecture".to_owned(), Value::String(c.model_type.clone())),
            (key("embedding_length"), size(c.hidden_size)),
            (key("feed_forward_length"), size(c.intermediate_size)),
            (key("block_count"), size(c.num_hidden_layers)),
            (key("context_length"), size(c.max_position_embeddings)),
            (key("attention.head_count"), size(c.num_attention_heads)),
            (key("attention.head_count_kv"), size(c.kv_heads())),
            (key("attention.key_length"), size(c.head())),
            (key("attention.value_length"), size(c.head())),
            (key("rope.dimension_count"), size(c.head())),
            (key("rope.freq_base"), Value::F32(c.rope_theta as f32)),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(c.rms_norm_eps as f32)),
        ];
        metadata.extend(tokenizer(&self.tokenizer));
        metadata
    }

    /// Its tensors as GGUF names and orders them, matrices as `dtype`.
    pub(crate) fn quantized(&self, dtype: GgmlDType) -> Vec<(String, QTensor)> {
        let head = self.config.head();
        let tensors = self.tensors.iter().map(|(name, tensor)| {
            let is_paired =
                self.config.model_type == "llama" && (name.contains(".q_proj.") || name.contains(".k_proj."));
            let tensor = if is_paired { paired(tensor, head) } else { tensor.clone() };
            let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
            (renamed(name), QTensor::quantize(&tensor, dtype).unwrap())
        });
        tensors.collect()
    }

    /// As a GGUF file.
    pub(crate) fn write_gguf(&self, path: &Path, dtype: GgmlDType) {
        write(path, &self.metadata(), &self.quantized(dtype));
    }
}

pub(crate) fn write(path: &Path, metadata: &[(String, Value)], tensors: &[(String, QTensor)]) {
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
}

/// What llama.cpp's converter does to the rows of queries and keys.
fn paired(tensor: &Tensor, head: usize) -> Tensor {
    let rows = tensor.dim(0).unwrap();
    let columns = tensor.elem_count() / rows;
    let halves = tensor.reshape((rows / head, 2, head / 2, columns)).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape(tensor.dims()).unwrap()
}

fn renamed(name: &str) -> String {
    let pairs = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (theirs, gguf)| name.replace(theirs, gguf))
}

/// The header's part about a byte-level tokenizer that splits off every digit.
fn tokenizer(json: &str) -> Vec<(String, Value)> {
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    let vocabulary = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocabulary.len()];
    for (token, id) in vocabulary {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|merge| {
        let [left, right] = [0, 1].map(|side| merge[side].as_str().unwrap());
        Value::String(format!("{left} {right}"))
    });
    // The first token is the one special token of those that are trained here.
    let types = (0..tokens.len()).map(|id| Value::I32(if id == 0 { 3 } else { 1 }));
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    vec![
        (key("model"), Value::String("gpt2".into())),
        (key("pre"), Value::String("smollm".into())),
        (key("token_type"), Value::Array(types.collect())),
        (key("merges"), Value::Array(merges.collect())),
        (key("tokens"), Value::Array(tokens.into_iter().map(Value::String).collect())),
        (key("bos_token_id"), Value::U32(0)),
        (key("eos_token_id"), Value::U32(0)),
        (key("add_bos_token"), Value::Bool(false)),
    ]
}
