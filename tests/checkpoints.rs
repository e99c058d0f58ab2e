//! Weights in every form that is read: what comes out is what candle and safetensors have put in, by Hugging Face's names
//! and in its order of rows. What is wrong with a file is named.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/gguf.rs"]
mod gguf;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};
use gguf::{Made, config, make, shapes, write};
use scone::kernels::Encoding;
use scone::model::{Checkpoint, Config, ModelDirectory, RopeScaling, WeightType, write_weights};
use serde_json::json;

type Metadata = Vec<(String, Value)>;

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// How far the checkpoint's tensors are from the model's, as a share of the largest number.
fn difference(checkpoint: &Checkpoint, made: &Made) -> f32 {
    let mut largest = 0f32;
    for (name, shape) in shapes(&made.config) {
        let read = checkpoint.tensor(&name, &shape, &Device::Cpu).unwrap();
        assert_eq!(read.dims(), shape);
        let (read, put) = (numbers(&read), numbers(&made.tensors[&name]));
        largest = read.iter().zip(&put).fold(largest, |largest, (a, b)| largest.max((a - b).abs()));
    }
    largest
}

fn message<T>(result: Result<T, impl std::fmt::Display>) -> String {
    result.err().unwrap().to_string()
}

#[test]
fn a_directory_gives_what_was_put_there_in_every_dtype_and_in_shards() {
    let made = make(config("llama", 32));
    let directory = tempfile::tempdir().unwrap();
    for (dtype, encoding, most) in [
        (WeightType::F32, Encoding::F32, 0.0),
        (WeightType::F16, Encoding::F16, 5e-4),
        (WeightType::Bf16, Encoding::Bf16, 4e-3),
    ] {
        made.write_directory(directory.path(), dtype);
        let whole = Checkpoint::open(directory.path()).unwrap();
        assert!(difference(&whole, &made) <= most, "{dtype:?}: {}", difference(&whole, &made));
        let stored = whole.stored("model.layers.1.mlp.down_proj.weight", &[32, 64]).unwrap();
        assert_eq!((stored.encoding, stored.rows, stored.columns), (encoding, 32, 64));
        assert_eq!(stored.bytes.len(), encoding.bytes(32 * 64).unwrap());

        let sharded = tempfile::tempdir().unwrap();
        write_shards(&made, sharded.path(), dtype);
        let shards = Checkpoint::open(sharded.path()).unwrap();
        assert_eq!(difference(&shards, &made), difference(&whole, &made));
        // The hash is of the tensors, however they are spread over files.
        assert_eq!(shards.sha256("x"), whole.sha256("x"));
        let name = "model.embed_tokens.weight";
        assert_eq!(shards.tensor_sha256(name).unwrap(), whole.tensor_sha256(name).unwrap());
    }
}

/// Three shards, the tensors dealt out in turn.
fn write_shards(made: &Made, directory: &Path, dtype: WeightType) {
    let mut shards = vec![BTreeMap::new(); 3];
    let mut map = BTreeMap::new();
    for (i, (name, tensor)) in made.tensors.iter().enumerate() {
        shards[i % 3].insert(name.clone(), tensor.clone());
        map.insert(name.clone(), format!("model-{:05}-of-00003.safetensors", i % 3 + 1));
    }
    for (i, shard) in shards.iter().enumerate() {
        write_weights(&directory.join(format!("model-{:05}-of-00003.safetensors", i + 1)), shard, dtype)
            .unwrap();
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(directory.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn what_is_wrong_with_shards_is_named() {
    let made = make(config("llama", 32));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert!(message(Checkpoint::open(path)).contains("no weights here"));
    std::fs::write(path.join("pytorch_model.bin"), "").unwrap();
    assert!(message(Checkpoint::open(path)).contains("save them as safetensors"));
    write_shards(&made, path, WeightType::F32);
    let (shard, index) =
        (path.join("model-00002-of-00003.safetensors"), path.join("model.safetensors.index.json"));
    let good = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &good[..good.len() - 1]).unwrap();
    let why = message(Checkpoint::open(path));
    assert!(
        why.contains("model-00002-of-00003.safetensors: not a valid safetensors file, or cut off"),
        "{why}"
    );
    std::fs::remove_file(&shard).unwrap();
    let why = message(Checkpoint::open(path));
    assert!(
        why.contains("index.json: the shard model-00002-of-00003.safetensors that it names is missing"),
        "{why}"
    );
    std::fs::write(&shard, &good).unwrap();
    let text = std::fs::read_to_string(&index).unwrap();
    for (from, to, expected) in [
        ("\"lm_head.weight\"", "\"head.weight\"", "the tensor \"head.weight\" is missing, which"),
        ("model-00001-of", "../model-00001-of", "is no plain file name"),
        ("weight_map", "map", "missing field `weight_map`"),
    ] {
        std::fs::write(&index, text.replace(from, to)).unwrap();
        let why = message(Checkpoint::open(path));
        assert!(why.contains(expected), "{why}");
    }
}

#[test]
fn a_gguf_file_gives_what_candle_wrote_in_every_encoding() {
    let made = make(config("llama", 256));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    for (dtype, encoding) in [
        (GgmlDType::F32, Encoding::F32),
        (GgmlDType::F16, Encoding::F16),
        (GgmlDType::BF16, Encoding::Bf16),
        (GgmlDType::Q8_0, Encoding::Q8_0),
        (GgmlDType::Q4_0, Encoding::Q4_0),
        (GgmlDType::Q4_1, Encoding::Q4_1),
        (GgmlDType::Q4K, Encoding::Q4K),
        (GgmlDType::Q6K, Encoding::Q6K),
    ] {
        made.write_gguf(&path, dtype);
        let checkpoint = Checkpoint::open(&path).unwrap();
        // Rows are quantised one by one, so whole rows that moved are the same rows.
        let quantized = made.tensors.iter().map(|(name, tensor)| {
            let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
            let tensor = candle_core::quantized::QTensor::quantize(tensor, dtype).unwrap();
            (name.clone(), tensor.dequantize(&Device::Cpu).unwrap())
        });
        let twin =
            Made { tensors: quantized.collect(), config: made.config.clone(), tokenizer: String::new() };
        let difference = difference(&checkpoint, &twin);
        assert!(difference <= 1e-6, "{dtype:?}: {difference}");
        let stored = checkpoint.stored("model.layers.0.self_attn.k_proj.weight", &[128, 256]).unwrap();
        assert_eq!((stored.encoding, stored.rows, stored.columns), (encoding, 128, 256));
        assert_eq!(checkpoint.stored("model.norm.weight", &[256]).unwrap().encoding, Encoding::F32);
    }
}

#[test]
fn every_architecture_gives_the_config_and_tensors_of_its_directory() {
    let llama3 = RopeScaling::Linear { factor: 4.0 };
    for config in [
        config("llama", 32),
        Config { tie_word_embeddings: true, ..config("llama", 32) },
        Config { attention_bias: true, ..config("llama", 32) },
        Config { rope_scaling: Some(llama3), ..config("llama", 32) },
        Config { rope_theta: 1e6, ..config("qwen2", 32) },
        Config { head_dim: Some(16), ..config("qwen3", 32) },
        Config { num_key_value_heads: Some(4), attention_bias: true, ..config("qwen3", 32) },
    ] {
        let made = make(config);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        let mut metadata = made.metadata();
        if let Some(RopeScaling::Linear { factor }) = made.config.rope_scaling {
            metadata.push(("llama.rope.scaling.type".into(), Value::String("linear".into())));
            metadata.push(("llama.rope.scaling.factor".into(), Value::F32(factor as f32)));
        }
        write(&path, &metadata, &made.quantized(GgmlDType::F32));
        let from_gguf = ModelDirectory::open(&path).unwrap();
        made.write_directory(&directory.path().join("hf"), WeightType::F32);
        let from_directory = ModelDirectory::open(&directory.path().join("hf")).unwrap();
        let rounded = Config { rms_norm_eps: f64::from(1e-5f32), ..from_directory.config().clone() };
        assert_eq!(*from_gguf.config(), rounded);
        assert_eq!(difference(from_gguf.weights(), &made), 0.0, "{:?}", made.config);
        assert_eq!(difference(from_directory.weights(), &made), 0.0);
    }
}

#[test]
fn what_is_wrong_with_a_gguf_file_is_named() {
    let made = make(config("llama", 32));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let with = |change: &dyn Fn(&mut Metadata), dtype: GgmlDType| {
        let mut metadata = made.metadata();
        change(&mut metadata);
        write(&path, &metadata, &made.quantized(dtype));
        ModelDirectory::open(&path)
    };
    let set = |key: &'static str, value: Value| {
        move |metadata: &mut Metadata| {
            metadata.retain(|(name, _)| name != key);
            metadata.push((key.to_owned(), value.clone()));
        }
    };
    let text = |text: &str| Value::String(text.into());
    for (key, value, expected) in [
        ("general.architecture", text("gemma2"), "\"gemma2\" is not supported (only llama, qwen2, qwen3)"),
        ("llama.rope.scaling.type", text("yarn"), "\"yarn\" is not supported"),
        ("llama.expert_count", Value::U32(8), "mixtures of experts are not supported"),
        ("llama.rope.dimension_count", Value::U32(4), "other than a head's 8 features"),
        ("llama.attention.head_count", Value::U32(3), "no multiple"),
        ("llama.attention.head_count", text("x"), "\"llama.attention.head_count\" is not a whole number"),
        ("llama.attention.key_length", Value::U32(0), "do not give an even head"),
        ("llama.logit_scale", Value::F32(2.0), "\"llama.logit_scale\" is not supported"),
        ("split.count", Value::U16(2), "merge them"),
        ("general.alignment", Value::U32(0), "out of range"),
        ("tokenizer.ggml.model", text("bert"), "its tokenizer: the tokenizer \"bert\" is not supported"),
        (
            "tokenizer.ggml.pre",
            text("other"),
            "the rule \"other\" that splits its text is not supported (only gpt-2",
        ),
        ("tokenizer.ggml.eos_token_id", Value::U32(290), "the token id 290 is beyond the 290 tokens"),
        ("tokenizer.ggml.merges", Value::Array(vec![text("a")]), "the merge \"a\" is no pair"),
        (
            "tokenizer.ggml.token_type",
            Value::Array(vec![Value::I32(1)]),
            "\"token_type\" has 1 values for 290 tokens",
        ),
    ] {
        let why = message(with(&set(key, value), GgmlDType::F32));
        assert!(why.contains(expected) && why.contains("model.gguf"), "{key}: {why}");
    }
    let without = |key: &'static str| move |metadata: &mut Metadata| metadata.retain(|(name, _)| name != key);
    for key in ["llama.context_length", "llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.tokens"] {
        let why = message(with(&without(key), GgmlDType::F32));
        assert!(why.contains(&format!("\"{key}\" is missing")), "{why}");
    }

    let opened = with(&|_| {}, GgmlDType::Q5_0).unwrap();
    let why = message(opened.weights().stored("model.layers.0.mlp.up_proj.weight", &[64, 32]));
    let expected =
        "\"blk.0.ffn_up.weight\" is Q5_0, not supported; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K are";
    assert!(why.contains(expected), "{why}");
    let why = message(opened.weights().stored("model.layers.2.mlp.up_proj.weight", &[64, 32]));
    assert!(why.contains("model.gguf: the tensor \"blk.2.ffn_up.weight\" is missing"), "{why}");
    let why = message(opened.weights().stored("model.norm.weight", &[64]));
    assert!(why.contains("\"output_norm.weight\" has shape [32], its metadata asks for [64]"), "{why}");

    made.write_gguf(&path, GgmlDType::Q8_0);
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, &good[..good.len() - 40]).unwrap();
    let why = message(Checkpoint::open(&path));
    assert!(why.contains("lies beyond the file's") && why.contains("download it again"), "{why}");
    std::fs::write(&path, &good[..100]).unwrap();
    assert!(message(Checkpoint::open(&path)).contains("ends within its header"));
    let mut other = good;
    other[4] = 1;
    std::fs::write(&path, &other).unwrap();
    assert!(message(Checkpoint::open(&path)).contains("GGUF of version 1 is not supported"));
}

#[test]
fn factors_in_a_gguf_file_turn_as_llama_3_does() {
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let config = Config { head_dim: Some(64), rope_theta: 500_000.0, ..config("llama", 32) };
    let made = make(config.clone());
    // As llama.cpp's converter computes them (`Llama3` in `convert_hf_to_gguf.py`).
    let factors: Vec<f32> = (0..32)
        .map(|i| {
            let wave = std::f64::consts::TAU * 500_000f64.powf(f64::from(i) / 32.0);
            let (long, short) = (8192.0 / 1.0, 8192.0 / 4.0);
            let smooth = (8192.0 / wave - 1.0) / (4.0 - 1.0);
            let factor = match wave {
                _ if wave < short => 1.0,
                _ if wave > long => 32.0,
                _ => 1.0 / ((1.0 - smooth) / 32.0 + smooth),
            };
            factor as f32
        })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let mut tensors = made.quantized(GgmlDType::F32);
    let factors = Tensor::from_vec(factors, 32, &Device::Cpu).unwrap();
    let factors = candle_core::quantized::QTensor::quantize(&factors, GgmlDType::F32).unwrap();
    tensors.push(("rope_freqs.weight".into(), factors));
    write(&path, &made.metadata(), &tensors);
    let found = Config::from_gguf(&Checkpoint::open(&path).unwrap()).unwrap().inverse_frequencies();
    let expected = Config { rope_scaling: Some(scaling), ..config }.inverse_frequencies();
    assert_eq!(found.len(), 32);
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() <= 2e-6 * b, "{a} {b}");
    }
}
