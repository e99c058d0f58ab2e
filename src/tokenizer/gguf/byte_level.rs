use serde_json::{Value, json};

use super::{GgufVocabulary, Parts};

/// How text is split before the merges.
struct Split {
    /// What GGUF files call it.
    names: &'static [&'static str],
    /// Each cuts what those before it left: its matches and what lies between them.
    patterns: &'static [&'static str],
    /// A piece that is a token is taken as it is, whatever the merges say.
    ignores_merges: bool,
    /// Characters are composed first.
    composes: bool,
    bos_by_default: bool,
}

/// GPT-2's own pattern.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The rules that are known, each from the `tokenizer.json` of the models it is named after; `default` is llama.cpp's
/// for files that do not say.
const SPLITS: [Split; 6] = [
    Split {
        names: &["gpt-2", "phi-2", "mpt", "olmo"],
        patterns: &[WORDS],
        ignores_merges: false,
        composes: false,
        bos_by_default: false,
    },
    Split {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"],
        patterns: &[r"\p{N}", WORDS],
        ignores_merges: false,
        composes: false,
        bos_by_default: false,
    },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignores_merges: true,
        composes: false,
        bos_by_default: true,
    },
    Split {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignores_merges: false,
        composes: true,
        bos_by_default: false,
    },
    Split {
        names: &["tekken"],
        patterns: &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignores_merges: true,
        composes: false,
        bos_by_default: true,
    },
    Split {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignores_merges: false,
        composes: false,
        bos_by_default: false,
    },
];

/// Byte-level BPE, as GPT-2 has it.
pub(super) fn parts(vocabulary: &GgufVocabulary) -> Result<Parts, String> {
    let pre = vocabulary.pre.as_deref().unwrap_or("default");
    let Some(split) = SPLITS.iter().find(|split| split.names.contains(&pre)) else {
        let known: Vec<_> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
        let known = known.join(", ");
        return Err(format!("the rule \"{pre}\" that splits its text is not supported (only {known})"));
    };
    if vocabulary.merges.is_empty() {
        return Err("it has no merges, which a byte-level tokenizer needs".into());
    }
    let merges = vocabulary.merges.iter().map(|merge| match merge.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => Err(format!("the merge {merge:?} is no pair")),
    });
    let patterns = split.patterns.iter().map(|pattern| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    });
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let pre_tokenizers: Vec<Value> = patterns.chain([byte_level(false)]).collect();
    Ok(Parts {
        normalizer: if split.composes { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": pre_tokenizers}),
        decoder: byte_level(true),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": split.ignores_merges,
            "vocab": vocabulary.vocabulary(),
            "merges": merges.collect::<Result<Vec<_>, _>>()?,
        }),
        bos_by_default: split.bos_by_default,
    })
}
