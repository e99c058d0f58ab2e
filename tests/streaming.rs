//! `POST /v1/completions` with `stream`: the chunks together are the answer that is not streamed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{HashModel, start, start_with};
use serde_json::{Value, json};

/// Joins a choice's chunks as a client would, checking that exactly the last has a finish reason.
fn join(chunks: &[Value], index: usize) -> Value {
    let own: Vec<&Value> = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().unwrap())
        .filter(|c| c["index"] == index)
        .collect();
    let mut joined = own[0].clone();
    for (i, choice) in own.iter().enumerate() {
        assert_eq!(choice["finish_reason"].is_null(), i + 1 < own.len(), "{choice}");
        assert_eq!(choice["logprobs"].is_null(), joined["logprobs"].is_null());
        if i == 0 {
            continue;
        }
        joined["text"] =
            json!(joined["text"].as_str().unwrap().to_owned() + choice["text"].as_str().unwrap());
        joined["finish_reason"] = choice["finish_reason"].clone();
        joined["stop_reason"] = choice["stop_reason"].clone();
        for (name, list) in choice["logprobs"].as_object().into_iter().flatten() {
            joined["logprobs"][name].as_array_mut().unwrap().extend(list.as_array().unwrap().iter().cloned());
        }
    }
    joined
}

#[tokio::test]
async fn streamed_and_whole_are_the_same() {
    let server = start(4).await;
    let plain =
        json!({"prompt": ["the theme of", [17, 202, 140]], "max_tokens": 40, "seed": 4, "temperature": 0.9});
    let variants = [
        json!({}),
        json!({"n": 2}),
        json!({"logprobs": 2}),
        json!({"echo": true}),
        json!({"echo": true, "logprobs": 1, "n": 2}),
        json!({"echo": true, "logprobs": 0, "max_tokens": 0}),
        json!({"max_tokens": 0}),
        json!({"temperature": 0, "ignore_eos": true, "logprobs": 1}),
        json!({"stop": ["a", "e", "t"], "logprobs": 1}),
        json!({"stop": ["é", " ", "th"], "echo": true, "logprobs": 1}),
    ];
    for variant in variants {
        let mut body = plain.clone();
        body.as_object_mut().unwrap().extend(variant.as_object().unwrap().clone());
        let whole = server.complete(&body).await;
        let chunks = server.stream(&body).await;
        for choice in whole["choices"].as_array().unwrap() {
            assert_eq!(&join(&chunks, choice["index"].as_u64().unwrap() as usize), choice, "{variant}");
        }
        for chunk in &chunks {
            assert_eq!((&chunk["id"], &chunk["object"]), (&chunks[0]["id"], &json!("text_completion")));
            assert!(chunk["usage"].is_null());
            assert!(!chunk["choices"].as_array().unwrap().is_empty());
        }
    }
}

/// Stop strings taken from the text itself, at every place and of several lengths.
#[tokio::test]
async fn a_stop_string_never_leaks() {
    let server = start(8).await;
    let body = json!({"prompt": "the theme", "temperature": 0, "max_tokens": 30, "ignore_eos": true});
    let text = server.text(&body).await;
    let characters: Vec<char> = text.chars().collect();
    for (len, from) in
        [1, 2, 3, 5].into_iter().flat_map(|len| (0..characters.len() - len).map(move |from| (len, from)))
    {
        let stop: String = characters[from..from + len].iter().collect();
        let mut body = body.clone();
        body["stop"] = json!([stop, "never there"]);
        body["stream"] = json!(true);
        let choice = join(&server.stream(&body).await, 0);
        assert_eq!(choice["text"], text[..text.find(&stop).unwrap()], "{stop:?}");
        assert_eq!(choice["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn usage_comes_last_if_asked_for() {
    let server = start(4).await;
    let body = json!({"prompt": [1, 2, 3], "n": 2, "max_tokens": 7, "ignore_eos": true, "stream_options": {"include_usage": true}});
    let chunks = server.stream(&body).await;
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 14, "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(last["usage"], usage);
    assert!(others.iter().all(|chunk| chunk["usage"].is_null()));

    let mut every = body.clone();
    every["stream_options"]["continuous_usage_stats"] = json!(true);
    let chunks = server.stream(&every).await;
    let so_far: Vec<u64> =
        chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(so_far.is_sorted() && so_far[0] > 0 && so_far.last() == Some(&14), "{so_far:?}");
}

#[tokio::test]
async fn tokens_are_sent_as_they_come() {
    let server = start_with(HashModel::slow(1, Duration::from_millis(30)), 10).await;
    let start = Instant::now();
    let body = json!({"prompt": "the", "max_tokens": 30, "ignore_eos": true, "stream": true});
    let mut response = server.send(&body).await;
    response.chunk().await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(500), "the first came after {:?}", start.elapsed());
    while response.chunk().await.unwrap().is_some() {}
    assert!(start.elapsed() > Duration::from_millis(800));
}

#[tokio::test]
async fn an_error_in_mid_stream_is_an_event() {
    let server = start_with(HashModel::panics_after(2, 8), 10).await;
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 20, "ignore_eos": true, "logprobs": 0});
    let (chunks, is_done) = server.stream_any(&body).await;
    let (last, others) = chunks.split_last().unwrap();
    assert!(!is_done, "the answer is not whole");
    assert_eq!(last["error"]["type"], "server_error");
    assert!(last["error"]["message"].as_str().unwrap().contains("not for me"));
    assert!((1..=6).contains(&others.len()));
    assert!(others.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    // Not streamed, the same is a 500; and others are served on.
    let (status, answer) = server.post(&body).await;
    assert_eq!((status.as_u16(), &answer["error"]["type"]), (500, &json!("server_error")));
    server.complete(&json!({"prompt": [1], "max_tokens": 3})).await;
}
