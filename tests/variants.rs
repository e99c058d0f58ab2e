//! The variants of Llama against candle-transformers' models of them, on the same random weights: Qwen 2 (biases), Qwen 3
//! (norms of queries and keys, heads of their own size), Llama 3 (scaled RoPE, a head of its own).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/tiny.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
mod tiny;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen2, qwen3};
use rand::{RngExt, SeedableRng};
use scone::model::{ModelDirectory, Piece, WeightType, write_weights};
use scone::tokenizer::train_bpe;
use serde_json::{Value, json};

const TOKENS: usize = 40;

/// The shape that all have in common: two layers, four query heads for two key and value heads.
fn config(model_type: &str, extra: &Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
        "hidden_act": "silu", "tie_word_embeddings": true,
    });
    let fields = config.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    config
}

/// A directory with random weights of these heads, biases and norms.
fn write(directory: &Path, config: &Value, (has_bias, has_norms): (bool, bool)) {
    train_bpe([tiny::text()].into_iter(), 300, &directory.join("tokenizer.json")).unwrap();
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let is_norm = name.contains("norm");
        let data: Vec<f32> = (0..shape.iter().product())
            .map(|_| rng.random::<f32>() - 0.5)
            .map(|x| if is_norm { 1.0 + 0.4 * x } else { 0.5 * x })
            .collect();
        tensors.insert(name, Tensor::from_vec(data, shape, &Device::Cpu).unwrap());
    };
    let (d, ffn) = (32, 48);
    let head = config["head_dim"].as_u64().unwrap_or(8) as usize;
    add("model.embed_tokens.weight".into(), &[300, d]);
    if config["tie_word_embeddings"] == false {
        add("lm_head.weight".into(), &[300, d]);
    }
    add("model.norm.weight".into(), &[d]);
    for i in 0..2 {
        let name = |part: &str| format!("model.layers.{i}.{part}");
        for norm in ["input_layernorm.weight", "post_attention_layernorm.weight"] {
            add(name(norm), &[d]);
        }
        for (part, heads) in [("q", 4), ("k", 2), ("v", 2)] {
            add(name(&format!("self_attn.{part}_proj.weight")), &[heads * head, d]);
            if has_bias {
                add(name(&format!("self_attn.{part}_proj.bias")), &[heads * head]);
            }
            if has_norms && part != "v" {
                add(name(&format!("self_attn.{part}_norm.weight")), &[head]);
            }
        }
        add(name("self_attn.o_proj.weight"), &[d, 4 * head]);
        add(name("mlp.gate_proj.weight"), &[ffn, d]);
        add(name("mlp.up_proj.weight"), &[ffn, d]);
        add(name("mlp.down_proj.weight"), &[d, ffn]);
    }
    write_weights(&directory.join("model.safetensors"), &tensors, WeightType::F32).unwrap();
}

fn weights(directory: &Path) -> VarBuilder<'static> {
    let bytes = std::fs::read(directory.join("model.safetensors")).unwrap();
    VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap()
}

/// Our logits after every prefix of the tokens are those of `reference`, which is given a token and its position.
fn compare(directory: &Path, mut reference: impl FnMut(&Tensor, usize) -> Tensor) {
    let opened = ModelDirectory::open(directory).unwrap();
    let tokens: Vec<u32> = opened.tokenizer().encode(&tiny::text()).unwrap()[..TOKENS].to_vec();
    let mut model = opened.load(None, &tiny::runtime(TOKENS)).unwrap();
    let mut logits = Vec::new();
    let piece = Piece { tokens: &tokens, past: 0, blocks: &[2, 0, 1], wanted: TOKENS };
    model.forward(&[piece], &mut logits).unwrap();
    for (i, ours) in logits.chunks_exact(300).enumerate() {
        let token = Tensor::new(&tokens[i..=i], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs: Vec<f32> = reference(&token, i).flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(theirs.len(), 300);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 1e-4, "position {i}: {ours} is not {theirs}");
        }
    }
}

#[test]
fn qwen_2() {
    let directory = tempfile::tempdir().unwrap();
    let window = json!({"sliding_window": 64, "max_window_layers": 2, "use_sliding_window": false});
    let config = config("qwen2", &window);
    write(directory.path(), &config, (true, false));
    let theirs: qwen2::Config = serde_json::from_value(config).unwrap();
    let mut reference = qwen2::ModelForCausalLM::new(&theirs, weights(directory.path())).unwrap();
    compare(directory.path(), |token, position| reference.forward(token, position).unwrap());
}

#[test]
fn qwen_3() {
    let directory = tempfile::tempdir().unwrap();
    let extra = json!({
        "head_dim": 12, "attention_bias": false, "sliding_window": null, "max_window_layers": 2,
        "use_sliding_window": false, "rope_theta": 1_000_000.0,
    });
    let config = config("qwen3", &extra);
    write(directory.path(), &config, (false, true));
    let theirs: qwen3::Config = serde_json::from_value(config).unwrap();
    let mut reference = qwen3::ModelForCausalLM::new(&theirs, weights(directory.path())).unwrap();
    compare(directory.path(), |token, position| reference.forward(token, position).unwrap());
}

#[test]
fn llama_3() {
    let directory = tempfile::tempdir().unwrap();
    let extra = json!({
        "tie_word_embeddings": false,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    });
    let config = config("llama", &extra);
    write(directory.path(), &config, (false, false));
    let theirs: llama::LlamaConfig = serde_json::from_value(config).unwrap();
    let theirs = theirs.into_config(false);
    let reference = llama::Llama::load(weights(directory.path()), &theirs).unwrap();
    let mut cache = llama::Cache::new(true, DType::F32, &theirs, &Device::Cpu).unwrap();
    compare(directory.path(), |token, position| reference.forward(token, position, &mut cache).unwrap());
}
