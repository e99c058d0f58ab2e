//! A server that is told to stop: not ready first, then closed to newcomers, and what was let in is finished.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{HashModel, MODEL, Server, start_guarded};
use futures_util::future::join_all;
use reqwest::{Client, StatusCode};
use scone::engine::{Config, Engine};
use scone::model::TokenizerInfo;
use scone::server::{self, Access, App, Chat, Guard, Limits, ModelCard, Observe, Stopping};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::oneshot;

async fn stopping(model: HashModel, delay: Duration, drain: Duration) -> Server {
    let guard = Guard::new(Limits::default(), Access::default(), Stopping { delay, drain });
    start_guarded(model, Config::default(), guard).await
}

fn slow(slots: usize) -> HashModel {
    HashModel::slow(slots, Duration::from_millis(10))
}

fn body(tokens: usize, stream: bool) -> Value {
    json!({"prompt": [1, 2], "max_tokens": tokens, "ignore_eos": true, "stream": stream})
}

async fn status(client: &Client, url: &str, path: &str) -> StatusCode {
    client.get(format!("{url}{path}")).send().await.unwrap().status()
}

/// Asks until the answer to `path` has this status.
async fn until(client: &Client, url: &str, path: &str, wanted: u16) {
    let start = Instant::now();
    while status(client, url, path).await.as_u16() != wanted {
        assert!(start.elapsed() < Duration::from_secs(10), "{path} never answers {wanted}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn first_it_is_not_ready_then_closed_and_what_was_let_in_is_finished() {
    let server = stopping(slow(4), Duration::from_secs(1), Duration::from_secs(60)).await;
    let (client, url) = (server.client.clone(), server.url.clone());
    let post =
        async |body: Value| client.post(format!("{url}/v1/completions")).json(&body).send().await.unwrap();
    until(&client, &url, "/ready", 200).await;
    let early = post(body(200, true)).await;
    let whole = tokio::spawn({
        let (client, url) = (client.clone(), url.clone());
        async move { client.post(format!("{url}/v1/completions")).json(&body(150, false)).send().await }
    });
    server.wait_for(2, 0).await;
    let stopped = tokio::spawn(server.stop());
    until(&client, &url, "/ready", 503).await;
    // Those who do not know yet are still served.
    assert_eq!(status(&client, &url, "/health").await, StatusCode::OK);
    let late = post(body(50, true)).await;
    assert_eq!(late.status(), StatusCode::OK);
    // Then nobody new, while those who are in go on.
    let start = Instant::now();
    let refused = loop {
        let answer = post(body(1, false)).await;
        if answer.status() != StatusCode::OK {
            break answer;
        }
        assert!(start.elapsed() < Duration::from_secs(10));
    };
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    for stream in [early, late] {
        assert!(stream.text().await.unwrap().trim_end().ends_with("data: [DONE]"));
    }
    let whole: Value = whole.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(whole["usage"]["completion_tokens"], 150);
    stopped.await.unwrap().unwrap();
    assert!(client.get(format!("{url}/health")).send().await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_is_not_finished_in_time_ends_with_an_error() {
    let server =
        stopping(HashModel::slow(2, Duration::from_millis(100)), Duration::ZERO, Duration::from_millis(300))
            .await;
    let stream = server.send(&body(250, true)).await;
    let (client, url) = (server.client.clone(), server.url.clone());
    let whole = tokio::spawn(async move {
        client.post(format!("{url}/v1/completions")).json(&body(250, false)).send().await
    });
    server.wait_for(2, 0).await;
    let stopped = tokio::spawn(server.stop());
    let text = stream.text().await.unwrap();
    let last = text.lines().rfind(|line| !line.is_empty()).unwrap();
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "service_unavailable_error", "{last}");
    assert_eq!(whole.await.unwrap().unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    stopped.await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_that_ask_for_nothing_hold_up_nobody() {
    let server = stopping(slow(1), Duration::ZERO, Duration::from_secs(60)).await;
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let _silent = tokio::net::TcpStream::connect(&address).await.unwrap();
    // This one is kept alive by the client.
    server.complete(&body(1, false)).await;
    let start = Instant::now();
    server.stop().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[tokio::test]
async fn while_the_model_is_loaded_it_is_not_ready() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let guard = Arc::new(Guard::default());
    let (give, loaded) = oneshot::channel();
    let running = server::run_when_loaded(
        listener,
        Arc::clone(&guard),
        async { loaded.await.ok() },
        std::future::pending(),
    );
    let running = tokio::spawn(running);
    let client = Client::new();
    for path in ["/ready", "/health", "/v1/models", "/nothing"] {
        let response = client.get(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key("x-request-id"));
        assert!(response.json::<Value>().await.unwrap()["error"]["message"].is_string());
    }
    let engine = Engine::start(Box::new(HashModel::new(1)), Config::default()).unwrap();
    let app = App {
        engine: engine.handle(),
        tokenizer: common::tokenizer(),
        chat: Chat::new(TokenizerInfo::default()),
        card: ModelCard { id: MODEL.into(), created: 1 },
        table: None,
        stop_tokens: vec![0],
        observe: Observe::new(),
        guard: Arc::clone(&guard),
    };
    give.send(app).unwrap();
    guard.opened().await;
    // The connection that was open already sees it too.
    assert_eq!(status(&client, &url, "/ready").await, StatusCode::OK);
    running.abort();
}

/// `scone serve` with the shipped model, ended with the test.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[], Stdio::null())
    }

    fn start_with(arguments: &[&str], variables: &[(&str, &str)], log: Stdio) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut command = Command::new(env!("CARGO_BIN_EXE_scone"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
            command.env_remove(name);
        }
        command.current_dir(env!("CARGO_MANIFEST_DIR")).envs(variables.iter().copied());
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("it serves").to_owned();
        Self { child, url }
    }

    fn terminate(&self) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: only a signal is sent, to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    }

    async fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "it does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_signal_under_load_loses_no_request_that_was_let_in() {
    let mut process = Process::start(&["--max-sequences", "8", "--drain-timeout", "10m"]);
    let client = Client::new();
    let url = format!("{}/v1/completions", process.url);
    let ask = async |i: usize| {
        let body = json!({"prompt": "Once upon a time", "max_tokens": 200 + i, "ignore_eos": true, "stream": i.is_multiple_of(2)});
        let response = client.post(&url).json(&body).send().await.unwrap();
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            return false;
        }
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.text().await.unwrap();
        if i.is_multiple_of(2) {
            assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
        } else {
            let answer: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(answer["usage"]["completion_tokens"], 200 + i, "{text}");
        }
        true
    };
    let terminate = async {
        let health = format!("{}/health", process.url);
        loop {
            let health: Value = client.get(&health).send().await.unwrap().json().await.unwrap();
            if health["running"] == 8 && health["waiting"].as_u64() >= Some(8) {
                return process.terminate();
            }
        }
    };
    let (answered, ()) = tokio::join!(join_all((0..24).map(ask)), terminate);
    // Who came after the signal may have been refused.
    assert!(answered.iter().filter(|is_answered| **is_answered).count() >= 16, "{answered:?}");
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nobody() {
    for is_closed in [true, false] {
        let mut process = Process::start_with(&[], &[], Stdio::piped());
        let unread = process.child.stderr.take().filter(|_| !is_closed);
        let client = Client::new();
        // More lines than a pipe holds.
        for i in 0..1000 {
            let url = format!("{}/nothing/{i}", process.url);
            assert_eq!(client.get(url).send().await.unwrap().status(), StatusCode::NOT_FOUND);
        }
        let body = json!({"prompt": "Once", "max_tokens": 3});
        let answer = client.post(format!("{}/v1/completions", process.url)).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        process.terminate();
        assert_eq!(process.ended().await.code(), Some(0));
        drop(unread);
    }
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut process = Process::start(&["--shutdown-delay", "1h"]);
    let client = Client::new();
    process.terminate();
    until(&client, &process.url, "/ready", 503).await;
    process.terminate();
    assert_eq!(process.ended().await.code(), Some(128 + libc::SIGTERM));
}

#[tokio::test]
async fn systemd_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let told = || {
        let mut text = [0; 100];
        let length = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).trim().to_owned()
    };
    let mut process = Process::start_with(&[], &[("NOTIFY_SOCKET", path.to_str().unwrap())], Stdio::null());
    assert_eq!(told(), "READY=1");
    process.terminate();
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(process.ended().await.code(), Some(0));
}
