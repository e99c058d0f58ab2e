//! `GET /openapi.json` says what the server does: every address and method, and of many requests whether they are taken and
//! what the answer looks like.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::future::Future;
use std::time::Duration;

use common::{HashModel, MODEL, Server, start, start_as, start_with};
use reqwest::{Method, Response};
use scone::model::TokenizerInfo;
use serde_json::{Map, Value, json};

struct Document(Value);

impl Document {
    async fn of(server: &Server) -> Self {
        let answer = server.client.get(format!("{}/openapi.json", server.url)).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/json");
        Self(answer.json().await.unwrap())
    }

    fn resolve<'a>(&'a self, thing: &'a Value) -> &'a Value {
        match thing["$ref"].as_str() {
            Some(path) => {
                self.0.pointer(path.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("no {path}"))
            }
            None => thing,
        }
    }

    fn operations(&self) -> impl Iterator<Item = (&String, &String, &Value)> {
        let paths = self.0["paths"].as_object().unwrap().iter();
        paths.flat_map(|(path, methods)| {
            methods.as_object().unwrap().iter().map(move |(method, operation)| (path, method, operation))
        })
    }

    fn request(&self, path: &str) -> &Value {
        &self.0["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    }

    /// What is wrong with a value by a schema: the part of JSON Schema that the document uses.
    fn objection(&self, schema: &Value, value: &Value) -> Option<String> {
        let schema = self.resolve(schema);
        let rules = schema.as_object().unwrap();
        rules.iter().find_map(|(rule, wanted)| {
            let is_kept = self.keeps(rule, wanted, rules, value);
            (!is_kept).then(|| format!("{value} against {rule}: {wanted}"))
        })
    }

    fn fits(&self, schema: &Value, value: &Value) -> bool {
        self.objection(schema, value).is_none()
    }

    fn keeps(&self, rule: &str, wanted: &Value, rules: &Map<String, Value>, value: &Value) -> bool {
        let schemas = || wanted.as_array().unwrap().iter();
        let number = |keeps: fn(f64, f64) -> bool| {
            value.as_f64().is_none_or(|value| keeps(value, wanted.as_f64().unwrap()))
        };
        let at_most =
            |length: Option<usize>| length.is_none_or(|length| length as u64 <= wanted.as_u64().unwrap());
        let at_least =
            |length: Option<usize>| length.is_none_or(|length| length as u64 >= wanted.as_u64().unwrap());
        let characters = || value.as_str().map(|text| text.chars().count());
        let items = || value.as_array().map(Vec::len);
        match rule {
            "description" | "default" => true,
            "type" if wanted.is_array() => schemas().any(|kind| is_a(kind, value)),
            "type" => is_a(wanted, value),
            "const" => value == wanted,
            "enum" => schemas().any(|one| one == value),
            "anyOf" => schemas().any(|one| self.fits(one, value)),
            "oneOf" => schemas().filter(|one| self.fits(one, value)).count() == 1,
            "allOf" => schemas().all(|one| self.fits(one, value)),
            "minimum" => number(|value, least| value >= least),
            "maximum" => number(|value, most| value <= most),
            "minLength" => at_least(characters()),
            "maxLength" => at_most(characters()),
            "minItems" => at_least(items()),
            "maxItems" => at_most(items()),
            "items" => value.as_array().into_iter().flatten().all(|item| self.fits(wanted, item)),
            "required" => schemas().all(|name| {
                value.as_object().is_none_or(|object| object.contains_key(name.as_str().unwrap()))
            }),
            "properties" => value
                .as_object()
                .into_iter()
                .flatten()
                .all(|(name, value)| wanted.get(name).is_none_or(|schema| self.fits(schema, value))),
            "additionalProperties" => value.as_object().into_iter().flatten().all(|(name, value)| {
                rules.get("properties").is_some_and(|known| known.get(name).is_some())
                    || self.fits(wanted, value)
            }),
            // The only pattern there is: token ids as names.
            "propertyNames" => value.as_object().into_iter().flatten().all(|(name, _)| {
                name.len() < 10 && name.parse::<u32>().is_ok_and(|id| id.to_string() == *name)
            }),
            rule => panic!("this test does not know {rule}"),
        }
    }

    /// Checks that the document has a response's status, content type and body.
    async fn check(&self, path: &str, method: &str, response: Response) -> u16 {
        let status = response.status().as_u16();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        let text = response.text().await.unwrap();
        let documented = &self.0["paths"][path][method]["responses"][status.to_string()];
        assert!(!documented.is_null(), "{method} {path}: {status} is not in the document: {text}");
        let content = &self.resolve(documented)["content"];
        let kind = kind.split(';').next().unwrap();
        assert!(!content[kind].is_null(), "{method} {path} {status}: {kind} is not in the document");
        let bodies: Vec<Value> = match kind {
            "application/json" => vec![serde_json::from_str(&text).unwrap()],
            "text/event-stream" => {
                let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
                lines
                    .filter(|line| *line != "[DONE]")
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect()
            }
            _ => vec![],
        };
        let schema = match (kind, path) {
            ("text/event-stream", "/v1/chat/completions") => &self.0["components"]["schemas"]["ChatChunk"],
            ("text/event-stream", _) => &self.0["components"]["schemas"]["Completion"],
            _ => &content[kind]["schema"],
        };
        for body in bodies {
            assert_eq!(self.objection(schema, &body), None, "{method} {path} {status} {body}");
        }
        status
    }
}

fn is_a(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type {other}"),
    }
}

async fn chatting() -> Server {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let info = TokenizerInfo { chat_template: Some(template.into()), ..TokenizerInfo::default() };
    start_as(HashModel::new(8), 256, info).await
}

fn post(server: &Server, path: &str, body: &Value) -> impl Future<Output = reqwest::Result<Response>> {
    server.client.post(format!("{}{path}", server.url)).json(body).send()
}

#[tokio::test]
async fn every_address_and_method_is_there_and_no_other() {
    let server = start(2).await;
    let document = Document::of(&server).await;
    assert_eq!(document.0["info"]["version"], env!("CARGO_PKG_VERSION"));
    for path in document.0["paths"].as_object().unwrap().keys() {
        let methods = document.0["paths"][path].as_object().unwrap();
        for method in ["get", "post", "put", "delete", "patch"] {
            let url = format!("{}{}", server.url, path.replace("{model}", MODEL));
            let request = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let response = server.client.request(request, url).send().await.unwrap();
            if methods.contains_key(method) {
                let status = document.check(path, method, response).await;
                let is_refused = path == "/admin/table" && status == 404;
                assert!(status == 400 || status == 200 || is_refused, "{method} {path}: {status}");
            } else {
                assert_eq!(response.status(), 405, "{method} {path}");
                let allowed = response.headers()["allow"].to_str().unwrap().to_lowercase();
                let allowed: Vec<&str> = allowed.split(',').filter(|method| *method != "head").collect();
                assert_eq!(allowed, methods.keys().collect::<Vec<_>>(), "{path}");
                let error: Value = response.json().await.unwrap();
                assert!(error["error"]["message"].is_string());
            }
        }
    }
    let ids: Vec<_> =
        document.operations().map(|(_, _, operation)| operation["operationId"].clone()).collect();
    assert!(ids.iter().all(|id| id.is_string() && ids.iter().filter(|other| *other == id).count() == 1));
}

/// Values of one field beside what a request must have: taken if the document has them, refused if it has not.
#[tokio::test]
async fn what_is_taken_and_what_is_not_is_in_the_document() {
    let server = chatting().await;
    let document = Document::of(&server).await;
    let common = json!({
        "model": [MODEL, null, "other", 3],
        "min_tokens": [0, 3, null, -1, 1.5],
        "temperature": [0, 0.7, 3, null, -0.1, "hot"],
        "top_p": [0, 1, null, 1.01, -0.1],
        "top_k": [-1, 0, 5, 5.0, null, -2, 5.5],
        "min_p": [0, 0.5, null, 1.5],
        "n": [1, 2, 2.0, null, 0, 129, 1e40, "2"],
        "seed": [0, -7, 7.0, u64::MAX, i64::MIN, null, 0.5, 1e40],
        "stop": ["a", ["a", "b"], [], null, "", [""], [3], 3, vec!["a"; 17], "x".repeat(1024), "é".repeat(1025)],
        "stop_token_ids": [[3], [], null, [302], [303], [-1], [1.5], "a", vec![3; 129]],
        "ignore_eos": [true, null, 1],
        "include_stop_str_in_output": [true, null, 1],
        "skip_special_tokens": [false, null, 1],
        "logit_bias": [{"3": 5.5}, {}, null, {"a": 1}, {"3": 101}, {"3": "1"}, [1], {"-1": 1}],
        "presence_penalty": [-2, 2, null, 2.1],
        "frequency_penalty": [-2, 2, null, -2.1],
        "repetition_penalty": [0.01, 100, null, 0],
        "truncate_prompt_tokens": [-1, 5, null, 0, -2, 1.5],
        "return_token_ids": [true, null, 1],
        "stream": [true, null, 1],
        "stream_options": [null, 3],
        "response_format": [{"type": "text"}, null, {"type": "json_object"}, {}, 3],
        "user": ["me", null, 3],
        "use_beam_search": [false, null, true],
        "prompt_logprobs": [null, 1],
        "something_else": [3, null, {"a": [1]}],
    });
    let completions = json!({
        "prompt": ["the", ["the", "a"], [5, 6.0], [[5], [6, 7]], "", [], [[]], [""], [303], [-1], [1.5], 3, null, {}],
        "max_tokens": [0, 5, 5.0, null, -1, 5.5, "5"],
        "best_of": [1, 3, null, 0, 129],
        "echo": [true, null, 1],
        "logprobs": [0, 20, null, 21, -1, true],
        "add_special_tokens": [false, null, 1],
        "suffix": [null, "end"],
    });
    let chat = json!({
        "messages": [[{"role": "user", "content": "a"}], [{"role": "user"}], [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            [], null, [3], [{"content": "a"}], [{"role": 3}], [{"role": "user", "content": 3}], [{"role": "user", "content": [{"type": "image"}]}]],
        "max_completion_tokens": [0, 5, null, -1, "5"],
        "logprobs": [true, false, null, 1],
        "top_logprobs": [0, null, 21],
        "tools": [[], null, [{}]],
        "functions": [[], null, [{}]],
        "add_generation_prompt": [false, null, 1],
        "chat_template_kwargs": [{"a": 1}, null, 3],
        "chat_template": [null, "{{ 1 }}"],
        "continue_final_message": [false, null, true],
    });
    let tokenize = json!({
        "prompt": ["the", "", null, 3],
        "add_special_tokens": [true, false, null, 1],
        "return_token_strs": [true, null, 1],
        "model": [MODEL, null, "other"],
    });
    let detokenize =
        json!({"tokens": [[1, 2.0], [], null, [303], [-1], "a", [1.5]], "model": [MODEL, null, "other"]});
    for (path, least, values) in [
        ("/v1/completions", json!({"prompt": "the", "max_tokens": 4}), &common),
        ("/v1/completions", json!({"prompt": "the", "max_tokens": 4}), &completions),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}),
            &common,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}),
            &chat,
        ),
        ("/tokenize", json!({"prompt": "the"}), &tokenize),
        ("/tokenize", json!({}), &json!({"messages": chat["messages"]})),
        ("/detokenize", json!({"tokens": [1]}), &detokenize),
    ] {
        for (field, values) in values.as_object().unwrap() {
            for value in values.as_array().unwrap() {
                let mut body = least.clone();
                body[field] = value.clone();
                let status = document.check(path, "post", post(&server, path, &body).await.unwrap()).await;
                let objection = document.objection(document.request(path), &body);
                assert_eq!(
                    status == 200,
                    objection.is_none(),
                    "{path} {field} {value} {status} {objection:?}"
                );
                assert!(matches!(status, 200 | 400 | 404), "{path} {body} {status}");
            }
        }
    }
}

#[tokio::test]
async fn answers_have_the_form_that_the_document_says() {
    let server = chatting().await;
    let document = Document::of(&server).await;
    let full = json!({"n": 2, "return_token_ids": true, "max_tokens": 12, "stop": "e", "seed": 1});
    for stream in [false, true] {
        let with = |more: Value| {
            let mut body = full.clone();
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            if stream {
                body["stream"] = json!(true);
                body["stream_options"] = json!({"include_usage": true});
            }
            body
        };
        let text = with(json!({"prompt": ["the", "日本"], "echo": true, "logprobs": 2}));
        let chat = with(
            json!({"messages": [{"role": "user", "content": "日"}], "logprobs": true, "top_logprobs": 2}),
        );
        for (path, body) in [("/v1/completions", text), ("/v1/chat/completions", chat)] {
            let status = document.check(path, "post", post(&server, path, &body).await.unwrap()).await;
            assert_eq!(status, 200);
        }
    }
    // What fails, before the stream and in it.
    let fails = json!({"prompt": [common::FAIL]});
    let status = document
        .check("/v1/completions", "post", post(&server, "/v1/completions", &fails).await.unwrap())
        .await;
    assert_eq!(status, 500);
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/fgrams", "/tokenize", "/detokenize"] {
        let send = |kind: &'static str, body: Vec<u8>| {
            let request = server.client.post(format!("{}{path}", server.url));
            request.header("content-type", kind).body(body).send()
        };
        for (kind, body, expected) in [
            ("text/plain", b"{}".to_vec(), 415),
            ("application/json", b"{".to_vec(), 400),
            ("application/json", vec![b' '; 9 << 20], 413),
            ("application/json", b"{\"model\": \"other\", \"prompt\": \"a\", \"tokens\": [1], \"messages\": [{\"role\": \"a\"}]}".to_vec(), 404),
        ] {
            // One of the two is too many for /tokenize, whose model is looked at first.
            let status = document.check(path, "post", send(kind, body).await.unwrap()).await;
            assert_eq!(status, expected, "{path} {kind}");
        }
    }
    let full = start_with(HashModel::slow(1, Duration::from_millis(10)), 2).await;
    let long = json!({"prompt": [1], "max_tokens": 200, "ignore_eos": true, "stream": true});
    let _running = post(&full, "/v1/completions", &long).await.unwrap();
    full.wait_for(1, 0).await;
    let _waiting = [
        post(&full, "/v1/completions", &long).await.unwrap(),
        post(&full, "/v1/completions", &long).await.unwrap(),
    ];
    let refused = post(&full, "/v1/completions", &long).await.unwrap();
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u32>().is_ok());
    assert_eq!(document.check("/v1/completions", "post", refused).await, 429);
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let server = start(1).await;
    let answer = server.client.get(format!("{}/docs", server.url)).send().await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let page = answer.text().await.unwrap();
    assert!(page.contains("fetch(\"openapi.json\")"));
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="));
}
