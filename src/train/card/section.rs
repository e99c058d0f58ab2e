use serde::{Deserialize, Serialize};

/// `[card]`: what no run can know of its model. It changes nothing but the model's README.md.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CardSection {
    /// The heading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What the model is and is for: Markdown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The licence of the weights, by Hugging Face's names (`apache-2.0`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Codes of the text's languages (`en`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub language: Vec<String>,
    /// What the text is and where it comes from: Markdown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// What the model cannot do: Markdown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<String>,
}
