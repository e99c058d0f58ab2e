use std::f64::consts::LN_2;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Client;

/// How well a target predicts a text, measured through its endpoint.
///
/// The text is cut into pieces, each a request of its own (`echo`, `max_tokens: 0`, `logprobs: 0`). The first token
/// of a piece has no context and is not scored. Bits per byte are over the UTF-8 bytes of the tokens that were.
#[derive(Clone, Debug, Serialize)]
pub struct Quality {
    /// Pieces that were sent.
    pub pieces: usize,
    /// Tokens that were scored.
    pub tokens: usize,
    /// Their UTF-8 bytes.
    pub bytes: usize,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
    /// `exp(nll)`. Two targets' are comparable only where their tokenizers are the same.
    pub perplexity: f64,
    /// Bits a byte: comparable between tokenizers.
    pub bits_per_byte: f64,
}

/// What a piece adds to a [`Quality`].
#[derive(Debug, PartialEq)]
struct Score {
    tokens: usize,
    bytes: usize,
    nll: f64,
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Logprobs {
    token_logprobs: Vec<Option<f64>>,
    /// In characters of the text that was echoed.
    text_offset: Vec<usize>,
}

/// Scores the pieces one after another.
///
/// # Errors
/// In words, at the first piece that the target does not score: a mean over other pieces than another target's
/// would say nothing.
pub(super) async fn measure(
    client: &Client,
    pieces: &[&str],
    patience: Duration,
    done: impl Fn(),
) -> Result<Quality, String> {
    let mut sum = Score { tokens: 0, bytes: 0, nll: 0.0 };
    for (number, piece) in pieces.iter().enumerate() {
        let failed = |why: String| format!("piece {} of {} was not scored: {why}", number + 1, pieces.len());
        let body = json!({"prompt": piece, "echo": true, "max_tokens": 0, "logprobs": 0, "temperature": 0});
        let answer = client.completion(body, patience).await.map_err(|failure| failed(failure.message))?;
        let answer = serde_json::from_value(answer).map_err(|error| failed(error.to_string()))?;
        let score = score(piece, answer).map_err(failed)?;
        sum.tokens += score.tokens;
        sum.bytes += score.bytes;
        sum.nll += score.nll;
        done();
    }
    if sum.tokens == 0 || sum.bytes == 0 {
        return Err("the text has no token to score".to_owned());
    }
    let nll = sum.nll / sum.tokens as f64;
    Ok(Quality {
        pieces: pieces.len(),
        tokens: sum.tokens,
        bytes: sum.bytes,
        nll,
        perplexity: nll.exp(),
        bits_per_byte: sum.nll / LN_2 / sum.bytes as f64,
    })
}

fn score(piece: &str, answer: Answer) -> Result<Score, String> {
    let choice = answer.choices.into_iter().next().ok_or("the answer has no choice")?;
    let logprobs = choice.logprobs.ok_or("the answer has no logprobs")?;
    // Only the first token may be without one, for want of context.
    let unscored = logprobs.token_logprobs.iter().take_while(|logprob| logprob.is_none()).count();
    if unscored > 1 {
        return Err(format!("the first {unscored} tokens have no log-probability"));
    }
    let scored = logprobs.token_logprobs.get(unscored..).unwrap_or_default();
    let Some(offset) = logprobs.text_offset.get(unscored).copied() else {
        return Ok(Score { tokens: 0, bytes: 0, nll: 0.0 });
    };
    let start = piece.char_indices().nth(offset).map_or(piece.len(), |(byte, _)| byte);
    let logprobs: Option<Vec<f64>> = scored.iter().copied().collect();
    let logprobs = logprobs.ok_or("a token in the middle has no log-probability")?;
    if logprobs.iter().any(|logprob| !logprob.is_finite()) {
        return Err("a log-probability is not finite".to_owned());
    }
    let nll = -logprobs.iter().sum::<f64>();
    Ok(Score { tokens: logprobs.len(), bytes: piece.len() - start, nll })
}

/// Cuts a text into pieces of at most `max_chars` characters: after a line's end in the second half of the piece,
/// else before its last space, else where it must be. White space stays, so that together they are the text.
pub(super) fn pieces(text: &str, max_chars: usize) -> Vec<&str> {
    let mut rest = text;
    let mut pieces = Vec::new();
    while let Some((most, _)) = rest.char_indices().nth(max_chars.max(1)) {
        let line = rest[..most].rfind('\n').map(|at| at + 1).filter(|&at| at > most / 2);
        let space = || rest[..most].rfind(' ').filter(|&at| at > 0);
        let (piece, after) = rest.split_at(line.or_else(space).unwrap_or(most));
        pieces.push(piece);
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

/// At most `limit` of the pieces, evenly spread: the start of a file is often unlike the rest of it.
pub(super) fn spread<'a>(pieces: &[&'a str], limit: usize) -> Vec<&'a str> {
    let count = limit.min(pieces.len());
    (0..count).map(|i| pieces[i * pieces.len() / count]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn scored(piece: &str, logprobs: &Value) -> Result<Score, String> {
        score(piece, serde_json::from_value(json!({"choices": [{"logprobs": logprobs}]})).unwrap())
    }

    #[test]
    fn the_first_token_and_its_bytes_are_not_scored() {
        let logprobs = json!({"token_logprobs": [null, -1.5, -0.5], "text_offset": [0, 2, 4]});
        assert_eq!(scored("éa bc", &logprobs), Ok(Score { tokens: 2, bytes: 3, nll: 2.0 }));
        // A token that the server put before the text takes no byte from it.
        let logprobs = json!({"token_logprobs": [null, -1.0], "text_offset": [0, 0]});
        assert_eq!(scored("abc", &logprobs), Ok(Score { tokens: 1, bytes: 3, nll: 1.0 }));
        let logprobs = json!({"token_logprobs": [null], "text_offset": [0]});
        assert_eq!(scored("a", &logprobs), Ok(Score { tokens: 0, bytes: 0, nll: 0.0 }));
    }

    #[test]
    fn a_missing_probability_is_an_error() {
        for logprobs in [
            json!({"token_logprobs": [null, null, -1.0], "text_offset": [0, 1, 2]}),
            json!({"token_logprobs": [null, -1.0, null], "text_offset": [0, 1, 2]}),
            Value::Null,
        ] {
            assert!(scored("abc", &logprobs).is_err(), "{logprobs}");
        }
    }

    proptest! {
        #[test]
        fn pieces_are_short_and_make_up_the_text(text in "[ab é漢 \n]{0,80}", max in 1..20usize) {
            let pieces = pieces(&text, max);
            prop_assert_eq!(pieces.concat(), text.as_str());
            for piece in pieces {
                prop_assert!((1..=max).contains(&piece.chars().count()));
            }
        }

        #[test]
        fn a_spread_has_no_piece_twice(count in 0..50usize, limit in 1..60usize) {
            let names: Vec<String> = (0..count).map(|i| format!("{i:03}")).collect();
            let pieces: Vec<&str> = names.iter().map(String::as_str).collect();
            let spread = spread(&pieces, limit);
            prop_assert_eq!(spread.len(), count.min(limit));
            prop_assert!(spread.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn a_text_is_cut_at_lines_then_at_spaces() {
        assert_eq!(pieces("one two\nthree four five", 12), ["one two\n", "three four", " five"]);
        assert_eq!(pieces("abcdefgh", 3), ["abc", "def", "gh"]);
    }
}
