use super::*;
use serde_json::json;

/// SmolLM2-135M's file, as it is published.
const SMOLLM2: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 0,
  "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
  "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "model_type": "llama",
  "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
  "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 49152}"#;

/// Llama-3.2-1B's.
const LLAMA3: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "head_dim": 64, "hidden_act": "silu",
  "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
  "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
  "tie_word_embeddings": true, "vocab_size": 128256}"#;

/// Qwen2.5-0.5B's.
const QWEN2: &str = r#"{
  "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
  "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
  "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 32768, "tie_word_embeddings": true, "use_mrope": false, "use_sliding_window": false,
  "vocab_size": 151936}"#;

/// Qwen3-0.6B's.
const QWEN3: &str = r#"{
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
  "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
  "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936}"#;

/// Mistral-7B-v0.3's.
const MISTRAL: &str = r#"{
  "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
  "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
  "tie_word_embeddings": false, "vocab_size": 32768}"#;

fn parse(text: &str) -> Config {
    Config::parse(text).unwrap()
}

/// A file with one field set to another value.
fn with(text: &str, field: &str, value: serde_json::Value) -> String {
    let mut fields: serde_json::Value = serde_json::from_str(text).unwrap();
    fields[field] = value;
    fields.to_string()
}

#[test]
fn published_models_have_their_published_numbers_of_parameters() {
    for (text, parameters, flags, head) in [
        (SMOLLM2, 134_515_008, (false, false, false), 64),
        (LLAMA3, 1_235_814_400, (false, false, false), 64),
        (QWEN2, 494_032_768, (true, false, false), 64),
        (QWEN3, 596_049_920, (false, false, true), 128),
        (MISTRAL, 7_248_023_552, (false, false, false), 128),
    ] {
        let config = parse(text);
        assert_eq!(config.parameters(), parameters, "{}", config.model_type);
        assert_eq!((config.qkv_bias(), config.output_bias(), config.qk_norm()), flags);
        assert_eq!(config.head(), head);
    }
    let biased = parse(&with(SMOLLM2, "attention_bias", true.into()));
    assert!(biased.qkv_bias() && biased.output_bias());
    let bare = with(QWEN3, "head_dim", serde_json::Value::Null);
    assert_eq!(parse(&bare).head(), 128, "Qwen 3's default, not width by heads");
}

#[test]
fn what_it_writes_it_reads_and_a_plain_model_needs_no_new_field() {
    let written = |config: &Config| serde_json::to_value(config).unwrap();
    for text in [SMOLLM2, LLAMA3, QWEN2, QWEN3, MISTRAL, &with(SMOLLM2, "attention_bias", true.into())] {
        let config = parse(text);
        assert_eq!(parse(&written(&config).to_string()), config);
    }
    let plain = written(&parse(SMOLLM2));
    assert!(plain.get("rope_scaling").is_none() && plain.get("attention_bias").is_none(), "{plain}");
}

#[test]
fn the_rotary_base_and_scaling_are_read_in_either_spelling() {
    let old = parse(LLAMA3);
    let mut fields: serde_json::Value = serde_json::from_str(LLAMA3).unwrap();
    fields["rope_parameters"] = fields["rope_scaling"].take();
    fields["rope_parameters"]["rope_theta"] = fields["rope_theta"].take();
    assert_eq!(parse(&fields.to_string()), old);
    assert_eq!(old.rope_theta, 500_000.0);

    let plain = parse(SMOLLM2);
    let parameters = json!({"rope_type": "default", "rope_theta": 100_000.0});
    let new = with(&with(SMOLLM2, "rope_theta", 1.into()), "rope_parameters", parameters);
    assert_eq!(parse(&new), plain);
    let linear = with(SMOLLM2, "rope_scaling", json!({"type": "linear", "factor": 2.0}));
    let linear = parse(&linear);
    assert_eq!(linear.rope_scaling, Some(RopeScaling::Linear { factor: 2.0 }));
    let halved = plain.inverse_frequencies().into_iter().map(|angle| angle / 2.0);
    assert_eq!(linear.inverse_frequencies(), halved.collect::<Vec<_>>());
}

#[test]
fn llama_3_scales_as_its_reference_does() {
    // `_compute_llama3_parameters`, in its own steps.
    let (factor, low, high, original) = (32.0, 1.0, 4.0, 8192.0);
    let config = parse(LLAMA3);
    let plain = Config { rope_scaling: None, ..config.clone() }.inverse_frequencies();
    let mut kinds = [0; 3];
    for (&angle, &scaled) in plain.iter().zip(&config.inverse_frequencies()) {
        let wave = std::f64::consts::TAU / f64::from(angle);
        let (kind, expected) = if wave < original / high {
            (0, f64::from(angle))
        } else if wave > original / low {
            (1, f64::from(angle) / factor)
        } else {
            let smooth = (original / wave - low) / (high - low);
            (2, (1.0 - smooth) * f64::from(angle) / factor + smooth * f64::from(angle))
        };
        kinds[kind] += 1;
        assert!((f64::from(scaled) - expected).abs() <= 1e-6 * expected, "{scaled} {expected}");
    }
    assert_eq!(kinds.iter().sum::<i32>(), 32);
    assert!(kinds.iter().all(|&kind| kind > 0), "{kinds:?}");
    assert_eq!(plain[0], 1.0);
    assert!((plain[16] - 500_000f32.powf(-0.5)).abs() < 1e-9);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (text, field, value, expected) in [
        (
            SMOLLM2,
            "model_type",
            json!("gemma2"),
            "\"model_type\": \"gemma2\" is not supported (only \"llama\"",
        ),
        (SMOLLM2, "hidden_act", json!("gelu"), "\"hidden_act\": \"gelu\" is not supported (only \"silu\")"),
        (SMOLLM2, "mlp_bias", json!(true), "\"mlp_bias\": true is not supported (only false)"),
        (SMOLLM2, "num_local_experts", json!(8), "\"num_local_experts\": 8 is not supported"),
        (SMOLLM2, "quantization_config", json!({"quant_method": "gptq"}), "\"quantization_config\""),
        (SMOLLM2, "partial_rotary_factor", json!(0.5), "0.5 is not supported (only 1)"),
        (
            SMOLLM2,
            "rope_scaling",
            json!({"type": "yarn", "factor": 4.0}),
            "the type \"yarn\" is not supported",
        ),
        (SMOLLM2, "rope_scaling", json!({"factor": 4.0}), "does not say its \"rope_type\""),
        (SMOLLM2, "rope_scaling", json!({"type": "linear"}), "missing field `factor`"),
        (SMOLLM2, "rope_scaling", json!({"type": "linear", "factor": 0}), "must be positive"),
        (SMOLLM2, "rope_scaling", json!(3), "is no object"),
        (LLAMA3, "rope_parameters", json!({"full_attention": {"rope_theta": 1.0}}), "differs by layer"),
        (MISTRAL, "sliding_window", json!(4096), "\"sliding_window\": 4096 is not supported"),
        (QWEN2, "layer_types", json!(["full_attention", "sliding_attention"]), "\"sliding_attention\""),
        (SMOLLM2, "num_attention_heads", json!(0), "out of range"),
        (SMOLLM2, "head_dim", json!(7), "cannot be rotated"),
        (SMOLLM2, "num_key_value_heads", json!(4), "is no multiple"),
        (SMOLLM2, "rms_norm_eps", json!(0.0), "must be positive"),
    ] {
        let why = Config::parse(&with(text, field, value.clone())).unwrap_err();
        assert!(why.contains(expected), "{field}: {value}: {why}");
    }
    assert!(Config::parse("[]").is_err());
    assert!(Config::parse("3").is_err());
    assert!(Config::parse("{").unwrap_err().contains("not JSON"));
    let windowed = with(QWEN2, "use_sliding_window", true.into());
    assert!(Config::parse(&windowed).is_ok(), "in use from a layer on that is not there");
    assert!(
        Config::parse(&with(&with(&windowed, "max_window_layers", 12.into()), "sliding_window", 4096.into()))
            .is_err()
    );
}
