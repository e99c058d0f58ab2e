//! `POST /v1/completions`: what vLLM's users add to OpenAI's parameters, and any value in any field.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{CONTEXT, HashModel, MODEL, PANIC, greedy, log_softmax, logits, start, start_with, tokenizer};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

/// What greedy decoding gives after this prompt.
fn plan(count: usize) -> (Vec<u32>, Vec<u32>) {
    let prompt = tokenizer().encode("the theme").unwrap();
    let tokens = greedy(&prompt, count, None);
    (prompt, tokens)
}

/// Greedy, of so many tokens, with more fields.
fn body(prompt: &[u32], max_tokens: usize, more: &Value) -> Value {
    let mut body = json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
        "return_token_ids": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn token_ids_are_what_was_read_and_generated() {
    let server = start(2).await;
    let (prompt, tokens) = plan(12);
    let body = body(&prompt, 12, &json!({}));
    let answer = server.complete(&body).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["prompt_token_ids"], &choice["token_ids"]), (&json!(prompt), &json!(tokens)));
    let chunks = server.stream(&body).await;
    assert_eq!(chunks[0]["choices"][0]["prompt_token_ids"], json!(prompt));
    let ids = chunks.iter().flat_map(|chunk| chunk["choices"][0]["token_ids"].as_array().unwrap().clone());
    assert_eq!(Value::Array(ids.collect()), json!(tokens));
    assert!(chunks[1..].iter().all(|chunk| chunk["choices"][0].get("prompt_token_ids").is_none()));
    let without = server.complete(&json!({"prompt": prompt})).await;
    assert!(without["choices"][0].get("token_ids").is_none());
}

#[tokio::test]
async fn a_stop_token_ends_and_is_named() {
    let server = start(2).await;
    let (prompt, tokens) = plan(20);
    // One that does not come earlier, and has a text of its own.
    let at = (3..20)
        .find(|&at| {
            !tokens[..at].contains(&tokens[at]) && !tokenizer().decode(&[tokens[at]]).contains('\u{fffd}')
        })
        .unwrap();
    let stop = json!({"stop_token_ids": [7, tokens[at]], "logprobs": 0});
    let answer = server.complete(&body(&prompt, 20, &stop)).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(tokens[at])));
    assert_eq!(choice["token_ids"], json!(tokens[..=at]));
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), at + 1);
    let texts = |tokens: &[u32]| tokenizer().decode(tokens);
    let text = choice["text"].as_str().unwrap().to_owned();
    assert!(texts(&tokens[..at]).starts_with(&text) || text.contains('\u{fffd}'));

    let mut kept = stop.clone();
    kept["include_stop_str_in_output"] = json!(true);
    let answer = server.complete(&body(&prompt, 20, &kept)).await;
    assert!(answer["choices"][0]["text"].as_str().unwrap().ends_with(&texts(&tokens[at..=at])));
    assert_eq!(answer["choices"][0]["stop_reason"], tokens[at]);
}

#[tokio::test]
async fn a_stop_string_is_named_and_may_stay() {
    let server = start(2).await;
    let (prompt, _) = plan(0);
    let plain = server.text(&body(&prompt, 20, &json!({}))).await;
    let (from, to) = (plain.char_indices().nth(6).unwrap().0, plain.char_indices().nth(9).unwrap().0);
    let stop = &plain[from..to];
    let end = plain.find(stop).unwrap() + stop.len();
    for stream in [false, true] {
        let wanted =
            body(&prompt, 20, &json!({"stop": ["never there", stop], "include_stop_str_in_output": true}));
        let (text, reason) = if stream {
            let chunks = server.stream(&wanted).await;
            let text = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
            (text, chunks.last().unwrap()["choices"][0]["stop_reason"].clone())
        } else {
            let answer = server.complete(&wanted).await;
            (
                answer["choices"][0]["text"].as_str().unwrap().to_owned(),
                answer["choices"][0]["stop_reason"].clone(),
            )
        };
        assert_eq!((text.as_str(), reason), (&plain[..end], json!(stop)));
    }
}

#[tokio::test]
async fn nothing_ends_before_min_tokens() {
    let server = start(2).await;
    let (prompt, tokens) = plan(20);
    let plain = server.text(&body(&prompt, 20, &json!({}))).await;
    let first: String = plain.chars().take(1).collect();
    // A stop string at the very beginning is passed over.
    let answer = server.complete(&body(&prompt, 20, &json!({"stop": first, "min_tokens": 10}))).await;
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() >= 10);
    assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with(&first));
    assert_eq!(
        answer["choices"][0]["token_ids"].as_array().unwrap()[..10],
        json!(tokens[..10]).as_array().unwrap()[..]
    );
    // A stop token is not generated before.
    let stop = json!({"stop_token_ids": [tokens[0]], "min_tokens": 5});
    let answer = server.complete(&body(&prompt, 20, &stop)).await;
    let found = answer["choices"][0]["token_ids"].as_array().unwrap().clone();
    assert!(found.len() >= 5 && !found[..5].contains(&json!(tokens[0])), "{found:?}");
    // More than the default's 16.
    let more = server.complete(&json!({"prompt": prompt, "min_tokens": 30})).await;
    assert_eq!(more["usage"]["completion_tokens"], 30);
}

#[tokio::test]
async fn the_best_are_the_likeliest_on_average() {
    let server = start(8).await;
    let body = json!({"prompt": ["the theme", "a king"], "seed": 3, "max_tokens": 6, "ignore_eos": true,
        "return_token_ids": true, "n": 8});
    let drawn = server.complete(&body).await;
    let mean = |choice: &Value| {
        let list = |name: &str| -> Vec<u32> { serde_json::from_value(choice[name].clone()).unwrap() };
        let (mut text, tokens) = (list("prompt_token_ids"), list("token_ids"));
        let sum: f64 = tokens
            .iter()
            .map(|&token| {
                let logprob = log_softmax(&logits(&text))[token as usize];
                text.push(token);
                logprob
            })
            .sum();
        sum / tokens.len() as f64
    };
    let mut expected = Vec::new();
    for prompt in drawn["choices"].as_array().unwrap().chunks(8) {
        let mut sorted = prompt.to_vec();
        sorted.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        expected.extend(sorted[..3].iter().map(|choice| choice["token_ids"].clone()));
    }
    let mut best = body.clone();
    (best["n"], best["best_of"]) = (json!(3), json!(8));
    let answer = server.complete(&best).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["token_ids"].clone()).collect::<Vec<_>>(), expected);
    assert!(choices.iter().enumerate().all(|(i, choice)| choice["index"] == i));
    assert!(choices.iter().all(|choice| choice["logprobs"].is_null()));
    assert_eq!(answer["usage"]["completion_tokens"], 2 * 8 * 6, "what was generated counts");
}

#[tokio::test]
async fn special_tokens_show_if_they_are_to() {
    let server = start(2).await;
    let (prompt, _) = plan(0);
    let forced = json!({"logit_bias": {"0": 100}, "skip_special_tokens": false, "max_tokens": 2});
    assert_eq!(server.text(&body(&prompt, 2, &forced)).await, "<|endoftext|><|endoftext|>");
    let mut ends = forced.clone();
    ends["ignore_eos"] = json!(false);
    let answer = server.complete(&body(&prompt, 2, &ends)).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(""), &json!("stop")));
    assert_eq!(choice["stop_reason"], Value::Null, "the end of text is nothing that the request named");
    ends["include_stop_str_in_output"] = json!(true);
    assert_eq!(server.text(&body(&prompt, 2, &ends)).await, "<|endoftext|>");
}

#[tokio::test]
async fn a_long_prompt_is_cut_to_its_end() {
    let server = start(2).await;
    let long: Vec<u32> = (0..CONTEXT as u32 * 2).map(|i| 1 + i % 200).collect();
    for (keep, max_tokens, length) in [(10, 5, 10), (-1, 20, CONTEXT - 20), (-1, 0, CONTEXT), (251, 5, 251)] {
        let more = json!({"truncate_prompt_tokens": keep});
        let answer = server.complete(&body(&long, max_tokens, &more)).await;
        assert_eq!(answer["usage"]["prompt_tokens"], length);
        assert_eq!(answer["choices"][0]["prompt_token_ids"], json!(long[long.len() - length..]));
    }
    let text = json!({"prompt": "the ".repeat(5000), "truncate_prompt_tokens": -1});
    assert_eq!(server.complete(&text).await["usage"]["prompt_tokens"], CONTEXT - 16);
}

#[tokio::test]
async fn what_was_computed_before_is_said() {
    let server = start(2).await;
    let prompt: Vec<u32> = (1..100).collect();
    let cached = async |body: Value| {
        let answer = server.complete(&body).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let body = json!({"prompt": prompt, "n": 4, "max_tokens": 3});
    assert_eq!(cached(body.clone()).await, 0, "samples share, but nothing was there before");
    assert!((90..=99).contains(&cached(body.clone()).await));
    let mut both = body.clone();
    both["prompt"] = json!([prompt, [250, 251]]);
    assert!((90..=99).contains(&cached(both).await));
    let mut streamed = body.clone();
    streamed["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream(&streamed).await;
    assert!(chunks.last().unwrap()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() >= Some(90));
}

#[tokio::test]
async fn whole_numbers_may_have_a_point() {
    let server = start(2).await;
    let with = json!({"prompt": [5.0, 6.0], "max_tokens": 4.0, "n": 1.0, "seed": 3.0, "top_k": -1.0, "stop_token_ids": [9.0]});
    let without =
        json!({"prompt": [5, 6], "max_tokens": 4, "n": 1, "seed": 3, "top_k": -1, "stop_token_ids": [9]});
    assert_eq!(server.text(&with).await, server.text(&without).await);
    for seed in [json!(u64::MAX), json!(i64::MIN)] {
        server.complete(&json!({"prompt": [5, 6], "seed": seed})).await;
    }
}

/// The fields, each with values that it may have.
fn fields() -> Vec<(String, Vec<Value>)> {
    let fields = json!({
        "prompt": ["a king", ["the", [5, 6]], [[7], [8, 9]], [17, 202, 140]],
        "model": [MODEL],
        "max_tokens": [0, 1, 20],
        "min_tokens": [0, 2],
        "temperature": [0, 1, 2.5, 1e-300],
        "top_p": [0, 0.3, 1],
        "top_k": [-1, 3, 1_000_000],
        "min_p": [0.1, 1],
        "n": [1, 3],
        "best_of": [1, 4],
        "seed": [0, -5],
        "stop": ["a", ["e", "the"], []],
        "stop_token_ids": [[70, 71], []],
        "ignore_eos": [true, false],
        "include_stop_str_in_output": [true],
        "echo": [true],
        "logprobs": [0, 20],
        "logit_bias": [{"5": -100, "6": 100}, {}],
        "presence_penalty": [-2, 2],
        "frequency_penalty": [-2, 2],
        "repetition_penalty": [0.01, 100],
        "suffix": [],
        "stream": [true, false],
        "stream_options": [{"include_usage": true, "continuous_usage_stats": true}],
        "truncate_prompt_tokens": [-1, 1, 5],
        "return_token_ids": [true],
        "skip_special_tokens": [false],
        "user": ["me"],
        "prompt_logprobs": [],
        "response_format": [{"type": "text"}],
        "use_beam_search": [false],
        "add_special_tokens": [false],
        "something_else": [1],
    });
    let list = |values: &Value| values.as_array().unwrap().clone();
    fields.as_object().unwrap().iter().map(|(name, values)| (name.clone(), list(values))).collect()
}

/// Any JSON, more often what is nearly right.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..300).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-2.0..2.0f64).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!(MODEL)),
        Just(json!({"include_usage": true})),
        Just(json!({"5": -3.5, "12": 100})),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec(0u32..PANIC, 1..20).prop_map(Value::from),
            prop::collection::vec(303u32..320, 1..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z0-9_]{0,6}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn is_error(answer: &Value) -> bool {
    let error = &answer["error"];
    error["message"].as_str().is_some_and(|message| !message.is_empty() && message.len() < 2000)
        && error["type"].is_string()
        && ["param", "code"]
            .iter()
            .all(|key| error.get(*key).is_some_and(|value| value.is_null() || value.is_string()))
}

#[tokio::test]
async fn any_value_in_any_field_is_answered_or_refused_by_name() {
    let server = start_with(HashModel::new(16), 512).await;
    let mut runner = TestRunner::deterministic();
    let fields = fields();
    let field = (0..fields.len(), any::<prop::sample::Index>(), prop::option::weighted(0.3, any_value()));
    let several = prop::collection::vec(field, 1..5);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..1500 {
        let mut body = json!({"prompt": "the", "max_tokens": 3});
        let mut names = vec!["prompt", "max_tokens"];
        for (field, good, other) in several.new_tree(&mut runner).unwrap().current() {
            let (name, values) = &fields[field];
            let good = || values.get(good.index(values.len().max(1))).cloned().unwrap_or_default();
            body[name] = other.unwrap_or_else(good);
            names.push(name);
        }
        // So hot that all tokens are equally likely, the model would generate those that it panics on.
        if body["temperature"].as_f64().is_some_and(|temperature| temperature > 5.0) {
            body["temperature"] = json!(5);
        }
        let response = server.send(&body).await;
        let (status, kind) = (response.status().as_u16(), response.headers()["content-type"].clone());
        let text = response.text().await.unwrap();
        if status == 200 && body["stream"] == json!(true) {
            assert!(kind.to_str().unwrap().starts_with("text/event-stream"), "{body}");
            assert!(text.ends_with("data: [DONE]\n\n"), "{body} {text}");
            taken += 1;
            continue;
        }
        let answer: Value = serde_json::from_str(&text).unwrap();
        match status {
            200 => taken += usize::from(answer["choices"][0]["finish_reason"].is_string()),
            400 | 404 => {
                refused += 1;
                assert!(is_error(&answer), "{body} {text}");
                let param = answer["error"]["param"].as_str();
                assert!(param.is_some_and(|param| names.contains(&param)), "{body} {text}");
            }
            _ => panic!("{status} for {body}: {text}"),
        }
    }
    assert!(taken > 300 && refused > 300, "{taken} taken, {refused} refused");
    server.wait_for(0, 0).await;
}
