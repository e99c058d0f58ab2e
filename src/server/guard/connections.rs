use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request};
use futures_util::TryFutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower::ServiceExt;

use super::Guard;
use super::phase::Phase;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// After so long without a sign of life from a client the system asks for one.
const PROBE_AFTER: Duration = Duration::from_secs(15);

/// A client that gives no sign of life for so long, or takes nothing of what it is sent, is gone.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// How long after everything has ended the last words may take to be sent.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The wait after an error of the listener itself: it has no more descriptors, say.
const LISTENER_PAUSE: Duration = Duration::from_millis(200);

/// What all connections have in common.
struct Shared {
    guard: Arc<Guard>,
    /// What answers, once it is there.
    routes: OnceLock<Router>,
    /// What answers until then.
    loading: Router,
    /// To be held by every connection that has had a request: the server waits for these in the end.
    busy: mpsc::WeakSender<Infallible>,
}

/// Serves `routes`, and `loading` until they are there, until `shutdown` completes; then lets nobody new in, waits for the
/// answers that are under way, and ends what takes too long.
pub(in crate::server) async fn serve(
    listener: TcpListener,
    guard: Arc<Guard>,
    loading: Router,
    routes: impl Future<Output = Option<Router>>,
    shutdown: impl Future<Output = ()>,
) {
    let (busy, mut all_idle) = mpsc::channel(1);
    let shared = Arc::new(Shared {
        guard: Arc::clone(&guard),
        routes: OnceLock::new(),
        loading,
        busy: busy.downgrade(),
    });
    let until_left = async {
        // Without them there is nothing to wait for.
        let Some(routes) = routes.await else { return Instant::now() };
        let _ = shared.routes.set(routes);
        guard.enter(Phase::Serving);
        shutdown.await;
        guard.leave().await
    };
    // The first is polled first, so what is loaded already answers the first connection.
    let end = tokio::select! {
        biased;
        end = until_left => end,
        () = accept(listener, Arc::clone(&shared)) => return,
        () = Arc::clone(&guard).follow_files() => return,
    };
    // Nobody listens any more. Answers that are complete may still be on their way out.
    drop(busy);
    let is_idle = timeout_at(end, all_idle.recv()).await.is_ok();
    guard.enter(Phase::Over);
    if !is_idle {
        let _ = timeout(LAST_WORDS, all_idle.recv()).await;
    }
}

/// Accepts connections. Never returns.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(shared.guard.limits.connections));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, peer)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    connect(socket, peer, &shared).await;
                    drop(place);
                });
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::error!("no connection can be accepted: {error}");
                sleep(LISTENER_PAUSE).await;
            }
        }
    }
}

/// Whether only the connection that was about to be accepted is lost.
fn is_of_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connect(socket: TcpStream, peer: SocketAddr, shared: &Shared) {
    // Where the system has no such settings, a connection does without them.
    let _ = tune(&socket);
    match &shared.guard.access.tls {
        None => converse(socket, peer, shared).await,
        Some(tls) => match timeout(HANDSHAKE, tls.accept(socket)).await {
            Ok(Ok(socket)) => converse(socket, peer, shared).await,
            Ok(Err(error)) => tracing::debug!("no TLS with {peer}: {error}"),
            Err(_) => tracing::debug!("no TLS with {peer} within {HANDSHAKE:?}"),
        },
    }
}

fn tune(socket: &TcpStream) -> std::io::Result<()> {
    // Tokens are small packets that must not wait for each other.
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_AFTER))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(GONE_AFTER))?;
    Ok(())
}

/// Answers the requests of a connection until one of both sides ends it.
async fn converse(socket: impl AsyncRead + AsyncWrite + Unpin + Send, peer: SocketAddr, shared: &Shared) {
    let mut phase = shared.guard.phase.subscribe();
    let busy = OnceLock::new();
    let service = service_fn(|request: Request<Incoming>| {
        busy.get_or_init(|| shared.busy.upgrade());
        let mut request = request.map(Body::new);
        // Who asks, for what only this machine may.
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = shared.routes.get().unwrap_or(&shared.loading).clone().oneshot(request);
        answer.map_ok(|mut response| {
            // Closing an idle connection instead could meet a request that is on its way.
            if shared.guard.phase() >= Phase::Leaving {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        })
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.guard.limits.header_timeout)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    // A client that breaks off, or sends what is no HTTP, is its own affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = phase.wait_for(|phase| *phase >= Phase::Closing) => connection.as_mut().graceful_shutdown(),
    }
    let end = async {
        let _ = phase.wait_for(|phase| *phase == Phase::Over).await;
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        _ = connection => {}
        () = end => {}
    }
}
