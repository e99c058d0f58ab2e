//! Whatever is wrong with a request is answered in OpenAI's form, and names the field.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{CONTEXT, HashModel, MODEL, Server, start, start_with};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

/// The error in a response, checked for its form.
async fn error(response: Response, status: u16) -> Value {
    let found = response.status();
    let kind = response.headers().get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap().to_owned());
    let text = response.text().await.unwrap();
    assert_eq!(found.as_u16(), status, "{text}");
    assert_eq!(kind.as_deref(), Some("application/json"), "{text}");
    let body: Value = serde_json::from_str(&text).unwrap();
    let error = body["error"].as_object().unwrap();
    assert!(["message", "type", "param", "code"].iter().all(|key| error.contains_key(*key)), "{text}");
    assert!(!error["message"].as_str().unwrap().is_empty());
    body["error"].clone()
}

async fn raw(server: &Server, body: impl Into<reqwest::Body>) -> Response {
    let request = server.client.post(format!("{}/v1/completions", server.url));
    request.header(CONTENT_TYPE, "application/json").body(body).send().await.unwrap()
}

#[tokio::test]
async fn a_wrong_field_is_named() {
    let server = start(2).await;
    let cases = [
        ("prompt", json!(null)),
        ("prompt", json!(3)),
        ("prompt", json!({"text": "the"})),
        ("prompt", json!("")),
        ("prompt", json!([])),
        ("prompt", json!([[]])),
        ("prompt", json!(["the", ""])),
        ("prompt", json!(["the", 3])),
        ("prompt", json!([3, "the"])),
        ("prompt", json!([[1], [2, "the"]])),
        ("prompt", json!([[[1]]])),
        ("prompt", json!([-1])),
        ("prompt", json!([1.5])),
        ("prompt", json!([303])),
        ("prompt", json!([5_000_000_000u64])),
        ("prompt", json!([null])),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!("ten")),
        ("max_tokens", json!(CONTEXT)),
        ("max_tokens", json!(u64::MAX)),
        ("max_tokens", json!(i64::MAX)),
        ("max_tokens", json!(1e300)),
        ("temperature", json!(-0.1)),
        ("temperature", json!("hot")),
        ("temperature", json!([])),
        ("top_p", json!(1.1)),
        ("top_p", json!(-0.1)),
        ("top_k", json!(-2)),
        ("top_k", json!(1.5)),
        ("min_p", json!(-0.1)),
        ("min_p", json!(1.1)),
        ("repetition_penalty", json!(0)),
        ("frequency_penalty", json!(2.1)),
        ("presence_penalty", json!("none")),
        ("logit_bias", json!([1])),
        ("logit_bias", json!({"the": 1})),
        ("logit_bias", json!({"1": 101})),
        ("logit_bias", json!({"1": 1e300})),
        ("seed", json!("x")),
        ("seed", json!(1.5)),
        ("n", json!(0)),
        ("n", json!(1_000_000_000)),
        ("n", json!(-1)),
        ("n", json!(1e40)),
        ("best_of", json!(0)),
        ("best_of", json!(1_000_000_000)),
        ("best_of", json!("two")),
        ("min_tokens", json!(-1)),
        ("min_tokens", json!(CONTEXT)),
        ("stop_token_ids", json!([303])),
        ("stop_token_ids", json!(["the"])),
        ("stop_token_ids", json!(3)),
        ("stop_token_ids", json!(vec![3; 10_000])),
        ("logit_bias", json!({"303": 1})),
        ("truncate_prompt_tokens", json!(0)),
        ("truncate_prompt_tokens", json!(-2)),
        ("prompt_logprobs", json!(1)),
        ("include_stop_str_in_output", json!("no")),
        ("skip_special_tokens", json!(0)),
        ("return_token_ids", json!([])),
        ("add_special_tokens", json!("x".repeat(2_000_000))),
        ("response_format", json!({"type": "json_object"})),
        ("use_beam_search", json!(true)),
        ("user", json!(5)),
        ("suffix", json!("end")),
        ("stop", json!(3)),
        ("stop", json!([""])),
        ("stop", json!([3])),
        ("stop", json!("x".repeat(5000))),
        ("stop", json!(vec!["x"; 100])),
        ("echo", json!("yes")),
        ("logprobs", json!(21)),
        ("logprobs", json!(-1)),
        ("logprobs", json!(true)),
        ("ignore_eos", json!(1)),
        ("stream", json!("true")),
        ("stream_options", json!({"include_usage": true})),
        ("stream_options", json!("usage")),
        ("stream_options", json!({})),
        ("model", json!(5)),
    ];
    for (field, value) in cases {
        let mut body = json!({"prompt": "the"});
        body[field] = value;
        let error = error(server.send(&body).await, 400).await;
        assert_eq!(
            (&error["param"], &error["type"]),
            (&json!(field), &json!("invalid_request_error")),
            "{body}"
        );
    }
    for (field, body) in [
        ("n", json!({"prompt": vec!["the"; 50], "n": 3})),
        ("best_of", json!({"prompt": vec!["the"; 50], "best_of": 3})),
        ("best_of", json!({"prompt": "the", "n": 3, "best_of": 2})),
        ("best_of", json!({"prompt": "the", "best_of": 2, "stream": true})),
        ("min_tokens", json!({"prompt": "the", "min_tokens": 3, "max_tokens": 2})),
        ("stream_options", json!({"prompt": "the", "stream": true, "stream_options": {"include_usage": 1}})),
        ("prompt", json!({"prompt": "the ".repeat(1_000_000)})),
    ] {
        let error = error(server.send(&body).await, 400).await;
        assert_eq!(error["param"], field);
        assert!(error["message"].as_str().unwrap().len() < 500, "{error}");
    }
    // After all that, the server still serves.
    server.complete(&json!({"prompt": "the"})).await;
}

#[tokio::test]
async fn what_does_not_fit_says_all_the_lengths() {
    let server = start(2).await;
    for prompt in [vec![1; CONTEXT], vec![1; CONTEXT + 44], vec![1; 1_000_000]] {
        for extra in [json!({}), json!({"max_tokens": 5}), json!({"stream": true})] {
            let mut body = json!({"prompt": prompt});
            body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let error = error(server.send(&body).await, 400).await;
            let message = error["message"].as_str().unwrap();
            assert!(
                message.contains(&prompt.len().to_string()) && message.contains(&CONTEXT.to_string()),
                "{message}"
            );
            assert_eq!(
                (&error["param"], &error["code"]),
                (&json!("prompt"), &json!("context_length_exceeded"))
            );
        }
    }
    let body = json!({"prompt": vec![1; 200], "max_tokens": 57});
    let error = error(server.send(&body).await, 400).await;
    let message = error["message"].as_str().unwrap();
    assert!(["200", "57", "256"].iter().all(|number| message.contains(number)), "{message}");
    assert_eq!(error["param"], "max_tokens");
    // A default is cut to what fits.
    let answer = server.complete(&json!({"prompt": vec![1; 250], "ignore_eos": true})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 6);
}

#[tokio::test]
async fn what_is_no_json_is_said_to_be_none() {
    let server = start(2).await;
    let bodies: [Vec<u8>; 8] = [
        vec![],
        b"{".to_vec(),
        b"{\"prompt\": \"the\"".to_vec(),
        b"{\"prompt\": \"\xff\xfe\"}".to_vec(),
        b"[1, 2]".to_vec(),
        b"null".to_vec(),
        b"{\"prompt\": \"the\", \"temperature\": 1e999}".to_vec(),
        [b"{\"prompt\": ".to_vec(), vec![b'['; 100_000]].concat(),
    ];
    for body in bodies {
        assert_eq!(error(raw(&server, body).await, 400).await["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn bodies_of_other_kinds_and_sizes_are_refused() {
    let server = start(2).await;
    let post = |kind: &'static str| {
        let request = server.client.post(format!("{}/v1/completions", server.url));
        request.header(CONTENT_TYPE, kind).body("{\"prompt\": \"the\"}").send()
    };
    for kind in ["text/plain", "application/x-www-form-urlencoded", "nonsense", ""] {
        error(post(kind).await.unwrap(), 415).await;
    }
    for kind in ["application/json; charset=utf-8", "APPLICATION/JSON"] {
        assert_eq!(post(kind).await.unwrap().status(), StatusCode::OK);
    }
    let body = format!("{{\"prompt\": \"{}\"}}", "the ".repeat(2_500_000));
    error(raw(&server, body).await, 413).await;
    let huge = vec![b'x'; 40 << 20];
    error(raw(&server, huge).await, 413).await;
}

#[tokio::test]
async fn unknown_paths_methods_and_models() {
    let server = start(2).await;
    let request =
        |method: Method, path: &str| server.client.request(method, format!("{}{path}", server.url)).send();
    for path in ["/", "/v1", "/v1/chat", "/v1/completions/", "/v1/completions/x", "/%ff"] {
        error(request(Method::GET, path).await.unwrap(), 404).await;
    }
    for (method, path) in [
        (Method::GET, "/v1/completions"),
        (Method::PUT, "/v1/completions"),
        (Method::DELETE, "/v1/models"),
        (Method::POST, "/v1/models/tiny"),
        (Method::POST, "/health"),
    ] {
        error(request(method, path).await.unwrap(), 405).await;
    }
    let unknown = error(server.send(&json!({"model": "gpt-9", "prompt": "the"})).await, 404).await;
    assert_eq!((&unknown["param"], &unknown["code"]), (&json!("model"), &json!("model_not_found")));
    error(request(Method::GET, "/v1/models/gpt-9").await.unwrap(), 404).await;
    error(request(Method::GET, "/v1/models/%ff").await.unwrap(), 400).await;
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let server = start_with(HashModel::slow(1, Duration::from_millis(10)), 2).await;
    let long = json!({"prompt": [1], "max_tokens": 200, "ignore_eos": true, "stream": true});
    let _running = server.send(&long).await;
    server.wait_for(1, 0).await;
    let _waiting = (server.send(&long).await, server.send(&long).await);
    let refused = server.send(&long).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let error = error(refused, 429).await;
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("queue_full")));
}

#[tokio::test]
async fn models_and_health() {
    let mut server = start(2).await;
    let get = async |path: &str| server.client.get(format!("{}{path}", server.url)).send().await.unwrap();
    let models: Value = get("/v1/models").await.json().await.unwrap();
    let model = &models["data"][0];
    assert_eq!((&models["object"], &model["id"]), (&json!("list"), &json!(MODEL)));
    assert_eq!((&model["object"], &model["max_model_len"]), (&json!("model"), &json!(CONTEXT)));
    let one: Value = get(&format!("/v1/models/{MODEL}")).await.json().await.unwrap();
    assert_eq!(&one, model);
    assert_eq!(get("/health").await.status(), StatusCode::OK);

    server.stop_engine();
    let get = server.client.get(format!("{}/health", server.url)).send().await.unwrap();
    assert_eq!(error(get, 503).await["type"], "service_unavailable_error");
    error(server.send(&json!({"prompt": "the"})).await, 503).await;
}
