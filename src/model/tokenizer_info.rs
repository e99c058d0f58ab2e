use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::ModelError;
use super::checkpoint::Metadata;

/// What a model says of its tokenizer beside the tokenizer itself: `tokenizer_config.json` and `chat_template.jinja` of a
/// directory, or the keys `tokenizer.*` of a GGUF file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerInfo {
    /// The class that Hugging Face's library reads it with.
    pub class: Option<String>,
    /// What begins a text.
    pub bos: Option<String>,
    /// What ends a text.
    pub eos: Option<String>,
    /// What fills up a batch.
    pub pad: Option<String>,
    /// What stands for what has no token.
    pub unknown: Option<String>,
    /// How a conversation is written out, in Jinja.
    pub chat_template: Option<String>,
}

#[derive(Deserialize)]
struct TokenizerConfig {
    tokenizer_class: Option<String>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    pad_token: Option<Token>,
    unk_token: Option<Token>,
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Described { content: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
    /// Neither: as good as none.
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl Token {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Described { content: text } => text,
        }
    }
}

impl Templates {
    /// The only one, or of several that which is for plain conversations.
    fn plain(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(named) => named.into_iter().find(|one| one.name == "default").map(|one| one.template),
            Self::Other(_) => None,
        }
    }
}

impl TokenizerInfo {
    /// Of a directory; what it does not say is missing.
    pub(super) fn of_directory(directory: &Path) -> Result<Self, ModelError> {
        let file = directory.join("tokenizer_config.json");
        let mut info = match read(&file)? {
            Some(text) => Self::parse(&text).map_err(|why| ModelError::config(&file, why))?,
            None => Self::default(),
        };
        if let Some(template) = read(&directory.join("chat_template.jinja"))? {
            info.chat_template = Some(template);
        }
        Ok(info)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let config = TokenizerConfig::deserialize(value).map_err(|error| error.to_string())?;
        Ok(Self {
            class: config.tokenizer_class,
            bos: config.bos_token.map(Token::text),
            eos: config.eos_token.map(Token::text),
            pad: config.pad_token.map(Token::text),
            unknown: config.unk_token.map(Token::text),
            chat_template: config.chat_template.and_then(Templates::plain),
        })
    }

    /// Of a GGUF file; `name` gives a token's name.
    pub(super) fn of_gguf(
        metadata: &Metadata<'_>,
        name: impl Fn(u32) -> Option<String>,
    ) -> Result<Self, String> {
        let token = |key: &str| {
            let id = metadata.integer(&format!("tokenizer.ggml.{key}_token_id"))?;
            Ok::<_, String>(id.and_then(|id| u32::try_from(id).ok()).and_then(&name))
        };
        Ok(Self {
            class: None,
            bos: token("bos")?,
            eos: token("eos")?,
            pad: token("padding")?,
            unknown: token("unknown")?,
            chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
        })
    }
}

/// The file's text, if there is one.
fn read(file: &Path) -> Result<Option<String>, ModelError> {
    if !file.exists() {
        return Ok(None);
    }
    std::fs::read_to_string(file).map(Some).map_err(ModelError::io(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_templates_come_in_several_forms() {
        let info = TokenizerInfo::parse(
            r#"{"bos_token": null, "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": "<pad>",
                "chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]}"#,
        );
        let info = info.unwrap();
        assert_eq!((info.bos, info.eos.as_deref(), info.pad.as_deref()), (None, Some("</s>"), Some("<pad>")));
        assert_eq!(info.chat_template.as_deref(), Some("b"));
        assert!(TokenizerInfo::parse("{\"eos_token\": 3}").is_err());
    }

    #[test]
    fn a_file_of_its_own_is_the_template() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(TokenizerInfo::of_directory(path).unwrap(), TokenizerInfo::default());
        std::fs::write(path.join("tokenizer_config.json"), r#"{"chat_template": "old"}"#).unwrap();
        std::fs::write(path.join("chat_template.jinja"), "new").unwrap();
        let info = TokenizerInfo::of_directory(path).unwrap();
        assert_eq!(info.chat_template.as_deref(), Some("new"));
        std::fs::write(path.join("tokenizer_config.json"), "{").unwrap();
        let error = TokenizerInfo::of_directory(path).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json"), "{error}");
    }
}
