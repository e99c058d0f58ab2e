//! A client that goes away frees its place; one that reads slowly holds up nobody; a server that stops says good-bye.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{HashModel, start_guarded, start_with};
use scone::engine::Config;
use scone::server::{Access, Guard, Limits, Stopping};
use serde_json::{Value, json};

fn long(stream: bool) -> Value {
    json!({"prompt": [1, 2], "max_tokens": 250, "ignore_eos": true, "stream": stream})
}

fn slow(slots: usize) -> HashModel {
    HashModel::slow(slots, Duration::from_millis(10))
}

#[tokio::test]
async fn a_streaming_client_that_leaves_frees_its_place() {
    let server = start_with(slow(1), 10).await;
    let mut response = server.send(&long(true)).await;
    response.chunk().await.unwrap().unwrap();
    server.wait_for(1, 0).await;
    let start = Instant::now();
    drop(response);
    server.complete(&json!({"prompt": [3], "max_tokens": 1})).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    server.wait_for(0, 0).await;
}

#[tokio::test]
async fn clients_that_wait_for_a_whole_answer_too() {
    let server = start_with(slow(1), 10).await;
    // One of these runs, the others wait; all of them give up.
    let body = long(false);
    let leaving = (0..8).map(|_| tokio::time::timeout(Duration::from_millis(200), server.post(&body)));
    for left in futures_util::future::join_all(leaving).await {
        assert!(left.is_err());
    }
    let start = Instant::now();
    server.complete(&json!({"prompt": [3], "max_tokens": 1})).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    server.wait_for(0, 0).await;
}

#[tokio::test]
async fn a_choice_that_is_stopped_frees_its_place_while_others_go_on() {
    let server = start_with(slow(2), 10).await;
    let stopped = json!({"prompt": [1, 2], "max_tokens": 250, "ignore_eos": true, "temperature": 0});
    let text =
        server.text(&json!({"prompt": [1, 2], "max_tokens": 3, "ignore_eos": true, "temperature": 0})).await;
    let mut body = stopped.clone();
    body["stop"] = json!(text.chars().next().unwrap().to_string());
    body["prompt"] = json!([[1, 2], [200, 100]]);
    body["stream"] = json!(true);
    let mut response = server.send(&body).await;
    response.chunk().await.unwrap();
    let start = Instant::now();
    while server.engine.running() != 1 {
        assert!(start.elapsed() < Duration::from_secs(2));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let server = start_with(HashModel::new(4), 100).await;
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let mut body = long(true);
        body["logprobs"] = json!(20);
        body["echo"] = json!(true);
        stuck.push(server.send(&body).await);
    }
    for _ in 0..20 {
        let answer = server.complete(&json!({"prompt": [5, 6], "max_tokens": 20, "ignore_eos": true})).await;
        assert_eq!(answer["usage"]["completion_tokens"], 20);
    }
    server.wait_for(0, 0).await;
    for response in stuck {
        assert!(
            response.text().await.unwrap().trim_end().ends_with("data: [DONE]"),
            "what was sent is all there"
        );
    }
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way() {
    let server = start_with(slow(1), 10).await;
    let body = json!({"prompt": [1, 2], "max_tokens": 50, "ignore_eos": true, "stream": true});
    let mut response = server.send(&body).await;
    let first = response.chunk().await.unwrap().unwrap();
    let (url, client) = (server.url.clone(), server.client.clone());
    let stopped = server.stop();
    let rest = response.text().await.unwrap();
    assert!(!first.is_empty() && rest.trim_end().ends_with("data: [DONE]"));
    stopped.await.unwrap();
    assert!(client.get(format!("{url}/health")).send().await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let stopping = Stopping { drain: Duration::from_millis(500), ..Stopping::default() };
    let guard = Guard::new(Limits::default(), Access::default(), stopping);
    let server =
        start_guarded(HashModel::slow(1, Duration::from_millis(100)), Config::default(), guard).await;
    let mut response = server.send(&long(true)).await;
    response.chunk().await.unwrap().unwrap();
    let start = Instant::now();
    server.stop().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
