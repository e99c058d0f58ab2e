//! Who gets in, how much of it, and how it ends: everything around an answer that is not the answer.
//!
//! A connection is accepted by `connections` (TLS by `tls`), which also ends all of them. A request gets its id, is let
//! through by `cors` and `keys`, takes a place in `admission`, has its body read by `body`, and only then is parsed. What an
//! answer may take is held to by `answer`. The state of the server as a whole is a [`phase::Phase`].

mod admission;
mod answer;
mod body;
mod connections;
mod cors;
mod file_watch;
mod keys;
pub(in crate::server) mod phase;
mod places;
pub(in crate::server) mod request_id;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::server::App;
use phase::Phase;
use places::Places;

pub(in crate::server) use connections::serve;
pub use cors::{Cors, CorsError};
pub use keys::{Keys, KeysError};
pub use tls::{Tls, TlsError};

/// How often files that may change are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// What requests and connections may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests that are answered at a time; more are refused at once.
    pub requests: usize,
    /// Connections that are open at a time; more wait to be accepted.
    pub connections: usize,
    /// The largest body, in bytes.
    pub body: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a connection may go without a whole request head, before its first one or after an answer.
    pub header_timeout: Duration,
    /// How long an answer may take from the request's head to its last byte; for ever if None.
    pub request_timeout: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 512,
            connections: 4096,
            // Room for a million token ids.
            body: 8 << 20,
            body_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(75),
            request_timeout: None,
        }
    }
}

/// Who may ask, and how the connection is kept private.
#[derive(Debug, Default)]
pub struct Access {
    /// The keys of which a request must show one; anyone may ask if None.
    pub keys: Option<Keys>,
    /// Addresses among [`Access::PUBLIC`] that need a key all the same.
    pub protected: Vec<String>,
    /// The web pages that may ask from a browser.
    pub cors: Option<Cors>,
    /// The certificate; plain HTTP if None.
    pub tls: Option<Tls>,
}

impl Access {
    /// Addresses that need no key unless they are protected: what probes, scrapers and readers of the documentation use.
    pub const PUBLIC: [&'static str; 5] = ["/health", "/ready", "/metrics", "/openapi.json", "/docs"];

    /// Whether a request to `path` needs no key.
    fn is_public(&self, path: &str) -> bool {
        Self::PUBLIC.contains(&path) && !self.protected.iter().any(|protected| protected == path)
    }
}

/// How the server stops.
#[derive(Debug, Clone, Copy)]
pub struct Stopping {
    /// How long `/ready` says no, while requests are still taken, so that load balancers notice.
    pub delay: Duration,
    /// How long answers that are under way after that may take to finish.
    pub drain: Duration,
}

impl Default for Stopping {
    fn default() -> Self {
        Self { delay: Duration::ZERO, drain: Duration::from_secs(30) }
    }
}

/// The state of what this module does.
#[derive(Debug)]
pub struct Guard {
    limits: Limits,
    access: Access,
    stopping: Stopping,
    places: Places,
    phase: watch::Sender<Phase>,
}

impl Default for Guard {
    fn default() -> Self {
        Self::new(Limits::default(), Access::default(), Stopping::default())
    }
}

impl Guard {
    /// For a server that is about to start.
    pub fn new(limits: Limits, access: Access, stopping: Stopping) -> Self {
        let places = Places::new(limits.requests);
        Self { limits, access, stopping, places, phase: watch::Sender::new(Phase::Loading) }
    }

    /// What the server is doing.
    pub(in crate::server) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether connections are kept private with TLS.
    pub fn is_encrypted(&self) -> bool {
        self.access.tls.is_some()
    }

    /// Waits until requests are answered.
    pub async fn opened(&self) {
        // It fails only if the sender is gone, which this borrows.
        let _ = self.phase.subscribe().wait_for(|phase| *phase >= Phase::Serving).await;
    }

    /// Lets nobody new in, after the delay, and returns when all answers under way are finished or have had their time: the
    /// end of which is returned too.
    async fn leave(&self) -> Instant {
        self.enter(Phase::Leaving);
        tokio::time::sleep(self.stopping.delay).await;
        self.enter(Phase::Draining);
        let end = Instant::now() + self.stopping.drain;
        let _ = tokio::time::timeout_at(end, self.places.all_free()).await;
        self.enter(Phase::Closing);
        end
    }

    /// Goes on to the next phase.
    fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Takes keys and certificates over when their files change. Never returns.
    async fn follow_files(self: Arc<Self>) {
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            let guard = Arc::clone(&self);
            let look = move || {
                guard.access.keys.iter().for_each(Keys::reload_if_changed);
                guard.access.tls.iter().for_each(Tls::reload_if_changed);
            };
            if let Err(error) = tokio::task::spawn_blocking(look).await {
                tracing::error!("keys and certificates could not be looked at: {error}");
            }
        }
    }
}

/// Puts everything that guards the routes around them, but for the request's id.
pub(in crate::server) fn layers(router: Router, app: &Arc<App>) -> Router {
    let guarded = router
        .layer(from_fn_with_state(Arc::clone(app), body::read_whole))
        .layer(from_fn_with_state(Arc::clone(app), admission::admit))
        .layer(from_fn_with_state(Arc::clone(app), keys::check));
    // Outside of the keys: a browser asks whether it may ask without showing one.
    match &app.guard.access.cors {
        Some(cors) => guarded.layer(cors.layer()),
        None => guarded,
    }
}

/// The outermost layer: gives each request an id, and each response that of its request.
pub(in crate::server) fn request_ids(router: Router) -> Router {
    router.layer(from_fn(request_id::name))
}
