//! Clients that give up, hang up, dawdle or send nonsense, against a server process with the shipped model.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/process.rs"]
mod process;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use process::{Process, post, post_bytes};
use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// As much as the context holds.
fn long(stream: bool) -> Value {
    json!({"prompt": "The old man", "max_tokens": 250, "ignore_eos": true, "stream": stream})
}

#[tokio::test]
async fn after_two_hundred_that_gave_up_a_short_request_is_answered_soon() {
    let server = Process::start(&["--max-sequences", "8", "--max-queue", "2000"]);
    let left = join_all((0..200).map(|i| {
        let request = server.client.post(format!("{}/v1/completions", server.url));
        let mut body = long(i % 2 == 0);
        body["n"] = json!(8);
        let request = request.json(&body).timeout(Duration::from_millis(500));
        async { request.send().await?.bytes().await }
    }));
    let gave_up =
        left.await.iter().filter(|answer| answer.as_ref().is_err_and(reqwest::Error::is_timeout)).count();
    assert!(gave_up > 100, "only {gave_up} gave up: the load was no load");
    server.answers_soon().await;
}

/// The ways to leave; each drops its socket when it returns.
async fn leave(server: &Process, state: usize) {
    let (whole, streamed) = (post(&long(false)), post(&long(true)));
    let head = whole.iter().position(|&byte| byte == b'{').unwrap();
    match state {
        // Before a word is said.
        0 => drop(server.connect().await),
        // In the middle of the first line.
        1 => drop(server.say(&whole[..9]).await),
        // In the middle of the headers.
        2 => drop(server.say(&whole[..head - 20]).await),
        // In the middle of the body.
        3 => drop(server.say(&whole[..head + 10]).await),
        // After the request, which runs or waits by now.
        4 => drop(server.say(&whole).await),
        5 => {
            let socket = server.say(&whole).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            reset(&socket);
        }
        // In the middle of the stream.
        6 => drop(after_first_bytes(server.say(&streamed).await).await),
        7 => reset(&after_first_bytes(server.say(&streamed).await).await),
        // In the middle of a stream that is not read, having closed one side only.
        8 => {
            let mut socket = server.say(&streamed).await;
            socket.shutdown().await.unwrap();
        }
        // With something that is not HTTP.
        _ => drop(server.say(b"\x16\x03\x01 what is this?\r\n\r\n").await),
    }
}

async fn after_first_bytes(mut socket: TcpStream) -> TcpStream {
    let mut bytes = [0; 100];
    tokio::time::timeout(Duration::from_secs(60), socket.read(&mut bytes)).await.unwrap().unwrap();
    socket
}

/// Makes the socket close with a reset, as a client that crashed does.
fn reset(socket: &TcpStream) {
    socket.set_zero_linger().unwrap();
}

#[tokio::test]
async fn a_thousand_connections_dropped_in_every_state_leave_nothing_behind() {
    let server = Process::start(&["--max-sequences", "8", "--max-queue", "1000"]);
    server.answers_soon().await;
    drop(server.client.clone());
    let files = server.open_files();
    let leaving = stream::iter(0..1000).map(|i| leave(&server, i % 10)).buffer_unordered(100);
    leaving.for_each(|()| async {}).await;
    server.answers_soon().await;
    server.wait_for_files(files + 2).await;
}

/// What is buffered for a client that does not read is what its sequences generate, and each has an end: a few hundred bytes
/// a token.
#[tokio::test]
async fn those_who_do_not_read_hold_up_nobody_and_take_little_memory() {
    let server = Process::start(&["--max-sequences", "16", "--max-queue", "1000"]);
    server.answers_soon().await;
    let before = server.memory();
    let (clients, choices) = (12, 16);
    let mut body = long(true);
    body["n"] = json!(choices);
    body["logprobs"] = json!(5);
    let request = post(&body);
    let mut stuck = Vec::new();
    for _ in 0..clients {
        stuck.push(server.say(&request).await);
    }
    // Waits its turn like anyone else, and gets its answer: those before it are done although nobody read a word.
    let asked = json!({"prompt": "The old man", "max_tokens": 20, "ignore_eos": true});
    let answer = tokio::time::timeout(Duration::from_secs(300), server.complete(&asked)).await.unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 20);
    let grown = server.memory().saturating_sub(before);
    let tokens = clients * choices * 250;
    println!("{tokens} tokens that nobody read took {grown} bytes: {} a token", grown / tokens);
    assert!(grown < tokens * 700, "{grown} bytes for {tokens} tokens");
    // They are all there for who reads after all.
    let mut socket = stuck.remove(0);
    let mut text = Vec::new();
    let until_done = async {
        let mut piece = vec![0; 65536];
        while !text.ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n") {
            let read = socket.read(&mut piece).await.unwrap();
            assert!(read > 0, "the stream ended early");
            text.extend_from_slice(&piece[..read]);
        }
    };
    tokio::time::timeout(Duration::from_secs(300), until_done).await.unwrap();
}

/// That the answer is an error in OpenAI's form with one of these statuses.
async fn refused(server: &Process, body: Vec<u8>, statuses: &[u16], name: &str) {
    let request = server.client.post(format!("{}/v1/completions", server.url));
    let sent = request.header(CONTENT_TYPE, "application/json").body(body).send().await;
    let response = sent.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    assert!(statuses.contains(&status), "{name}: {status} {text}");
    let error: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{name}: {text}"));
    assert!(
        error["error"]["message"].as_str().is_some_and(|message| message.len() < 1000),
        "{name}: {error}"
    );
    assert!(error["error"]["type"].is_string(), "{name}: {error}");
}

#[tokio::test]
async fn monstrous_bodies_are_refused_and_not_kept() {
    let server = Process::start(&[]);
    server.answers_soon().await;
    let deep =
        |open: &str, close: &str| format!("{{\"prompt\":{}{}}}", open.repeat(100_000), close.repeat(100_000));
    let numbers = vec!["1"; 1_000_000].join(",");
    let words = "word ".repeat(1_000_000);
    let mut before = 0;
    for round in 0..5 {
        let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
            ("10 MB of prompt", json!({"prompt": "a".repeat(10 << 20)}).to_string().into(), &[400, 413]),
            ("10 MB of spaces", " ".repeat(10 << 20).into(), &[400, 413]),
            ("deep arrays", deep("[", "]").into(), &[400]),
            ("deep objects", deep("{\"a\":", "}").into(), &[400]),
            ("unclosed arrays", "[".repeat(1_000_000).into(), &[400]),
            ("invalid UTF-8", b"{\"prompt\":\"\xff\xfe\xc0\"}".to_vec(), &[400]),
            ("half a character", b"{\"prompt\":\"\xe2\x82\"}".to_vec(), &[400]),
            ("a lone surrogate", br#"{"prompt":"\ud800"}"#.to_vec(), &[400]),
            ("a million token ids", format!("{{\"prompt\":[{numbers}]}}").into(), &[400, 413]),
            ("a million words", json!({"prompt": words}).to_string().into(), &[400, 413]),
            (
                "a million prompts",
                format!("{{\"prompt\":[{}]}}", vec!["[1]"; 1_000_000].join(",")).into(),
                &[400, 413],
            ),
            ("n of a billion", json!({"prompt": "a", "n": 1_000_000_000}).to_string().into(), &[400]),
            (
                "best_of of a billion",
                json!({"prompt": "a", "best_of": 1_000_000_000}).to_string().into(),
                &[400],
            ),
            (
                "max_tokens of a billion",
                json!({"prompt": "a", "max_tokens": 1_000_000_000}).to_string().into(),
                &[400],
            ),
            ("a number beyond all", br#"{"prompt":"a","temperature":1e999}"#.to_vec(), &[400]),
            (
                "many keys",
                format!("{{{}}}", (0..100_000).map(|i| format!("\"k{i}\":1")).collect::<Vec<_>>().join(","))
                    .into(),
                &[400],
            ),
            ("nothing", Vec::new(), &[400]),
            ("null", b"null".to_vec(), &[400]),
            ("two documents", br#"{"prompt":"a"}{"prompt":"b"}"#.to_vec(), &[400]),
        ];
        for (name, body, statuses) in cases {
            refused(&server, body, statuses, name).await;
        }
        if round == 0 {
            server.answers_soon().await;
            before = server.memory();
        }
    }
    server.answers_soon().await;
    // The allocator keeps some for the next: in this order 200 MiB, however many there were. Kept bodies would be more.
    let after = server.memory();
    assert!(after < before + (400 << 20), "{before} bytes grew to {after}");
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_it_says_and_headers_without_end_end_the_connection() {
    let server = Process::start(&[]);
    // Shorter than it says: no answer, since the rest may come; and no harm.
    let mut short = post_bytes(b"{}");
    let at = String::from_utf8_lossy(&short).find("content-length: 2").unwrap();
    short.splice(at..at + 17, b"content-length: 2000".iter().copied());
    drop(server.say(&short).await);
    let endless = [b"GET /health HTTP/1.1\r\n".to_vec(), b"x: y\r\n".repeat(200_000)].concat();
    let mut text = Vec::new();
    let mut socket = server.say(&endless).await;
    // It answers or hangs up, but does not read on for ever.
    let _ = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut text)).await.unwrap();
    let smuggled = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n";
    let mut socket = server.say(smuggled).await;
    let mut text = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut text)).await.unwrap();
    assert!(text.is_empty() || text.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&text));
    server.answers_soon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_is_finished_before_the_end() {
    let server = Process::start(&["--max-sequences", "2", "--max-queue", "400", "--drain-timeout", "300s"]);
    let answered = Arc::new(AtomicUsize::new(0));
    let ask = |i: usize| {
        let mut body = long(i.is_multiple_of(2));
        body["max_tokens"] = json!(200);
        let request = server.client.post(format!("{}/v1/completions", server.url)).json(&body);
        let answered = Arc::clone(&answered);
        tokio::spawn(async move {
            let response = request.send().await.unwrap();
            let (status, text) = (response.status(), response.text().await.unwrap());
            answered.fetch_add(1, Ordering::Relaxed);
            assert_eq!(status, StatusCode::OK, "{text}");
            (i, text)
        })
    };
    let answers: Vec<_> = (0..60).map(ask).collect();
    while server.sequences().await + answered.load(Ordering::Relaxed) < 60 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(answered.load(Ordering::Relaxed) < 40, "the load was no load");
    server.terminate();
    for answer in answers {
        let (i, text) = answer.await.unwrap();
        if i % 2 == 0 {
            assert!(
                text.trim_end().ends_with("data: [DONE]"),
                "a stream that was taken ends as it should: {text}"
            );
        } else {
            let answer: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(answer["usage"]["completion_tokens"], 200);
        }
    }
    assert!(server.wait().success());
}
