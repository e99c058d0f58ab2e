use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};

use super::Answer;
use crate::server::wire::request::StreamOptions;
use crate::server::wire::response::{Body, Form, Usage};

/// What a stream sends next.
enum Next {
    /// Who speaks in the choice of this number, of a conversation.
    Role(usize),
    /// Chunks of the choices.
    Chunks,
    /// The line that says that the answer is whole.
    Done,
    /// Nothing.
    End,
}

/// An answer that is sent as server-sent events.
struct Streamed {
    answer: Answer,
    options: StreamOptions,
    next: Next,
}

/// Answers with a chunk for each piece, then usage if it was asked for, then `[DONE]`. An error is sent as an event, after
/// which nothing follows.
pub(super) fn stream(answer: Answer, options: StreamOptions) -> Response {
    let next = match answer.head.form() {
        Form::Completion => Next::Chunks,
        Form::Chat => Next::Role(0),
    };
    let streamed = Streamed { answer, options, next };
    let events =
        stream::unfold(streamed, async |mut streamed| streamed.next().await.map(|event| (event, streamed)));
    // The comments of keep-alive also let a connection that died while its request waited be noticed.
    let mut response = Sse::new(events.boxed()).keep_alive(KeepAlive::default()).into_response();
    // Without the character set some clients take a text for Latin-1.
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

impl Streamed {
    async fn next(&mut self) -> Option<Result<Event, axum::Error>> {
        match self.next {
            Next::Role(index) => {
                let is_last = index + 1 == self.answer.sequences();
                self.next = if is_last { Next::Chunks } else { Next::Role(index + 1) };
                Some(event(&self.answer.head.role(index, self.usage())))
            }
            Next::Chunks => match self.answer.pieces.next().await {
                Some(Ok(piece)) => {
                    self.answer.tally.add(&piece);
                    Some(event(&self.answer.head.chunk(piece, self.usage())))
                }
                Some(Err(error)) => {
                    self.next = Next::End;
                    Some(Event::default().json_data(error.body()))
                }
                None if self.options.include_usage => {
                    self.next = Next::Done;
                    Some(event(&self.answer.head.usage(self.answer.tally.usage())))
                }
                None => self.done(),
            },
            Next::Done => self.done(),
            Next::End => None,
        }
    }

    fn done(&mut self) -> Option<Result<Event, axum::Error>> {
        self.next = Next::End;
        Some(Ok(Event::default().data("[DONE]")))
    }

    /// What a chunk says of usage: nothing unless it was asked for, and null unless that was for every chunk.
    fn usage(&self) -> Option<Option<Usage>> {
        let so_far = || self.options.continuous_usage.then(|| self.answer.tally.usage());
        self.options.include_usage.then(so_far)
    }
}

fn event(body: &Body<'_>) -> Result<Event, axum::Error> {
    Event::default().json_data(body)
}
