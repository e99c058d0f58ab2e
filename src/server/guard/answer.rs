use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{header, response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};

use super::Guard;
use super::phase::Phase;
use super::places::Place;
use crate::server::wire::error::ApiError;

/// Comes true when an answer that begins now must end, and says why.
pub(super) type End = BoxFuture<'static, ApiError>;

/// The end of the request's time, or of the server's.
pub(super) fn end_of(guard: &Guard) -> End {
    let mut phase = guard.phase.subscribe();
    let time = guard.limits.request_timeout;
    async move {
        let over = async {
            // It fails if the server is gone, which is over too.
            let _ = phase.wait_for(|phase| *phase == Phase::Over).await;
        };
        let overdue = async {
            match time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => ApiError::unavailable("the server has stopped before the answer was complete"),
            () = overdue => ApiError::overdue(time.unwrap_or_default().as_secs_f64()),
        }
    }
    .boxed()
}

/// An answer's body, which is cut off at its end, and its request's place, which is free after it.
pub(super) struct Limited {
    body: Body,
    end: End,
    /// An error can be told in the body only where it is a stream of events.
    is_stream: bool,
    /// None once all is said.
    place: Option<Place>,
}

impl Limited {
    pub(super) fn new(head: &response::Parts, body: Body, end: End, place: Place) -> Self {
        let kind = head.headers.get(header::CONTENT_TYPE);
        let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        Self { body, end, is_stream, place: Some(place) }
    }
}

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.place.is_none() {
            return Poll::Ready(None);
        }
        let ready = match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Some(Ok(frame))),
            Poll::Ready(last) => last,
            Poll::Pending => match self.end.poll_unpin(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(error) if self.is_stream => {
                    let event = format!("data: {}\n\n", error.body());
                    Some(Ok(Frame::data(Bytes::from(event))))
                }
                Poll::Ready(_) => {
                    Some(Err(axum::Error::new(std::io::Error::other("the answer was cut off"))))
                }
            },
        };
        // With it goes what the engine still does for it.
        self.body = Body::empty();
        self.place = None;
        Poll::Ready(ready)
    }

    fn is_end_stream(&self) -> bool {
        self.place.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_stream { SizeHint::default() } else { self.body.size_hint() }
    }
}
