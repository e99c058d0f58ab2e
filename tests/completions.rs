//! `POST /v1/completions`, not streamed: every form of every parameter.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{CONTEXT, MODEL, PANIC, greedy, log_softmax, logits, start, tokenizer};
use serde_json::{Value, json};

/// A prompt that greedy decoding continues to the end of text, and how it does so.
fn ends() -> (Vec<u32>, Vec<u32>) {
    (1..PANIC)
        .flat_map(|a| (1..PANIC).map(move |b| vec![a, b]))
        .map(|prompt| (greedy(&prompt, 12, Some(0)), prompt))
        .find(|(tokens, _)| tokens.last() == Some(&0) && tokens.len() > 2)
        .map(|(tokens, prompt)| (prompt, tokens))
        .unwrap()
}

fn texts(answer: &Value) -> Vec<String> {
    answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["text"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn an_answer_has_the_form_that_clients_expect() {
    let server = start(4).await;
    let answer = server
        .complete(&json!({"model": MODEL, "prompt": "the theme", "max_tokens": 5, "ignore_eos": true}))
        .await;
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], MODEL);
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_600_000_000);
    let choice = answer["choices"][0].as_object().unwrap();
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(choice["finish_reason"], "length");
    let prompt_tokens = tokenizer().encode("the theme").unwrap().len();
    let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": 5, "total_tokens": prompt_tokens + 5,
        "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(answer["usage"], usage);
    let other = server.complete(&json!({"prompt": "the theme"})).await;
    assert_ne!(answer["id"], other["id"]);
    assert!(other["usage"]["completion_tokens"].as_u64().unwrap() <= 16, "the default is 16");
}

#[tokio::test]
async fn all_forms_of_a_prompt_say_the_same() {
    let server = start(4).await;
    let tokenizer = tokenizer();
    let [first, second] = ["the theme of", " naïve 日本"].map(|text| tokenizer.encode(text).unwrap());
    let body =
        |prompt: Value| json!({"prompt": prompt, "temperature": 0, "max_tokens": 8, "ignore_eos": true});
    let one = server.complete(&body(json!("the theme of"))).await;
    assert_eq!(texts(&one), [tokenizer.decode(&greedy(&first, 8, None))]);
    for prompt in [json!(["the theme of"]), json!(first), json!([first])] {
        assert_eq!(texts(&server.complete(&body(prompt)).await), texts(&one));
    }
    let both = server.complete(&body(json!(["the theme of", " naïve 日本"]))).await;
    assert_eq!(both["usage"]["prompt_tokens"], first.len() + second.len());
    for prompt in [json!([first, second]), json!(["the theme of", second])] {
        assert_eq!(texts(&server.complete(&body(prompt)).await), texts(&both));
    }
}

#[tokio::test]
async fn nulls_and_unknown_keys_are_as_good_as_nothing() {
    let server = start(4).await;
    let plain = json!({"prompt": "the", "seed": 5});
    let mut full = plain.clone();
    for key in
        ["model", "max_tokens", "temperature", "top_p", "top_k", "n", "best_of", "stop", "echo", "logprobs"]
    {
        full[key] = Value::Null;
    }
    for key in ["suffix", "stream", "stream_options", "ignore_eos", "user", "something_else"] {
        full[key] = Value::Null;
    }
    full["another_thing"] = json!({"deep": [1, 2, {"er": true}]});
    assert_eq!(texts(&server.complete(&plain).await), texts(&server.complete(&full).await));
}

#[tokio::test]
async fn log_probabilities_are_the_models() {
    let server = start(4).await;
    let tokenizer = tokenizer();
    let prompt = tokenizer.encode("the café 日").unwrap();
    let body = json!({"prompt": prompt, "max_tokens": 6, "echo": true, "logprobs": 3, "temperature": 0.7, "seed": 3,
        "ignore_eos": true});
    let answer = server.complete(&body).await;
    let lists = &answer["choices"][0]["logprobs"];
    let count = prompt.len() + 6;
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[list].as_array().unwrap().len(), count, "{list}");
    }
    assert_eq!((&lists["token_logprobs"][0], &lists["top_logprobs"][0]), (&Value::Null, &Value::Null));

    let names: Vec<&str> =
        lists["tokens"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let id = |name: &str| (0..300).find(|&id| name_of(id) == name).unwrap();
    let tokens: Vec<u32> = names.iter().map(|name| id(name)).collect();
    assert_eq!(tokens[..prompt.len()], prompt);
    for position in 1..count {
        let expected = log_softmax(&logits(&tokens[..position]));
        let found = lists["token_logprobs"][position].as_f64().unwrap();
        assert!((found - expected[tokens[position] as usize]).abs() < 1e-4, "position {position}");
        let top = lists["top_logprobs"][position].as_object().unwrap();
        assert!((3..=4).contains(&top.len()) && top.contains_key(names[position]));
        for (name, logprob) in top {
            assert!((logprob.as_f64().unwrap() - expected[id(name) as usize]).abs() < 1e-4);
        }
        let best = expected.iter().copied().fold(f64::MIN, f64::max);
        assert!(
            top.values().any(|value| (value.as_f64().unwrap() - best).abs() < 1e-4),
            "the likeliest is there"
        );
    }
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("the café 日"));
    // Offsets are in characters and lead to the tokens' text.
    for (position, name) in names.iter().enumerate().filter(|(_, name)| name.is_ascii() && name.len() > 1) {
        let offset = lists["text_offset"][position].as_u64().unwrap() as usize;
        assert!(
            text.chars().skip(offset).collect::<String>().starts_with(name),
            "{name} at {offset} of {text}"
        );
    }
}

/// A token's text, or its name marked as such where it has no text of its own.
fn name_of(id: u32) -> String {
    let text = tokenizer().decode(&[id]);
    if text.contains('\u{fffd}') { format!("bytes:{}", tokenizer().id_to_token(id).unwrap()) } else { text }
}

#[tokio::test]
async fn log_probabilities_of_nothing_but_the_token_itself() {
    let server = start(4).await;
    let body = json!({"prompt": "the", "max_tokens": 2, "logprobs": 0, "ignore_eos": true});
    let answer = server.complete(&body).await;
    let lists = &answer["choices"][0]["logprobs"];
    for position in 0..2 {
        let top = lists["top_logprobs"][position].as_object().unwrap();
        assert_eq!(top.len(), 1);
        assert_eq!(top.values().next(), Some(&lists["token_logprobs"][position]));
    }
    assert_eq!(lists["text_offset"][0], 0, "without echo offsets begin with the completion");
}

#[tokio::test]
async fn a_prompt_can_be_scored_and_nothing_generated() {
    let server = start(4).await;
    let body = json!({"prompt": "the theme", "max_tokens": 0, "echo": true, "logprobs": 1});
    let answer = server.complete(&body).await;
    let choice = &answer["choices"][0];
    let count = tokenizer().encode("the theme").unwrap().len();
    assert_eq!(
        (choice["text"].as_str(), choice["finish_reason"].as_str()),
        (Some("the theme"), Some("length"))
    );
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), count);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    // The whole context can be scored.
    let body = json!({"prompt": vec![5; CONTEXT], "max_tokens": 0, "echo": true, "logprobs": 1});
    let answer = server.complete(&body).await;
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), CONTEXT);
}

#[tokio::test]
async fn the_end_of_text_ends_and_is_scored_but_not_shown() {
    let server = start(4).await;
    let (prompt, tokens) = ends();
    let body = json!({"prompt": prompt, "max_tokens": 30, "temperature": 0, "logprobs": 1});
    let answer = server.complete(&body).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], tokens.len());
    let names = choice["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(names.len(), tokens.len());
    assert_eq!(names.last().unwrap(), "<|endoftext|>");
    assert!(!choice["text"].as_str().unwrap().contains("endoftext"));

    let mut on = body.clone();
    on["ignore_eos"] = json!(true);
    on["max_tokens"] = json!(tokens.len() + 2);
    let answer = server.complete(&on).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], tokens.len() + 2);
}

#[tokio::test]
async fn choices_are_numbered_by_prompt_and_sample_and_differ() {
    let server = start(4).await;
    let body = json!({"prompt": ["the", "of the"], "n": 3, "best_of": 3, "seed": 11, "max_tokens": 12, "echo": true});
    let answer = server.complete(&body).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(
        choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 5]
    );
    let found = texts(&answer);
    assert!(found[..3].iter().all(|text| text.starts_with("the")));
    assert!(found[3..].iter().all(|text| text.starts_with("of the")));
    let mut distinct = found.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 6);
    assert_eq!(texts(&server.complete(&body).await), found, "a seed repeats");
    // A prompt's samples are the same alone and in a list.
    let alone = json!({"prompt": "of the", "n": 3, "seed": 11, "max_tokens": 12, "echo": true});
    assert_eq!(texts(&server.complete(&alone).await), found[3..]);
}

#[tokio::test]
async fn seeds_may_be_negative_and_without_one_answers_differ() {
    let server = start(4).await;
    let with = json!({"prompt": "the", "seed": -7});
    assert_eq!(server.text(&with).await, server.text(&with).await);
    let without = json!({"prompt": "the", "max_tokens": 20, "ignore_eos": true});
    assert_ne!(server.text(&without).await, server.text(&without).await);
}

#[tokio::test]
async fn narrow_sampling_is_greedy() {
    let server = start(4).await;
    let greedy = server.text(&json!({"prompt": "the", "temperature": 0})).await;
    for narrow in [
        json!({"top_k": 1}),
        json!({"top_p": 0}),
        json!({"min_p": 1}),
        json!({"temperature": 1e-9}),
        json!({"top_p": 1e-12}),
    ] {
        let mut body = narrow.clone();
        body["prompt"] = json!("the");
        assert_eq!(server.text(&body).await, greedy, "{narrow}");
    }
}

#[tokio::test]
async fn bias_and_penalties_reach_the_sampler() {
    let server = start(4).await;
    let body = json!({"prompt": "the", "temperature": 0, "max_tokens": 4, "logprobs": 0});
    let tokens = async |more: Value| -> Vec<String> {
        let mut body = body.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.complete(&body).await;
        let tokens = answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap().clone();
        tokens.iter().map(|token| token.as_str().unwrap().to_owned()).collect()
    };
    // The logits themselves are 0 to 9: a bias of 11 more always wins, half of the logit loses.
    let biased = tokens(json!({"logit_bias": {"70": 100, "71": 89}})).await;
    assert!(biased.iter().all(|token| *token == biased[0]), "{biased:?}");
    let penalised = tokens(json!({"logit_bias": {"70": 100, "71": 89}, "repetition_penalty": 2})).await;
    assert_eq!(penalised[0], biased[0]);
    assert_ne!(penalised[1], biased[0]);
    // 20 times 2 is more than the logits differ by.
    let frequent = json!({"logit_bias": {"70": 100, "71": 89}, "frequency_penalty": 2, "max_tokens": 20});
    assert!(tokens(frequent).await.contains(&penalised[1]));
}

#[tokio::test]
async fn a_stop_string_cuts_text_and_log_probabilities() {
    let server = start(4).await;
    let body =
        json!({"prompt": "the theme", "temperature": 0, "max_tokens": 20, "ignore_eos": true, "logprobs": 0});
    let whole = server.complete(&body).await;
    let text = whole["choices"][0]["text"].as_str().unwrap();
    let lists = &whole["choices"][0]["logprobs"];
    let (from, to) = (text.char_indices().nth(6).unwrap().0, text.char_indices().nth(9).unwrap().0);
    for stop in [json!(text[from..to]), json!(["not in there", text[from..to]])] {
        let mut body = body.clone();
        body["stop"] = stop;
        let answer = server.complete(&body).await;
        let choice = &answer["choices"][0];
        let cut = text.find(&text[from..to]).unwrap();
        assert_eq!(choice["text"], text[..cut]);
        assert_eq!(choice["finish_reason"], "stop");
        let end = text[..cut].chars().count() as u64;
        let kept =
            lists["text_offset"].as_array().unwrap().iter().filter(|offset| offset.as_u64().unwrap() < end);
        assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), kept.count());
        assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() < 20, "the rest is not generated");
    }
    // The prompt is not searched, echoed or not.
    let answer = server
        .complete(&json!({"prompt": "the theme", "echo": true, "stop": ["the th"], "max_tokens": 3}))
        .await;
    assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with("the theme"));
}

#[tokio::test]
async fn a_character_cut_by_the_prompts_end_is_completed() {
    let server = start(4).await;
    let tokenizer = tokenizer();
    let all = tokenizer.encode("日").unwrap();
    // Whatever follows two bytes of three, the text is what the two parts together decode to.
    let prompt = &all[..all.len() - 1];
    let answer =
        server.complete(&json!({"prompt": prompt, "echo": true, "temperature": 0, "ignore_eos": true})).await;
    let tokens = greedy(prompt, 16, None);
    let expected: Vec<u32> = prompt.iter().chain(&tokens).copied().filter(|&id| id != 0).collect();
    assert_eq!(answer["choices"][0]["text"], tokenizer.decode(&expected));
}

#[tokio::test]
async fn an_answer_is_the_same_alone_and_beside_twenty_others() {
    let server = start(6).await;
    let bodies: Vec<Value> = (0..21)
        .map(|i| {
            let prompt: Vec<u32> = (0..3 + i * 7).map(|j| 1 + (i * 31 + j * 17) % 200).collect();
            let temperature = if i % 3 == 0 { 0.0 } else { 0.9 };
            json!({"prompt": prompt, "max_tokens": 5 + i, "temperature": temperature, "seed": i, "logprobs": 2, "echo": true})
        })
        .collect();
    let mut alone = Vec::new();
    for body in &bodies {
        alone.push(server.post(body).await.1["choices"].clone());
    }
    let together = futures_util::future::join_all(bodies.iter().map(|body| server.post(body))).await;
    for (alone, (_, together)) in alone.iter().zip(together) {
        assert_eq!(alone, &together["choices"]);
    }
}
