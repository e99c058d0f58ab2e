//! Mixed load on a server process: memory stays where it was, and nothing fails. Ten seconds, or `SCONE_SOAK_SECONDS`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/process.rs"]
mod process;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use process::{Process, post};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// What buffers and the allocator may keep for themselves.
const SLACK: u64 = 32 * MIB;

const PROMPTS: [&str; 4] = [
    "The old man",
    "It was a dark and stormy night; the rain fell in torrents",
    "\"My dear Mr. Bennet,\" said his lady to him one day,",
    "naïve café, 日本語 🦀",
];

/// Requests of every kind, the same for the same number.
fn body(i: usize) -> Value {
    let mut body =
        json!({"prompt": format!("{} {}", PROMPTS[i % 4], i % 97), "max_tokens": i * 7 % 60, "seed": i});
    let extra = match i % 11 {
        0 => json!({"stream": true, "stream_options": {"include_usage": true}}),
        1 => json!({"n": 4, "temperature": 0.9}),
        2 => json!({"echo": true, "logprobs": 5, "max_tokens": 1}),
        3 => json!({"stop": ["the", "\n"], "top_p": 0.9, "top_k": 50}),
        4 => json!({"prompt": PROMPTS, "n": 2, "stream": true, "logprobs": 1}),
        5 => json!({"prompt": vec![i % 8000 + 1; i % 190 + 1]}),
        6 => json!({"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}),
        7 => json!({"logit_bias": {"5": -100, "9": 10}, "min_p": 0.05}),
        _ => json!({}),
    };
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The `i`-th request of the load, looked at as a client would.
async fn ask(server: &Process, i: usize) {
    let get = async |path: &str| server.client.get(format!("{}{path}", server.url)).send().await.unwrap();
    match i % 20 {
        16 => {
            let path = ["/v1/models", "/metrics", "/health", "/ready", "/openapi.json"][i / 20 % 5];
            assert_eq!(get(path).await.status(), StatusCode::OK, "{path}");
        }
        17 => assert_eq!(get(&format!("/nothing/{i}")).await.status(), StatusCode::NOT_FOUND),
        18 => {
            let wrong = json!({"prompt": PROMPTS[0], "temperature": -1, "user": i.to_string()});
            assert_eq!(server.send(&wrong).await.unwrap().status(), StatusCode::BAD_REQUEST);
        }
        // Gone before it is answered.
        19 => drop(
            server.say(&post(&json!({"prompt": PROMPTS[1], "max_tokens": 200, "stream": i % 40 < 20}))).await,
        ),
        _ => {
            let body = body(i);
            check(&body, server.send(&body).await.unwrap()).await;
        }
    }
}

async fn check(body: &Value, response: Response) {
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, StatusCode::OK, "{body} {text}");
    if body["stream"] == true {
        assert!(text.ends_with("data: [DONE]\n\n"), "{body} {text}");
        return;
    }
    let answer: Value = serde_json::from_str(&text).unwrap();
    let prompts = body["prompt"].as_array().filter(|list| list[0].is_string()).map_or(1, Vec::len);
    let choices = prompts * body["n"].as_u64().unwrap_or(1) as usize;
    assert_eq!(answer["choices"].as_array().unwrap().len(), choices, "{body} {answer}");
}

/// So many at a time until the time is over; how many there were.
async fn load(server: &Process, clients: usize, time: Duration) -> usize {
    let start = Instant::now();
    let client = |first: usize| async move {
        let mut i = first;
        while start.elapsed() < time {
            ask(server, i).await;
            i += clients;
        }
        i / clients
    };
    join_all((0..clients).map(client)).await.iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_load_leaves_memory_flat_and_nothing_fails() {
    let seconds = std::env::var("SCONE_SOAK_SECONDS").map_or(10, |text| text.parse().unwrap());
    let server = Process::start(&["--max-queue", "10000"]);
    // What is kept for good is there after a fifth of the time: threads, workspaces, the prefix cache's lists.
    // The allocator gives back what it likes when it likes, so the highest of a few looks counts, here and later.
    let (mut warm, mut before) = (0, 0);
    for _ in 0..4 {
        warm += load(&server, 24, Duration::from_secs(seconds) / 20).await;
        before = before.max(server.memory());
    }
    let files = server.open_files();
    let mut highest = before;
    let mut requests = 0;
    for _ in 0..8 {
        requests += load(&server, 24, Duration::from_secs(seconds) / 10).await;
        highest = highest.max(server.memory());
    }
    println!(
        "{warm} + {requests} requests in {seconds} s; memory {:.1} MiB, at most {:.1} MiB after",
        before as f64 / MIB as f64,
        highest as f64 / MIB as f64
    );
    assert!(highest < before + SLACK, "{before} bytes grew to {highest}");
    server.answers_soon().await;
    server.wait_for_files(files + 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_requests_leave_memory_where_it_was() {
    let server = Process::start(&["--max-queue", "10000"]);
    let ask = async |i: usize| {
        let body = json!({"prompt": format!("The old man {i}"), "max_tokens": 4, "ignore_eos": true, "stream": i.is_multiple_of(2)});
        check(&body, server.send(&body).await.unwrap()).await;
    };
    stream::iter(0..1000).map(&ask).buffer_unordered(16).for_each(|()| async {}).await;
    let before = server.memory();
    stream::iter(1000..11_000).map(&ask).buffer_unordered(16).for_each(|()| async {}).await;
    let after = server.memory();
    println!(
        "memory before {:.1} MiB, after {:.1} MiB",
        before as f64 / MIB as f64,
        after as f64 / MIB as f64
    );
    assert!(after < before + SLACK / 2, "{before} bytes grew to {after}");
}
