use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};

use super::Answer;
use crate::server::wire::response::{ChoiceBody, Completion, Usage};

/// What a stream sends next.
enum Next {
    /// Chunks of the choices.
    Chunks,
    /// The tokens used.
    Usage,
    /// The line that says that the answer is whole.
    Done,
    /// Nothing.
    End,
}

/// An answer that is sent as server-sent events.
struct Streamed {
    answer: Answer,
    include_usage: bool,
    completion_tokens: usize,
    next: Next,
}

/// Answers with a chunk for each piece, then usage if it was asked for, then `[DONE]`. An error is sent as an event, after
/// which nothing follows.
pub(in crate::server) fn stream(answer: Answer, include_usage: bool) -> Response {
    let streamed = Streamed { answer, include_usage, completion_tokens: 0, next: Next::Chunks };
    let events =
        stream::unfold(streamed, async |mut streamed| streamed.next().await.map(|event| (event, streamed)));
    // The comments of keep-alive also let a connection that died while its request waited be noticed.
    Sse::new(events.boxed()).keep_alive(KeepAlive::default()).into_response()
}

impl Streamed {
    async fn next(&mut self) -> Option<Result<Event, axum::Error>> {
        if let Next::Chunks = self.next {
            match self.answer.pieces.next().await {
                Some(Ok(piece)) => {
                    self.completion_tokens += piece.generated;
                    return Some(self.chunk(vec![ChoiceBody::new(piece, self.answer.has_logprobs)], None));
                }
                Some(Err(error)) => {
                    self.next = Next::End;
                    return Some(Event::default().json_data(error.body()));
                }
                None => self.next = if self.include_usage { Next::Usage } else { Next::Done },
            }
        }
        match self.next {
            Next::Usage => {
                self.next = Next::Done;
                Some(
                    self.chunk(
                        Vec::new(),
                        Some(Usage::new(self.answer.prompt_tokens, self.completion_tokens)),
                    ),
                )
            }
            Next::Done => {
                self.next = Next::End;
                Some(Ok(Event::default().data("[DONE]")))
            }
            Next::Chunks | Next::End => None,
        }
    }

    fn chunk(&self, choices: Vec<ChoiceBody>, usage: Option<Usage>) -> Result<Event, axum::Error> {
        Event::default().json_data(Completion {
            head: &self.answer.head,
            choices,
            usage: self.include_usage.then_some(usage),
        })
    }
}
