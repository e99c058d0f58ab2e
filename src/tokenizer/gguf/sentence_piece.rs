use std::collections::HashMap;

use serde_json::{Value, json};

use super::{GgufVocabulary, NORMAL, Parts};

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// SentencePiece's BPE with bytes for what has no token, as Llama 2 has it.
pub(super) fn parts(vocabulary: &GgufVocabulary) -> Result<Parts, String> {
    if vocabulary.scores.is_empty() {
        return Err("it has no scores, which a SentencePiece tokenizer needs".into());
    }
    let has_prefix = vocabulary.add_space_prefix.unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prefix = has_prefix.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let normalizers: Vec<Value> = prefix.into_iter().chain([spaces]).collect();
    let strip = has_prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders: Vec<Value> = [
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ]
    .into_iter()
    .chain(strip)
    .collect();
    let unknown = vocabulary.unknown.map(|id| vocabulary.token(id)).transpose()?;
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary.vocabulary(),
            "merges": merges(vocabulary),
        }),
        bos_by_default: true,
    })
}

/// SentencePiece joins, of all neighbours that make a token, those whose token has the highest score: so every way to
/// cut a token in two tokens is a merge, those of high scores first.
fn merges(vocabulary: &GgufVocabulary) -> Vec<[&str; 2]> {
    let normal = |id: &usize| vocabulary.kind(*id) == NORMAL;
    let ids: HashMap<&str, usize> =
        (0..vocabulary.tokens.len()).rev().filter(normal).map(|id| (&*vocabulary.tokens[id], id)).collect();
    let mut merges = Vec::new();
    for (&token, &id) in &ids {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let cuts =
            cuts.filter_map(|(left, right)| Some(((id, *ids.get(left)?, *ids.get(right)?), [left, right])));
        merges.extend(cuts);
    }
    let score = |id: usize| vocabulary.scores.get(id).copied().unwrap_or_default();
    merges.sort_by(|(a, _), (b, _)| score(b.0).total_cmp(&score(a.0)).then(a.cmp(b)));
    merges.into_iter().map(|(_, merge)| merge).collect()
}
