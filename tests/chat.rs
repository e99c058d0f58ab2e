//! `POST /v1/chat/completions`, `/tokenize`, `/detokenize` and `/tokenizer_info`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{CONTEXT, HashModel, MODEL, Server, VOCAB, greedy, start, start_as, tokenizer};
use scone::model::TokenizerInfo;
use serde_json::{Value, json};

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\
{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

async fn with_template() -> Server {
    let info = TokenizerInfo {
        class: Some("PreTrainedTokenizerFast".into()),
        eos: Some("<|endoftext|>".into()),
        chat_template: Some(TEMPLATE.into()),
        ..TokenizerInfo::default()
    };
    start_as(HashModel::new(4), 64, info).await
}

async fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let response = server.client.post(format!("{}{path}", server.url)).json(body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn chat(server: &Server, body: &Value) -> Value {
    let (status, answer) = post(server, "/v1/chat/completions", body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// What the template makes of one message, tokenized. The end of text is one token.
fn prompt(content: &str) -> Vec<u32> {
    let tokens = tokenizer().encode(&format!("user: {content}<|endoftext|>assistant:")).unwrap();
    assert!(tokens.contains(&0));
    tokens
}

#[tokio::test]
async fn a_conversation_is_continued_as_its_text_would_be() {
    let server = with_template().await;
    let prompt = prompt("the theme");
    let tokens = greedy(&prompt, 8, None);
    for content in [json!("the theme"), json!([{"type": "text", "text": "the theme"}])] {
        let body = json!({"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0,
            "max_completion_tokens": 8, "max_tokens": 3, "ignore_eos": true, "return_token_ids": true});
        let answer = chat(&server, &body).await;
        assert_eq!(answer["object"], "chat.completion");
        assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
        let choice = &answer["choices"][0];
        assert_eq!((&choice["prompt_token_ids"], &choice["token_ids"]), (&json!(prompt), &json!(tokens)));
        assert_eq!(choice["message"]["role"], "assistant");
        assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("length"), &Value::Null));
        assert_eq!(answer["usage"]["prompt_tokens"], prompt.len());
        let text = json!({"prompt": prompt, "temperature": 0, "max_tokens": 8, "ignore_eos": true});
        assert_eq!(choice["message"]["content"], server.text(&text).await);
    }
    // Without a limit as much is said as fits.
    let body = json!({"messages": [{"role": "user", "content": "the theme"}], "ignore_eos": true});
    assert_eq!(chat(&server, &body).await["usage"]["total_tokens"], CONTEXT);
}

#[tokio::test]
async fn log_probabilities_have_the_form_of_conversations() {
    let server = with_template().await;
    let body = json!({"messages": [{"role": "user", "content": "the"}], "max_tokens": 6, "seed": 1, "ignore_eos": true,
        "logprobs": true, "top_logprobs": 2, "n": 2});
    let answer = chat(&server, &body).await;
    for choice in answer["choices"].as_array().unwrap() {
        let entries = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(entries.len(), 6);
        for entry in entries {
            assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
            assert!((2..=3).contains(&entry["top_logprobs"].as_array().unwrap().len()));
            let name = entry["token"].as_str().unwrap();
            match entry["bytes"].as_array() {
                Some(bytes) => assert_eq!(json!(bytes), json!(name.as_bytes())),
                None => assert!(name.starts_with("bytes:")),
            }
        }
    }
}

#[tokio::test]
async fn chunks_begin_with_the_role_and_join_to_the_answer() {
    let server = with_template().await;
    let mut body = json!({"messages": [{"role": "user", "content": "the"}], "max_tokens": 12, "seed": 5, "n": 2,
        "stop": ["e"], "logprobs": true});
    let whole = chat(&server, &body).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let request = server.client.post(format!("{}/v1/chat/completions", server.url)).json(&body);
    let text = request.send().await.unwrap().text().await.unwrap();
    let mut lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(lines.pop(), Some("[DONE]"));
    let mut chunks: Vec<Value> = lines.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    let mut last = chunks.pop().unwrap();
    assert!(last["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() >= Some(1));
    last["usage"]["prompt_tokens_details"]["cached_tokens"] = json!(0);
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    for choice in whole["choices"].as_array().unwrap() {
        let own = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|c| c["index"] == choice["index"]);
        let own: Vec<&Value> = own.collect();
        assert_eq!(own[0]["delta"], json!({"role": "assistant", "content": ""}));
        assert!(own[1..].iter().all(|chunk| chunk["delta"].get("role").is_none()));
        let content: String = own.iter().map(|chunk| chunk["delta"]["content"].as_str().unwrap()).collect();
        assert_eq!(choice["message"]["content"], content);
        let (end, before) = own.split_last().unwrap();
        assert_eq!(end["finish_reason"], choice["finish_reason"]);
        assert!(before.iter().all(|chunk| chunk["finish_reason"].is_null()));
        let logprobs =
            own.iter().flat_map(|chunk| chunk["logprobs"]["content"].as_array().cloned().unwrap_or_default());
        assert_eq!(json!(logprobs.collect::<Vec<_>>()), choice["logprobs"]["content"]);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_conversation_is_said() {
    let server = with_template().await;
    let user = json!([{"role": "user", "content": "the"}]);
    for (field, value) in [
        ("messages", json!(null)),
        ("messages", json!([])),
        ("messages", json!("the")),
        ("messages", json!(["the"])),
        ("messages", json!([{"content": "the"}])),
        ("messages", json!([{"role": 5, "content": "the"}])),
        ("messages", json!([{"role": "user", "content": 5}])),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ),
        ("messages", json!([{"role": "tool", "content": "x"}])),
        ("messages", json!([{"role": "user", "content": "the ".repeat(1_000_000)}])),
        ("messages", json!([{"role": "user", "content": "a king ".repeat(150)}])),
        ("tools", json!([{"type": "function"}])),
        ("chat_template", json!("{{ 1 }}")),
        ("chat_template_kwargs", json!(3)),
        ("continue_final_message", json!(true)),
        ("logprobs", json!(3)),
        ("top_logprobs", json!(3)),
        ("top_logprobs", json!(21)),
        ("max_completion_tokens", json!(-1)),
        ("max_tokens", json!(CONTEXT)),
        ("response_format", json!({"type": "json_schema"})),
        ("n", json!(1_000_000_000)),
    ] {
        let mut body = json!({"messages": user});
        body[field] = value;
        let (status, answer) = post(&server, "/v1/chat/completions", &body).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(field)), "{field} {answer}");
    }
    let none = start(1).await;
    let (status, answer) = post(&none, "/v1/chat/completions", &json!({"messages": user})).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("no_chat_template")), "{answer}");
}

#[tokio::test]
async fn texts_become_tokens_and_tokens_texts() {
    let server = with_template().await;
    let tokenizer = tokenizer();
    let text = "the naïve <|endoftext|> 日本";
    let ids = tokenizer.encode(text).unwrap();
    let (_, answer) = post(&server, "/tokenize", &json!({"prompt": text, "add_special_tokens": false})).await;
    assert_eq!(
        answer,
        json!({"count": ids.len(), "max_model_len": CONTEXT, "tokens": ids, "token_strs": null})
    );
    let (_, named) = post(&server, "/tokenize", &json!({"prompt": text, "return_token_strs": true})).await;
    assert_eq!(named["token_strs"][0], json!(tokenizer.id_to_token(ids[0])));
    let (_, back) = post(&server, "/detokenize", &json!({"tokens": ids})).await;
    assert_eq!(back, json!({"prompt": text}));
    let messages = json!({"messages": [{"role": "user", "content": "the theme"}]});
    let (_, conversation) = post(&server, "/tokenize", &messages).await;
    assert_eq!(conversation["tokens"], json!(prompt("the theme")));

    let info = server.client.get(format!("{}/tokenizer_info", server.url)).send().await.unwrap();
    let info: Value = info.json().await.unwrap();
    assert_eq!((&info["eos_token"], &info["bos_token"]), (&json!("<|endoftext|>"), &Value::Null));
    assert_eq!((&info["chat_template"], &info["vocab_size"]), (&json!(TEMPLATE), &json!(VOCAB)));
    for (path, field, body) in [
        ("/tokenize", "prompt", json!({})),
        ("/tokenize", "prompt", json!({"prompt": 5})),
        ("/tokenize", "prompt", json!({"prompt": "the", "messages": [{"role": "user"}]})),
        ("/tokenize", "add_special_tokens", json!({"prompt": "the", "add_special_tokens": 1})),
        ("/detokenize", "tokens", json!({})),
        ("/detokenize", "tokens", json!({"tokens": [VOCAB]})),
        ("/detokenize", "tokens", json!({"tokens": "the"})),
    ] {
        let (status, answer) = post(&server, path, &body).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(field)), "{path} {body} {answer}");
    }
    let (status, _) = post(&server, "/tokenize", &json!({"model": "other", "prompt": "the"})).await;
    assert_eq!(status, 404);
    let (status, answer) = post(&server, "/v1/fgrams", &json!({"prompt": "the"})).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("no_table")));
}
