//! Requests made at random, near to right ones: every answer is JSON of the right shape, and none is a 500.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::LazyLock;

use common::{MODEL, Server, start};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static SERVER: LazyLock<Server> = LazyLock::new(|| RUNTIME.block_on(start(8)));

/// Any JSON at all, not deep.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..30).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{0,8}", inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn one_of(values: &[Value]) -> impl Strategy<Value = Value> + use<> {
    prop::sample::select(values.to_vec())
}

/// A field and a value that may well be right.
fn field() -> impl Strategy<Value = (&'static str, Value)> {
    let number = |name: &'static str, low: f64, high: f64| (Just(name), (low..high).prop_map(Value::from));
    let count = |name: &'static str, most: i64| (Just(name), (-1..most).prop_map(Value::from));
    let flag = |name: &'static str| (Just(name), any::<bool>().prop_map(Value::from));
    let prompt = one_of(&[
        json!("the theme"),
        json!(["the", "a king é 日"]),
        json!([1, 2, 3]),
        json!([[1], [299, 7], [8]]),
        json!([]),
        json!([[]]),
        json!("x".repeat(3000)),
    ]);
    let stop = one_of(&[json!(null), json!("e"), json!(["the", " "]), json!([]), json!("")]);
    let options = one_of(&[
        json!(null),
        json!({}),
        json!({"include_usage": true}),
        json!({"continuous_usage_stats": true, "include_usage": true}),
    ]);
    let bias = one_of(&[
        json!({}),
        json!({"5": 100}),
        json!({"5": -100, "299": 3.5}),
        json!({"999": 1}),
        json!({"x": 1}),
    ]);
    prop_oneof![
        4 => (Just("prompt"), prompt),
        1 => (Just("stop"), stop),
        1 => (Just("stream_options"), options),
        1 => (Just("logit_bias"), bias),
        1 => (Just("stop_token_ids"), one_of(&[json!([5]), json!([1, 2, 303]), json!(null), json!([-1])])),
        1 => (Just("model"), one_of(&[json!(MODEL), json!("another"), json!(null)])),
        2 => flag("stream"),
        1 => prop_oneof![flag("echo"), flag("ignore_eos"), flag("include_stop_str_in_output"), flag("return_token_ids"), flag("skip_special_tokens")],
        2 => prop_oneof![
            count("max_tokens", 40), count("min_tokens", 40), count("n", 5), count("best_of", 5), count("logprobs", 23),
            count("top_k", 300), count("seed", 9), count("truncate_prompt_tokens", 300),
        ],
        2 => prop_oneof![
            number("temperature", -0.5, 3.0), number("top_p", -0.1, 1.1), number("min_p", -0.1, 1.1),
            number("presence_penalty", -2.5, 2.5), number("frequency_penalty", -2.5, 2.5), number("repetition_penalty", -0.5, 3.0),
        ],
        1 => (prop::sample::select(vec!["prompt", "max_tokens", "stop", "logit_bias", "stream", "n", "user", "suffix", "model", "no_such"]), anything()),
    ]
}

fn request() -> impl Strategy<Value = Value> {
    let fields = prop::collection::vec(field(), 0..7).prop_map(|fields| {
        let mut body: Map<String, Value> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        body.entry("prompt").or_insert_with(|| json!("the"));
        Value::Object(body)
    });
    prop_oneof![20 => fields, 1 => anything()]
}

fn is_error(body: &Value) -> bool {
    let error = &body["error"];
    error["message"].as_str().is_some_and(|message| !message.is_empty())
        && error["type"].is_string()
        && ["param", "code"].iter().all(|key| error[*key].is_null() || error[*key].is_string())
}

/// A chunk or an answer that is not streamed.
fn is_completion(body: &Value) -> bool {
    let choice = |choice: &Value| {
        let reason = &choice["finish_reason"];
        choice["index"].is_u64()
            && choice["text"].is_string()
            && (reason.is_null() || reason == "stop" || reason == "length")
            && (choice["logprobs"].is_null() || is_logprobs(&choice["logprobs"]))
    };
    body["id"].as_str().is_some_and(|id| id.starts_with("cmpl-"))
        && body["object"] == "text_completion"
        && body["created"].is_u64()
        && body["model"] == MODEL
        && body["choices"].as_array().is_some_and(|choices| choices.iter().all(choice))
}

fn is_logprobs(logprobs: &Value) -> bool {
    let length = |name: &str| logprobs[name].as_array().map(Vec::len);
    let count = length("tokens");
    let scores = logprobs["token_logprobs"].as_array();
    let is_score = |score: &Value| score.is_null() || score.as_f64().is_some_and(|score| score <= 1e-6);
    count.is_some()
        && length("token_logprobs") == count
        && length("text_offset") == count
        && (logprobs["top_logprobs"].is_null() || length("top_logprobs") == count)
        && scores.is_some_and(|scores| scores.iter().all(is_score))
}

/// What is wrong with the answer to a request, if anything is.
fn complaint(request: &Value, status: u16, kind: &str, text: &str) -> Option<String> {
    let parse = |text: &str| serde_json::from_str::<Value>(text);
    if status != 200 {
        let is_known = [400, 404, 413, 429].contains(&status);
        let is_good = is_known && kind == "application/json" && parse(text).is_ok_and(|body| is_error(&body));
        return (!is_good).then(|| "not an error as it should be".into());
    }
    if request["stream"] != true {
        let body = parse(text).ok().filter(|body| kind == "application/json" && is_completion(body));
        let Some(body) = body else { return Some("not a completion".into()) };
        let choices = body["choices"].as_array()?;
        let is_whole =
            |(at, choice): (usize, &Value)| choice["index"] == at && choice["finish_reason"].is_string();
        let is_used = body["usage"]["total_tokens"].as_u64()
            == Some(body["usage"]["prompt_tokens"].as_u64()? + body["usage"]["completion_tokens"].as_u64()?);
        return (!choices.iter().enumerate().all(is_whole) || !is_used).then(|| "not whole".into());
    }
    let Some(lines) = text.strip_suffix("data: [DONE]\n\n") else {
        return Some("a stream without an end".into());
    };
    let events: Option<Vec<Value>> =
        lines.split_terminator("\n\n").map(|event| parse(event.strip_prefix("data: ")?).ok()).collect();
    let Some(events) = events else { return Some("an event that is not JSON".into()) };
    let reasons = events.iter().flat_map(|chunk| chunk["choices"].as_array().into_iter().flatten());
    let finished = reasons.clone().filter(|choice| choice["finish_reason"].is_string()).count();
    let indices: std::collections::BTreeSet<u64> =
        reasons.filter_map(|choice| choice["index"].as_u64()).collect();
    let is_good = events.iter().all(is_completion) && finished == indices.len() && finished > 0;
    (!is_good).then(|| "chunks that do not make an answer".into())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_answer_is_of_the_right_shape(body in request()) {
        let server = &*SERVER;
        let (status, kind, text) = RUNTIME.block_on(async {
            let response = server.send(&body).await;
            let kind = response.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
            (response.status().as_u16(), kind, response.text().await.unwrap())
        });
        if let Some(complaint) = complaint(&body, status, &kind, &text) {
            prop_assert!(false, "{}: {} {} {}", complaint, body, status, text);
        }
    }
}
