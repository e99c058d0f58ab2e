use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;

use super::choice::Piece;
use super::{Answer, Samples};
use crate::server::wire::error::ApiError;

/// Waits for all choices and answers with them at once.
pub(super) async fn whole(answer: Answer) -> Result<Response, ApiError> {
    let Answer { head, mut pieces, mut tally, samples, .. } = answer;
    let mut choices: Vec<Option<Piece>> = Vec::new();
    while let Some(piece) = pieces.try_next().await? {
        tally.add(&piece);
        if choices.len() <= piece.index {
            choices.resize_with(piece.index + 1, || None);
        }
        match &mut choices[piece.index] {
            Some(choice) => choice.absorb(piece),
            empty => *empty = Some(piece),
        }
    }
    let choices = best(choices.into_iter().flatten().collect(), samples);
    Ok(Json(head.whole(choices, tally.usage())).into_response())
}

/// Of each prompt's samples those whose tokens are likeliest on average, the best first, numbered anew.
fn best(mut drawn: Vec<Piece>, samples: Samples) -> Vec<Piece> {
    if samples.kept == samples.drawn {
        return drawn;
    }
    let mean = |piece: &Piece| piece.logprob / piece.tokens.len().max(1) as f64;
    let mut kept = Vec::new();
    while !drawn.is_empty() {
        let rest = drawn.split_off(samples.drawn.min(drawn.len()));
        drawn.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        kept.extend(drawn.into_iter().take(samples.kept));
        drawn = rest;
    }
    for (index, piece) in kept.iter_mut().enumerate() {
        piece.index = index;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_of_each_prompt_are_kept() {
        let sample = |index, logprob, tokens: usize| Piece {
            logprob,
            tokens: vec![7; tokens],
            text: format!("{index}"),
            ..Piece::new(index)
        };
        // Means: -3, -1, -2; 0, -5, -0.5.
        let drawn = vec![
            sample(0, -3.0, 1),
            sample(1, -4.0, 4),
            sample(2, -4.0, 2),
            sample(3, 0.0, 0),
            sample(4, -5.0, 1),
            sample(5, -1.0, 2),
        ];
        let kept = best(drawn, Samples { drawn: 3, kept: 2 });
        let found: Vec<_> = kept.iter().map(|piece| (piece.index, piece.text.as_str())).collect();
        assert_eq!(found, [(0, "1"), (1, "2"), (2, "3"), (3, "5")]);
    }
}
