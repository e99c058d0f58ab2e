//! The YAML that a hub reads. Texts are written as JSON strings, which YAML understands.

use serde_json::Value;

use super::{Card, CardSection};
use crate::train::TextResult;

/// From `---` to `---`.
pub(super) fn render(card: &Card, typed: &CardSection) -> String {
    let mut text = "---\n".to_owned();
    if let Some(license) = &typed.license {
        text += &format!("license: {}\n", quoted(license));
    }
    text += &list("language", &typed.language);
    text += "library_name: scone\npipeline_tag: text-generation\n";
    let tags =
        if card.config.fgram.is_some() { &["scone", "llama", "n-gram"][..] } else { &["scone", "llama"] };
    text += &list("tags", tags);
    text += &index(card, &card.title(typed));
    text + "---\n"
}

fn list(name: &str, values: &[impl AsRef<str>]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let values: String = values.iter().map(|value| format!("- {}\n", quoted(value.as_ref()))).collect();
    format!("{name}:\n{values}")
}

/// `model-index`: what was measured, for machines.
fn index(card: &Card, title: &str) -> String {
    let Some(results) = card.results.as_ref().filter(|results| !results.texts.is_empty()) else {
        return String::new();
    };
    let texts: String = results.texts.iter().map(|(name, found)| entry(name, found)).collect();
    format!("model-index:\n- name: {}\n  results:\n{texts}", quoted(title))
}

fn entry(name: &str, found: &TextResult) -> String {
    let metrics = [
        ("perplexity", "Perplexity", found.perplexity),
        ("perplexity", "Perplexity by the word", found.word_perplexity),
        ("bits_per_byte", "Bits per byte", found.bits_per_byte),
    ];
    let metrics: String = metrics
        .map(|(kind, name, value)| {
            format!("    - type: {kind}\n      name: {name}\n      value: {value:.4}\n")
        })
        .concat();
    let name = quoted(name);
    format!(
        "  - task:\n      type: text-generation\n      name: Text generation\n    dataset:\n      type: {name}\n      \
         name: {name}\n    metrics:\n{metrics}"
    )
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
