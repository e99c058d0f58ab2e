//! A tokenizer from what a GGUF file says of it: the keys `tokenizer.ggml.*`.
//!
//! It is put together as the `tokenizer.json` that Hugging Face's models of its kind have, so one reader serves both.

mod byte_level;
mod sentence_piece;

use serde_json::{Value, json};

use super::Tokenizer;

/// What a GGUF file says of its tokenizer, each value under its key behind `tokenizer.ggml.`.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary {
    /// `model`: `gpt2` for byte-level BPE, `llama` for SentencePiece's BPE.
    pub model: String,
    /// `pre`: by what rule text is split before the merges; for byte-level BPE.
    pub pre: Option<String>,
    /// `tokens`: by id.
    pub tokens: Vec<String>,
    /// `token_type`: by id. All are normal where this is empty.
    pub types: Vec<u64>,
    /// `scores`: by id; for SentencePiece.
    pub scores: Vec<f32>,
    /// `merges`: pairs with a space between, the most frequent first; for byte-level BPE.
    pub merges: Vec<String>,
    /// `bos_token_id`: begins a text, where `add_bos` says so.
    pub bos: Option<u32>,
    /// `eos_token_id`: ends a text.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`: a text begins as if a space were before it; for SentencePiece.
    pub add_space_prefix: Option<bool>,
}

/// What `token_type` says of a token (`llama_token_type` in `llama.h`).
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const NORMAL: u64 = 1;

impl GgufVocabulary {
    fn kind(&self, id: usize) -> u64 {
        self.types.get(id).copied().unwrap_or(NORMAL)
    }

    fn token(&self, id: u32) -> Result<&str, String> {
        let token = self.tokens.get(id as usize).map(String::as_str);
        token.ok_or_else(|| format!("the token id {id} is beyond the {} tokens", self.tokens.len()))
    }

    fn check(&self) -> Result<(), String> {
        for (key, len) in [("token_type", self.types.len()), ("scores", self.scores.len())] {
            if len != 0 && len != self.tokens.len() {
                return Err(format!("\"{key}\" has {len} values for {} tokens", self.tokens.len()));
            }
        }
        let too_many = u32::try_from(self.tokens.len()).is_err();
        if too_many || self.tokens.is_empty() {
            Err("\"tokens\" is empty or too long".into())
        } else {
            Ok(())
        }
    }

    /// Ids by token. Of tokens written the same the first counts, as for all who look one up.
    fn vocabulary(&self) -> serde_json::Map<String, Value> {
        let mut vocabulary = serde_json::Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            vocabulary.entry(token.as_str()).or_insert_with(|| id.into());
        }
        vocabulary
    }

    /// Tokens that are found in a text before anything else is done to it; the special ones are marked so.
    fn added_tokens(&self) -> Vec<Value> {
        let added = self.tokens.iter().enumerate().filter(|(id, token)| {
            !token.is_empty() && matches!(self.kind(*id), UNKNOWN | CONTROL | USER_DEFINED)
        });
        added
            .map(|(id, token)| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": self.kind(id) != USER_DEFINED,
                })
            })
            .collect()
    }

    /// What is added before and after a text.
    fn post_processor(&self, bos_by_default: bool) -> Result<Value, String> {
        let ends =
            [(self.bos, self.add_bos.unwrap_or(bos_by_default)), (self.eos, self.add_eos.unwrap_or(false))];
        let [bos, eos] = ends.map(|(id, is_added)| id.filter(|_| is_added));
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let piece = |id: Option<u32>| {
            let token = id.map(|id| self.token(id)).transpose()?;
            Ok::<_, String>(token.map(|token| json!({"SpecialToken": {"id": token, "type_id": 0}})))
        };
        let text = |name: &str| Some(json!({"Sequence": {"id": name, "type_id": 0}}));
        let join = |pieces: Vec<Option<Value>>| pieces.into_iter().flatten().collect::<Vec<_>>();
        let (before, after) = (piece(bos)?, piece(eos)?);
        let mut special = serde_json::Map::new();
        for id in [bos, eos].into_iter().flatten() {
            let token = self.token(id)?;
            special.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        }
        Ok(json!({
            "type": "TemplateProcessing",
            "single": join(vec![before.clone(), text("A"), after.clone()]),
            "pair": join(vec![before, text("A"), text("B"), after]),
            "special_tokens": special,
        }))
    }
}

/// What differs between the two kinds of tokenizer.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    bos_by_default: bool,
}

impl Tokenizer {
    /// The tokenizer of a GGUF file. Its hash is that of the `tokenizer.json` that it amounts to.
    ///
    /// # Errors
    /// Where the kind of tokenizer or the rule that splits text is not known, or the values do not fit each other.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self, String> {
        vocabulary.check()?;
        let parts = match vocabulary.model.as_str() {
            "gpt2" => byte_level::parts(vocabulary)?,
            "llama" => sentence_piece::parts(vocabulary)?,
            other => return Err(format!("the tokenizer \"{other}\" is not supported (only gpt2 and llama)")),
        };
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": vocabulary.added_tokens(),
            "normalizer": parts.normalizer,
            "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": vocabulary.post_processor(parts.bos_by_default)?,
            "decoder": parts.decoder,
            "model": parts.model,
        });
        let mut tokenizer = Self::from_bytes(json.to_string().as_bytes())?;
        if let Some(eos) = vocabulary.eos {
            vocabulary.token(eos)?;
            tokenizer.eos = Some(eos);
        }
        Ok(tokenizer)
    }
}
