//! A SCONE model directory with random weights: small, but whole, and its identities fit.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use scone::fgram::{FgramSet, Policy, rank_order};
use scone::kernels::Pool;
use scone::model::{
    Config, FgramConfig, FgramModel, MainModel, ModelDirectory, Runtime, SconeConfig, Shard, WeightType,
    build_table, write_weights,
};
use scone::table::{RowFormat, RowType};
use scone::tokenizer::{Tokenizer, train_bpe};

/// A text with phrases that come again and again.
pub fn text() -> String {
    let words = [
        "the sea",
        "of the",
        "a ship",
        "was lost",
        "in the night",
        "and the wind",
        "held its breath",
        "never",
    ];
    let mut state = 1u32;
    let mut text = String::new();
    for _ in 0..1500 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(words[(state >> 28) as usize % words.len()]);
        text.push(if state >> 24 & 7 == 0 { '.' } else { ' ' });
    }
    text
}

pub fn config(vocab_size: usize, layers: usize) -> Config {
    Config {
        model_type: "llama".into(),
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: layers,
        num_attention_heads: 4,
        num_key_value_heads: Some(2),
        head_dim: Some(8),
        vocab_size,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        attention_bias: false,
        rope_scaling: None,
    }
}

/// Makes parameters of any name and shape: norms near 1, the rest normal-like, always the same for a seed.
fn random(seed: u64, into: &mut BTreeMap<String, Tensor>) -> impl FnMut(&str, &[usize]) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    move |name, shape| {
        let norm = name.ends_with("norm.weight");
        let data: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|_| {
                let x: f32 = (0..4).map(|_| rng.random::<f32>() - 0.5).sum();
                if norm { 1.0 + 0.2 * x } else { 0.4 * x }
            })
            .collect();
        let tensor = Tensor::from_vec(data, shape, &Device::Cpu).unwrap();
        into.insert(name.to_owned(), tensor.clone());
        tensor
    }
}

fn write_json(path: &Path, value: &serde_json::Value) {
    std::fs::write(path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
}

/// The 300 most frequent n-grams of up to 4 tokens of the text, counted naively.
pub fn fgrams(tokenizer: &Tokenizer) -> FgramSet {
    let tokens = tokenizer.encode(&text()).unwrap();
    let mut counts: HashMap<&[u32], u64> = HashMap::new();
    for n in 2..=4 {
        for gram in tokens.windows(n) {
            *counts.entry(gram).or_default() += 1;
        }
    }
    let mut ranked: Vec<(&[u32], u64)> = counts.into_iter().collect();
    ranked.sort_by(|&a, &b| rank_order(a, b));
    ranked.truncate(300);
    let policy = Policy {
        max_n: 4,
        special_tokens: tokenizer.special_tokens().to_vec(),
        tokenizer_sha256: tokenizer.sha256().to_owned(),
    };
    FgramSet::from_ranked(policy, ranked).unwrap()
}

/// Writes the directory, weights in f32, and its table of the given type.
pub fn write(directory: &Path, seed: u64, row_type: RowType) -> ModelDirectory {
    std::fs::create_dir_all(directory.join("fgram_model")).unwrap();
    let file = directory.join("tokenizer.json");
    train_bpe([text()].into_iter(), 300, &file).unwrap();
    let tokenizer = Tokenizer::from_file(&file).unwrap();
    let set = fgrams(&tokenizer);

    let main = config(tokenizer.vocab_size(), 3);
    write_json(&directory.join("config.json"), &serde_json::to_value(&main).unwrap());
    let mut tensors = BTreeMap::new();
    let mut get = random(seed, &mut tensors);
    MainModel::new(&main, &mut |name, shape| Ok(get(name, shape))).unwrap();
    drop(get);
    write_weights(&directory.join("model.safetensors"), &tensors, WeightType::F32).unwrap();

    let fgram = FgramConfig {
        decoder: Config { max_position_embeddings: 4, ..config(tokenizer.vocab_size(), 2) },
        residual_output: true,
        own_embedding: false,
        output_size: None,
    };
    write_json(&directory.join("fgram_model/config.json"), &serde_json::to_value(&fgram).unwrap());
    let mut tensors = BTreeMap::new();
    let mut get = random(seed + 1, &mut tensors);
    FgramModel::new(&fgram, &mut |name, shape| Ok(get(name, shape))).unwrap();
    drop(get);
    write_weights(&directory.join("fgram_model/model.safetensors"), &tensors, WeightType::F32).unwrap();

    let scone = SconeConfig {
        max_n: 4,
        fgrams_sha256: set.sha256(),
        table: "table.safetensors".into(),
        baseline: None,
        adapters: Vec::new(),
    };
    write_json(&directory.join("scone.json"), &serde_json::to_value(scone).unwrap());
    let opened = ModelDirectory::open(directory).unwrap();
    let format = RowFormat::packed(row_type, opened.config().hidden_size);
    let table = directory.join("table.safetensors");
    build_table(&opened, &set, format, Shard::WHOLE, &table, &candle_core::Device::Cpu, &mut |_| {}).unwrap();
    opened
}

/// Two threads, and room for so many positions.
pub fn runtime(positions: usize) -> Runtime {
    Runtime::new(Arc::new(Pool::new(2).unwrap()), positions)
}
