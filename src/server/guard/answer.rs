use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{header, response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tokio::task::JoinHandle;

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
    rest: Arc<Mutex<Rest>>,
    end: End,
    /// An error can be told in the body only where it is a stream of events.
    is_stream: bool,
    is_over: bool,
    /// Cuts the answer off where nobody takes it, so that nobody asks it for its end.
    _watchdog: Option<Watchdog>,
}

/// What an answer still holds. With it goes what the engine does for it.
struct Rest {
    body: Body,
    place: Option<Place>,
}

impl Rest {
    fn cut(&mut self) {
        self.body = Body::empty();
        self.place = None;
    }
}

/// A task that ends with its owner.
struct Watchdog(JoinHandle<()>);

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Limited {
    /// `time` is how long the answer may take from now on.
    pub(super) fn new(
        head: &response::Parts,
        body: Body,
        end: End,
        place: Place,
        time: Option<Duration>,
    ) -> Self {
        let kind = head.headers.get(header::CONTENT_TYPE);
        let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let rest = Arc::new(Mutex::new(Rest { body, place: Some(place) }));
        let watchdog = time.map(|time| {
            let rest = Arc::clone(&rest);
            Watchdog(tokio::spawn(async move {
                tokio::time::sleep(time).await;
                lock(&rest).cut();
            }))
        });
        Self { rest, end, is_stream, is_over: false, _watchdog: watchdog }
    }
}

fn lock(rest: &Mutex<Rest>) -> MutexGuard<'_, Rest> {
    // A body that panicked is not asked again: it is dropped with its connection.
    rest.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        // Before the body, which may always have more to say.
        let ready = match self.end.poll_unpin(context) {
            Poll::Ready(error) if self.is_stream => {
                let event = format!("data: {}\n\n", error.body());
                Some(Ok(Frame::data(Bytes::from(event))))
            }
            Poll::Ready(_) => Some(Err(axum::Error::new(std::io::Error::other("the answer was cut off")))),
            Poll::Pending => {
                let mut rest = lock(&self.rest);
                if rest.place.is_none() {
                    // Its time is up; the end is about to say so.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                match Pin::new(&mut rest.body).poll_frame(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Some(Ok(frame))),
                    Poll::Ready(last) => last,
                }
            }
        };
        self.is_over = true;
        lock(&self.rest).cut();
        Poll::Ready(ready)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || {
            let rest = lock(&self.rest);
            rest.place.is_some() && rest.body.is_end_stream()
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_stream { SizeHint::default() } else { lock(&self.rest).body.size_hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::Places;
    use super::*;
    use axum::response::Response;

    #[tokio::test]
    async fn an_answer_that_nobody_takes_frees_its_place() {
        let places = Places::new(1);
        let place = places.take().unwrap();
        let (head, body) = Response::new(Body::from("said")).into_parts();
        let time = Some(Duration::from_millis(10));
        let end = std::future::pending().boxed();
        let _unread = Limited::new(&head, body, end, place, time);
        assert!(places.take().is_none());
        tokio::time::timeout(Duration::from_secs(10), places.all_free()).await.unwrap();
    }
}
