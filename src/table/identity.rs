use serde::{Deserialize, Serialize};

/// What a table was made of: it is good for exactly these four and for nothing else.
///
/// Each is a SHA-256 in lower-case hexadecimal. A program that uses a table compares them with its model's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Of the `tokenizer.json`.
    pub tokenizer: String,
    /// Of the token embedding `T`.
    pub token_embedding: String,
    /// Of the f-gram model `A_f`.
    pub fgram_model: String,
    /// Of the f-gram set `V_f`, see [`fgram::identity`](crate::fgram::identity).
    pub fgrams: String,
}

impl Identity {
    /// Which of the four differ, in words for a message; none if the two are the same.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        self.parts()
            .into_iter()
            .zip(other.parts())
            .filter(|((_, _, ours), (_, _, theirs))| ours != theirs)
            .map(|((_, name, _), _)| name)
            .collect()
    }

    /// The key in a table's metadata, the name in messages and the hash, of each of the four.
    pub(super) fn parts(&self) -> [(&'static str, &'static str, &str); 4] {
        [
            ("tokenizer_sha256", "tokenizer", &self.tokenizer),
            ("token_embedding_sha256", "token embedding", &self.token_embedding),
            ("fgram_model_sha256", "f-gram model", &self.fgram_model),
            ("fgrams_sha256", "f-gram set", &self.fgrams),
        ]
    }

    /// The first of the four that is not a SHA-256 in lower-case hexadecimal, by its key in the metadata.
    pub(super) fn malformed(&self) -> Option<&'static str> {
        let is_sha256 =
            |hash: &str| hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        self.parts().into_iter().find(|(_, _, hash)| !is_sha256(hash)).map(|(key, _, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_differs() {
        let hash = |c: char| c.to_string().repeat(64);
        let one = Identity {
            tokenizer: hash('1'),
            token_embedding: hash('2'),
            fgram_model: hash('3'),
            fgrams: hash('4'),
        };
        assert!(one.differences(&one).is_empty());
        let other = Identity { token_embedding: hash('5'), fgrams: hash('6'), ..one.clone() };
        assert_eq!(one.differences(&other), ["token embedding", "f-gram set"]);
        assert_eq!(one.malformed(), None);
        assert_eq!(Identity { fgram_model: "A".repeat(64), ..one }.malformed(), Some("fgram_model_sha256"));
    }
}
