//! Who gets in, how much of it, and for how long: keys, browsers, ids, admission and all the timeouts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{HashModel, Server, start, start_guarded};
use futures_util::future::join_all;
use reqwest::{Method, Response, StatusCode};
use scone::engine::Config;
use scone::server::{Access, Cors, Guard, Keys, Limits, Stopping};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Answers under way take so long that nothing of it is over by chance.
fn slow(slots: usize) -> HashModel {
    HashModel::slow(slots, Duration::from_millis(10))
}

fn long(stream: bool) -> Value {
    json!({"prompt": [1, 2], "max_tokens": 250, "ignore_eos": true, "stream": stream})
}

async fn limited(model: HashModel, limits: Limits) -> Server {
    let guard = Guard::new(limits, Access::default(), Stopping::default());
    start_guarded(model, Config::default(), guard).await
}

async fn with_access(access: Access) -> Server {
    let guard = Guard::new(Limits::default(), access, Stopping::default());
    start_guarded(HashModel::new(2), Config::default(), guard).await
}

fn keys(list: &str) -> Access {
    Access { keys: Some(Keys::from_list("keys", list).unwrap()), ..Access::default() }
}

async fn get(server: &Server, path: &str) -> Response {
    server.client.get(format!("{}{path}", server.url)).send().await.unwrap()
}

/// The error in a response, checked for its status.
async fn error(response: Response, status: u16) -> Value {
    let (found, text) = (response.status().as_u16(), response.text().await.unwrap());
    assert_eq!(found, status, "{text}");
    let body: Value = serde_json::from_str(&text).unwrap();
    body["error"].clone()
}

/// The error that ends a stream.
async fn last_error(server: &Server, body: &Value) -> Value {
    let (chunks, is_done) = server.stream_any(body).await;
    assert!(!is_done);
    chunks.last().unwrap()["error"].clone()
}

/// Sends `text` on a connection of its own and reads until the server closes it.
async fn raw(server: &Server, text: &str) -> String {
    let mut socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn every_response_has_the_id_of_its_request() {
    let server = with_access(keys("sk-test")).await;
    let mut made = Vec::new();
    for (method, path, status) in [
        (Method::GET, "/health", 200),
        (Method::POST, "/health", 405),
        (Method::GET, "/v1/models", 401),
        (Method::POST, "/v1/completions", 401),
        (Method::GET, "/nothing", 401),
    ] {
        let request = || server.client.request(method.clone(), format!("{}{path}", server.url));
        let response = request().send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path}");
        made.push(response.headers()["x-request-id"].clone());
        let response = request().header("x-request-id", "mine-1").send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "mine-1");
        for unfit in ["", "with space", &"x".repeat(129)] {
            let response = request().header("x-request-id", unfit).send().await.unwrap();
            made.push(response.headers()["x-request-id"].clone());
        }
    }
    let all = made.len();
    made.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    made.dedup();
    assert_eq!(made.len(), all, "no two are the same");
    assert!(made.iter().all(|id| id.as_bytes().starts_with(b"req-")), "{made:?}");
}

#[tokio::test]
async fn without_a_key_nothing_but_what_is_public() {
    let mut access = keys("sk-one,sk-two");
    access.protected = vec!["/ready".into()];
    let server = with_access(access).await;
    let ask = async |authorization: Option<&str>| {
        let request = server.client.post(format!("{}/v1/completions", server.url));
        let request = request.json(&json!({"prompt": "the", "max_tokens": 1}));
        let request = match authorization {
            Some(value) => request.header("authorization", value),
            None => request,
        };
        request.send().await.unwrap()
    };
    for good in ["Bearer sk-one", "bearer sk-two"] {
        assert_eq!(ask(Some(good)).await.status(), StatusCode::OK);
    }
    for bad in [None, Some("Bearer sk-three"), Some("Bearer "), Some("Basic c2stb25l"), Some("sk-one")] {
        let response = ask(bad).await;
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let text = error(response, 401).await;
        assert_eq!(
            (&text["type"], &text["code"]),
            (&json!("invalid_request_error"), &json!("invalid_api_key"))
        );
        assert!(!text["message"].as_str().unwrap().contains("sk-"), "{text}");
    }
    assert_eq!(get(&server, "/health").await.status(), StatusCode::OK);
    for protected in ["/ready", "/v1/models", "/admin/table", "/nothing"] {
        error(get(&server, protected).await, 401).await;
    }
}

#[tokio::test]
async fn keys_are_taken_over_when_their_file_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    std::fs::write(&path, "sk-old\n").unwrap();
    let access = Access { keys: Some(Keys::from_file(&path).unwrap()), ..Access::default() };
    let server = with_access(access).await;
    let ask = async |key: &str| {
        let request = server.client.get(format!("{}/v1/models", server.url)).bearer_auth(key);
        request.send().await.unwrap().status()
    };
    assert_eq!((ask("sk-old").await, ask("sk-new").await), (StatusCode::OK, StatusCode::UNAUTHORIZED));
    std::fs::write(&path, "# rotated\nsk-new\n").unwrap();
    let start = Instant::now();
    while ask("sk-new").await != StatusCode::OK {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ask("sk-old").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_browser_may_send_its_key_from_the_pages_that_are_named() {
    let page = "https://example.org";
    let cors = Some(Cors::new(&[page.to_owned()]).unwrap());
    let server = with_access(Access { cors, ..keys("sk-test") }).await;
    let url = format!("{}/v1/completions", server.url);
    let preflight = async |origin: &str| {
        let request = server.client.request(Method::OPTIONS, &url).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        let wanted = "authorization,content-type,x-stainless-lang";
        request.header("access-control-request-headers", wanted).send().await.unwrap()
    };
    let allowed = preflight(page).await;
    assert!(allowed.status().is_success(), "{}", allowed.status());
    assert_eq!(allowed.headers()["access-control-allow-origin"], page);
    let headers = allowed.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(headers.contains("authorization") && headers.contains("x-stainless-lang"), "{headers}");
    assert!(!preflight("https://example.com").await.headers().contains_key("access-control-allow-origin"));
    // The page can read errors too.
    let refused = server.client.post(&url).header("origin", page).send().await.unwrap();
    assert_eq!(refused.headers()["access-control-allow-origin"], page);
    let exposed = refused.headers()["access-control-expose-headers"].to_str().unwrap();
    assert!(exposed.contains("x-request-id"), "{exposed}");
    error(refused, 401).await;
}

#[tokio::test]
async fn more_requests_than_places_are_refused_before_their_bodies_are_there() {
    let server = limited(slow(4), Limits { requests: 1, ..Limits::default() }).await;
    let running = server.send(&long(true)).await;
    // Of this one's body nothing comes; it is answered all the same. The connection stays open for the body.
    let head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n";
    let mut socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 429");

    let refused = server.send(&long(true)).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let refused = error(refused, 429).await;
    assert_eq!(
        (&refused["type"], &refused["code"]),
        (&json!("rate_limit_error"), &json!("too_many_requests"))
    );
    // A large body is no reason for a reset.
    let huge = server.client.post(format!("{}/v1/completions", server.url)).body(vec![b'x'; 30 << 20]);
    error(huge.send().await.unwrap(), 429).await;
    // What asks how things stand needs no place.
    assert_eq!(get(&server, "/health").await.status(), StatusCode::OK);
    drop(running);
    server.wait_for(0, 0).await;
    let start = Instant::now();
    while server.send(&json!({"prompt": "the", "max_tokens": 1})).await.status() != StatusCode::OK {
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn prompts_that_wait_are_counted_in_tokens() {
    let config = Config { max_queue_tokens: 10, ..Config::default() };
    let server = start_guarded(slow(1), config, Guard::default()).await;
    let _running = server.send(&long(true)).await;
    server.wait_for(1, 0).await;
    let prompt = |tokens: usize| json!({"prompt": vec![1; tokens], "max_tokens": 5, "stream": true});
    let _waiting = server.send(&prompt(8)).await;
    let refused = error(server.send(&prompt(3)).await, 429).await;
    assert_eq!(refused["code"], "queue_full");
    let _fits = server.send(&prompt(2)).await;
    server.wait_for(1, 2).await;
}

#[tokio::test]
async fn who_waits_too_long_for_a_turn_is_told_so() {
    let config = Config { queue_timeout: Some(Duration::from_millis(150)), ..Config::default() };
    let server = start_guarded(slow(1), config, Guard::default()).await;
    let running = server.send(&long(true)).await;
    server.wait_for(1, 0).await;
    let late = server.send(&long(false)).await;
    assert_eq!(late.headers()["retry-after"], "1");
    let late = error(late, 503).await;
    assert_eq!(
        (&late["type"], &late["code"]),
        (&json!("service_unavailable_error"), &json!("queue_timeout"))
    );
    assert_eq!(last_error(&server, &long(false)).await["code"], "queue_timeout");
    server.wait_for(1, 0).await;
    // Who has a turn keeps it; of a request with many sequences it is enough that one has.
    let rest = running.text().await.unwrap();
    assert!(rest.trim_end().ends_with("data: [DONE]"));
    let body = json!({"prompt": [1, 2], "n": 3, "max_tokens": 30, "ignore_eos": true});
    assert_eq!(server.complete(&body).await["usage"]["completion_tokens"], 90);
}

#[tokio::test]
async fn who_finds_no_memory_for_too_long_too() {
    let config = Config { queue_timeout: Some(Duration::from_millis(150)), ..Config::default() };
    let server =
        start_guarded(HashModel::with_blocks(70).paced(Duration::from_millis(10)), config, Guard::default())
            .await;
    let body = json!({"prompt": vec![3; 100], "max_tokens": 150, "ignore_eos": true, "stream": true});
    let mut running = server.send(&body).await;
    running.chunk().await.unwrap().unwrap();
    // There is a sequence's place for it, but not so many blocks.
    let large = json!({"prompt": vec![7; 240], "max_tokens": 10});
    assert_eq!(error(server.send(&large).await, 503).await["code"], "queue_timeout");
    assert!(running.text().await.unwrap().trim_end().ends_with("data: [DONE]"));
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up() {
    let limits = Limits { request_timeout: Some(Duration::from_millis(300)), ..Limits::default() };
    let server = limited(slow(2), limits).await;
    let late = error(server.send(&long(false)).await, 504).await;
    assert_eq!((&late["type"], &late["code"]), (&json!("server_error"), &json!("request_timeout")));
    server.wait_for(0, 0).await;
    assert_eq!(last_error(&server, &long(true)).await["code"], "request_timeout");
    server.wait_for(0, 0).await;
    server.complete(&json!({"prompt": "the", "max_tokens": 2})).await;
}

#[tokio::test]
async fn slow_and_large_bodies_and_slow_heads() {
    let limits = Limits {
        body: 1000,
        body_timeout: Duration::from_millis(200),
        header_timeout: Duration::from_millis(400),
        ..Limits::default()
    };
    let server = limited(HashModel::new(1), limits).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
    let slow = raw(&server, &format!("{head}content-length: 100\r\n\r\n{{\"prompt\"")).await;
    assert!(slow.starts_with("HTTP/1.1 408") && slow.contains("x-request-id"), "{slow}");
    let large = raw(&server, &format!("{head}content-length: 1001\r\n\r\n")).await;
    assert!(large.starts_with("HTTP/1.1 413"), "{large}");
    let chunk = "x".repeat(999);
    let body = format!("3e7\r\n{chunk}\r\n3e7\r\n{chunk}\r\n0\r\n\r\n");
    let large = raw(&server, &format!("{head}transfer-encoding: chunked\r\n\r\n{body}")).await;
    assert!(large.starts_with("HTTP/1.1 413"), "{large}");
    // A connection without a request is closed, whatever of a head has come; so is one that has had an answer.
    for idle in ["", "POST /v1/completions HTTP/1.1\r\nhost:"] {
        assert_eq!(raw(&server, idle).await, "");
    }
    let answered = raw(&server, "GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let server = limited(HashModel::new(1), Limits { connections: 2, ..Limits::default() }).await;
    let address = server.url.strip_prefix("http://").unwrap();
    let open = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let waiting = tokio::time::timeout(Duration::from_millis(300), get(&server, "/health")).await;
    assert!(waiting.is_err());
    drop(open);
    assert_eq!(get(&server, "/health").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn two_hundred_clients_that_give_up_leave_a_server_that_answers() {
    let server = limited(slow(4), Limits::default()).await;
    let (whole, streamed) = (long(false), long(true));
    let leaving = (0..200).map(|i| {
        let body = if i % 2 == 0 { &whole } else { &streamed };
        tokio::time::timeout(Duration::from_millis(500), async {
            let _ = server.send(body).await.text().await;
        })
    });
    join_all(leaving).await;
    let start = Instant::now();
    server.complete(&json!({"prompt": [3], "max_tokens": 1})).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    server.wait_for(0, 0).await;
}

#[tokio::test]
async fn ready_while_requests_should_be_sent_here() {
    let mut server = start(1).await;
    let ready = get(&server, "/ready").await;
    assert_eq!(ready.status(), StatusCode::OK);
    assert_eq!(ready.json::<Value>().await.unwrap()["status"], "ready");
    server.stop_engine();
    error(get(&server, "/ready").await, 503).await;
}
