use serde::Serialize;

use super::Table;
use crate::tokenizer::{Decoder, Tokenizer};

/// A token and its match.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// The token.
    pub id: u32,
    /// Its text; that of a character made of several tokens is with the last of them.
    pub text: String,
    /// The length of the longest f-gram that ends with it: 2 to K, 1 where there is none, 0 for a special token.
    #[serde(rename = "match")]
    pub length: u8,
    /// The f-gram's text.
    pub fgram: Option<String>,
    /// The f-gram's tokens.
    pub fgram_tokens: Option<Vec<u32>>,
    /// The f-gram's row in the table, which is its rank from 0.
    pub row: Option<u32>,
    /// How often the f-gram was counted in the corpus.
    pub count: Option<u64>,
}

/// What all tokens of a text amount to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Totals {
    /// How many there are.
    pub tokens: usize,
    /// How many end an f-gram.
    pub hits: usize,
    /// The share of these, 0 to 1.
    pub hit_rate: f64,
    /// The mean length of a match, counting as [`Explained::length`] does.
    pub mean_match: f64,
    /// How many tokens have a match of 0, 1, 2, ... tokens.
    pub by_length: Vec<usize>,
}

/// Which f-gram each token of a text matched.
pub fn explain(tokenizer: &Tokenizer, table: &Table, ids: &[u32]) -> Vec<Explained> {
    let index = table.index();
    let mut decoder = Decoder::new(tokenizer);
    let mut tokens: Vec<Explained> = Vec::with_capacity(ids.len());
    for (&id, found) in ids.iter().zip(index.matches(ids, 0)) {
        let special = table.policy().special_tokens.binary_search(&id).is_ok();
        let gram = found.and_then(|found| index.tokens(found.rank));
        tokens.push(Explained {
            id,
            text: decoder.push(id).unwrap_or_default(),
            length: found.map_or(u8::from(!special), |found| found.n),
            fgram: gram.as_ref().map(|gram| tokenizer.decode(gram)),
            fgram_tokens: gram,
            row: found.map(|found| found.rank),
            count: found.map(|found| table.count(found.rank)),
        });
    }
    // A character that the text breaks off in the middle of belongs to its last token.
    if let (Some(last), Some(rest)) = (tokens.last_mut(), decoder.finish()) {
        last.text.push_str(&rest);
    }
    tokens
}

impl Totals {
    /// Of these tokens; the rates of none are 0.
    pub fn of(tokens: &[Explained]) -> Self {
        let longest = tokens.iter().map(|token| usize::from(token.length)).max();
        let mut by_length = vec![0; longest.map_or(0, |longest| longest + 1)];
        for token in tokens {
            by_length[usize::from(token.length)] += 1;
        }
        let hits: usize = by_length.iter().skip(2).sum();
        let matched: usize = by_length.iter().enumerate().map(|(length, count)| length * count).sum();
        let share = |part: usize| part as f64 / tokens.len().max(1) as f64;
        Self { tokens: tokens.len(), hits, hit_rate: share(hits), mean_match: share(matched), by_length }
    }
}
