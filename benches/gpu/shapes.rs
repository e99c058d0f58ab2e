//! Models of random weights, of the shapes that are measured.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use scone::model::{Checkpoint, Config, WeightType, write_weights};
use serde_json::json;

/// Name, width, feed-forward width, layers, heads, key heads. 135M is SmolLM2's; 1.3B and 1.9B are of the sizes of the
/// paper's table 5.
pub(crate) const SHAPES: [(&str, [usize; 5]); 5] = [
    ("tiny", [64, 192, 2, 4, 2]),
    ("135M", [576, 1536, 30, 9, 3]),
    ("1B", [2048, 5632, 22, 32, 8]),
    ("1.3B", [2048, 5632, 24, 16, 16]),
    ("1.9B", [2048, 8192, 30, 32, 8]),
];

const CONTEXT: usize = 2048;

/// The shape of a name, if there is one.
pub(crate) fn shape(name: &str) -> Option<[usize; 5]> {
    SHAPES.iter().find(|(known, _)| *known == name).map(|(_, sizes)| *sizes)
}

/// A config.json of a shape.
pub(crate) fn config_json([d, ffn, layers, heads, kv_heads]: [usize; 5], vocabulary: usize) -> String {
    let text = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": d,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "tie_word_embeddings": true, "hidden_act": "silu", "dtype": "bfloat16",
    });
    format!("{text:#}\n")
}

/// Random weights of a shape in bf16, in a file.
pub(crate) fn weights(config: &Config, directory: &Path) -> Checkpoint {
    let (d, ffn, head) = (config.hidden_size, config.intermediate_size, config.head());
    let (q, kv) = (config.num_attention_heads * head, config.kv_heads() * head);
    let matrix = |rows, columns| {
        let numbers = Tensor::rand(-0.02f32, 0.02, (rows, columns), &Device::Cpu).expect("memory");
        numbers.to_dtype(DType::BF16).expect("memory")
    };
    let ones = || Tensor::ones(d, DType::BF16, &Device::Cpu).expect("memory");
    let mut all = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), matrix(config.vocab_size, d)),
        ("model.norm.weight".to_owned(), ones()),
    ]);
    for i in 0..config.num_hidden_layers {
        let name = |part: &str| format!("model.layers.{i}.{part}.weight");
        for (part, rows, columns) in [
            ("self_attn.q_proj", q, d),
            ("self_attn.k_proj", kv, d),
            ("self_attn.v_proj", kv, d),
            ("self_attn.o_proj", d, q),
            ("mlp.gate_proj", ffn, d),
            ("mlp.up_proj", ffn, d),
            ("mlp.down_proj", d, ffn),
        ] {
            all.insert(name(part), matrix(rows, columns));
        }
        all.insert(name("input_layernorm"), ones());
        all.insert(name("post_attention_layernorm"), ones());
    }
    write_weights(&directory.join("model.safetensors"), &all, WeightType::Bf16).expect("a file");
    Checkpoint::open(directory).expect("the file")
}

/// Writes a model of a shape for other programs: its tokenizer is that of the repository's models, of 8,192 tokens.
pub(crate) fn write_model(sizes: [usize; 5], vocabulary: usize, directory: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("model_cards/default-baseline");
    std::fs::create_dir_all(directory).expect("a directory");
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        // Where the program was built need not be where it runs.
        let here = Path::new("model_cards/default-baseline").join(file);
        let from = if here.exists() { here } else { from.join(file) };
        std::fs::copy(from, directory.join(file)).expect("the tokenizer of model_cards/default-baseline");
    }
    let text = config_json(sizes, vocabulary);
    std::fs::write(directory.join("config.json"), &text).expect("a file");
    weights(&Config::parse(&text).expect("a shape"), directory);
}
