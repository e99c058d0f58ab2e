//! `/metrics` of the real server, and what is built on it: each metric and label that the dashboard and the alert rules ask
//! for is there, all names are, and the numbers are those of what was sent.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/exposition.rs"]
mod exposition;
#[path = "common/promql.rs"]
mod promql;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use exposition::Page;
use promql::Used;
use reqwest::Client;
use scone::server::names::{self, Kind};
use scone::table::Table;
use scone::tokenizer::Tokenizer;
use serde_json::{Value, json};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// `scone serve` over the shipped model, ended with the test.
struct Server {
    child: Child,
    url: String,
    client: Client,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_scone"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
            command.env_remove(name);
        }
        let mut child = command
            .current_dir(root())
            .env_remove("RUST_LOG")
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        let client = Client::builder().no_proxy().build().unwrap();
        Self { child, url, client, log, _directory: directory }
    }

    async fn post(&self, id: &str, body: &Value) -> reqwest::Response {
        let request = self.client.post(format!("{}/v1/completions", self.url)).header("x-request-id", id);
        request.json(body).send().await.unwrap()
    }

    async fn complete(&self, body: &Value) -> Value {
        let answer = self.post("whole", body).await;
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        answer.json().await.unwrap()
    }

    async fn scrape(&self) -> Page {
        let answer = self.client.get(format!("{}/metrics", self.url)).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        Page::parse(&answer.text().await.unwrap())
    }

    /// Scrapes until so many sequences have ended for this reason: they do shortly after their answers are there.
    async fn scrape_after(&self, reason: &str, count: f64) -> Page {
        let start = Instant::now();
        loop {
            let page = self.scrape().await;
            // What the engine counts is there when it has nothing more to do.
            let is_idle = page.value("scone_num_requests_running", &[]) == 0.0;
            if is_idle && page.value("scone_request_success_total", &[("finished_reason", reason)]) >= count {
                return page;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{reason}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The lines of the log that tell of requests, once that of the request `last` is there.
    fn lines(&self, last: &str) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let log = std::fs::read_to_string(&self.log).unwrap();
            let whole = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let lines = whole.map(|line| serde_json::from_str::<Value>(line).expect("every line is JSON"));
            let lines: Vec<Value> = lines.filter(|line| line["target"] == "scone::request").collect();
            if lines.iter().any(|line| line["id"] == last) {
                return lines;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no line of {last}: {log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The expressions of the dashboard and of the rules, with where they stand.
fn expressions() -> Vec<(String, String)> {
    let dashboard = std::fs::read_to_string(root().join("deploy/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let mut all: Vec<(String, String)> = panels
        .flat_map(|panel| {
            let targets = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
            targets.iter().map(move |target| {
                (panel["title"].as_str().unwrap().to_owned(), target["expr"].as_str().unwrap().to_owned())
            })
        })
        .collect();
    assert!(all.len() > 40, "{}", all.len());
    let rules = std::fs::read_to_string(root().join("deploy/alerts.yaml")).unwrap();
    let after = |key: &str| -> Vec<String> {
        rules
            .lines()
            .filter_map(|line| line.trim().strip_prefix(key))
            .map(|rest| rest.trim().to_owned())
            .collect()
    };
    let (alerts, expressions) = (after("- alert:"), after("expr:"));
    assert!(alerts.len() > 5 && alerts.len() == expressions.len());
    all.extend(alerts.into_iter().zip(expressions));
    all
}

#[tokio::test]
async fn all_names_are_there_and_the_dashboard_and_the_rules_use_only_what_is() {
    let server = Server::start(&[]);
    let answer = server.complete(&json!({"prompt": "The old man", "max_tokens": 5})).await;
    assert_eq!(answer["object"], "text_completion");
    server.client.get(format!("{}/health", server.url)).send().await.unwrap();
    let page = server.scrape().await;

    for metric in names::ALL {
        let family = page.families.get(metric.name).unwrap_or_else(|| panic!("{} is not there", metric.name));
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert_eq!((family.kind.as_str(), family.help.as_str()), (kind, metric.help), "{}", metric.name);
        for (name, labels, _) in &family.samples {
            let mut labels: Vec<&str> =
                labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
            let mut expected = metric.labels.to_vec();
            labels.sort_unstable();
            expected.sort_unstable();
            assert_eq!(labels, expected, "{name}");
        }
    }
    assert_eq!(page.families.len(), names::ALL.len());

    for (place, expression) in expressions() {
        let used = Used::of(&expression);
        let mut labels = vec!["instance", "job"];
        for selector in &used.selectors {
            let samples: Vec<_> = page
                .families
                .values()
                .flat_map(|family| &family.samples)
                .filter(|(name, ..)| *name == selector.metric)
                .collect();
            assert!(!samples.is_empty(), "{place}: {} is not exported", selector.metric);
            let own: Vec<&str> =
                samples.iter().flat_map(|(_, had, _)| had.keys()).map(String::as_str).collect();
            for (label, operator, value) in &selector.labels {
                let is_known = own.contains(&label.as_str()) || label == "instance";
                assert!(is_known, "{place}: {} has no label {label}", selector.metric);
                // What can be asked for by name must be a value that there is; of statuses there are many.
                let is_there = samples.iter().any(|(_, had, _)| had.get(label) == Some(value));
                let is_name = operator.ends_with('=') && label != "status";
                assert!(!is_name || is_there, "{place}: {label}={value}");
            }
            labels.extend(own);
        }
        for group in &used.groups {
            assert!(labels.contains(&group.as_str()), "{place}: there is no label {group}");
        }
    }
}

/// How many tokens have a longest match of each length, found by asking for every length.
fn matches(tokens: &[u32]) -> Vec<f64> {
    let table = Table::open(root().join("model_cards/default/table.safetensors")).unwrap();
    let longest = table.policy().max_n;
    let mut counts = vec![0.0; longest + 1];
    for end in 1..=tokens.len() {
        let is_match = |n: &usize| table.index().rank(&tokens[end - n..end]).is_some();
        let n = (2..=longest.min(end)).rev().find(is_match);
        let is_special = table.policy().special_tokens.contains(&tokens[end - 1]);
        counts[n.unwrap_or(usize::from(!is_special))] += 1.0;
    }
    counts
}

#[tokio::test]
async fn what_is_counted_is_what_was_sent() {
    let server = Server::start(&["--no-prefix-cache"]);
    let tokenizer = Tokenizer::from_file(root().join("model_cards/default/tokenizer.json")).unwrap();
    let text =
        "It was the best of times, it was the worst of times, it was the age of wisdom, and of the old man.";
    let mut prompt = tokenizer.encode(text).unwrap();
    prompt.extend([tokenizer.eos().unwrap(), prompt[0]]);

    // Nothing but a prompt: each of its tokens is looked up once.
    server.complete(&json!({"prompt": prompt, "max_tokens": 0, "echo": true})).await;
    let page = server.scrape_after("length", 1.0).await;
    let expected = matches(&prompt);
    for (n, &count) in expected.iter().enumerate().skip(2) {
        assert_eq!(page.value("scone_fgram_matches_total", &[("n", &n.to_string())]), count, "{n}");
    }
    let found: f64 = expected[2..].iter().sum();
    for (kind, count) in [("special", expected[0]), ("token", expected[1]), ("fgram", found)] {
        assert_eq!(page.value("scone_fgram_positions_total", &[("embedding", kind)]), count, "{kind}");
    }
    let tokens = prompt.len() as f64;
    assert!((page.value("scone_fgram_hit_rate", &[]) - found / tokens).abs() < 1e-9 && found > 5.0);
    assert_eq!(page.value("scone_table_rows_read_total", &[]), found);
    assert_eq!(page.value("scone_prompt_tokens_total", &[]), tokens);
    assert_eq!(page.value("scone_engine_step_tokens_total", &[]), tokens);
    assert_eq!(page.value("scone_generation_tokens_total", &[]), 0.0);
    assert_eq!(page.value("scone_time_to_first_token_seconds_count", &[]), 0.0);

    let long = json!({"prompt": prompt, "max_tokens": 9, "n": 2, "temperature": 0, "ignore_eos": true});
    let usage = server.complete(&long).await["usage"].clone();
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(prompt.len()), &json!(18)));
    let bias = json!({tokenizer.eos().unwrap().to_string(): 100});
    let stopped = server.complete(&json!({"prompt": "The", "max_tokens": 9, "logit_bias": bias})).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let generated = 18 + stopped["usage"]["completion_tokens"].as_u64().unwrap();
    let prompts = 2.0 * tokens + stopped["usage"]["prompt_tokens"].as_f64().unwrap();
    for (body, status) in [(json!({"prompt": 1.5}), 400), (json!({"prompt": "a", "model": "none"}), 404)] {
        assert_eq!(server.post("wrong", &body).await.status(), status);
    }
    assert_eq!(
        server.client.get(format!("{}/no/such/place", server.url)).send().await.unwrap().status(),
        404
    );

    let page = server.scrape_after("stop", 1.0).await;
    for (reason, count) in [("length", 3.0), ("stop", 1.0), ("abort", 0.0), ("error", 0.0)] {
        assert_eq!(
            page.value("scone_request_success_total", &[("finished_reason", reason)]),
            count,
            "{reason}"
        );
    }
    assert_eq!(page.value("scone_prompt_tokens_total", &[]), prompts);
    assert_eq!(page.value("scone_generation_tokens_total", &[]), generated as f64);
    // Each sample reads the prompt, which the second of them shares only where blocks are kept.
    assert_eq!(page.value("scone_prefix_cache_queries_total", &[]), prompts + tokens);
    for (histogram, count) in [
        ("e2e_request_latency", 4.0),
        ("request_queue_time", 4.0),
        ("time_to_first_token", 3.0),
        ("request_prefill_time", 3.0),
        ("request_decode_time", 3.0),
        ("inter_token_latency", (generated - 3) as f64),
    ] {
        assert_eq!(page.value(&format!("scone_{histogram}_seconds_count"), &[]), count, "{histogram}");
    }
    let http =
        |route, status| page.value("scone_http_requests_total", &[("route", route), ("status", status)]);
    assert_eq!(http("/v1/completions", "200"), 3.0);
    assert_eq!((http("/v1/completions", "400"), http("/v1/completions", "404")), (1.0, 1.0));
    assert_eq!(http("unmatched", "404"), 1.0);
    assert_eq!(
        page.value("scone_num_requests_running", &[]) + page.value("scone_num_requests_waiting", &[]),
        0.0
    );
}

#[tokio::test]
async fn who_goes_away_is_counted_and_logged_and_nothing_of_what_was_said() {
    let server = Server::start(&[]);
    // So much that it is not done before the server hears that nobody listens.
    let body = json!({"prompt": "A secret", "max_tokens": 200, "n": 128, "ignore_eos": true, "stream": true});
    let mut answer = server.post("gone", &body).await;
    answer.chunk().await.unwrap().unwrap();
    drop(answer);
    let page = server.scrape_after("abort", 1.0).await;
    assert_eq!(page.value("scone_request_success_total", &[("finished_reason", "length")]), 0.0);
    server.complete(&json!({"prompt": "A secret", "max_tokens": 3, "n": 2, "ignore_eos": true})).await;
    assert_eq!(server.post("wrong", &json!({"prompt": {"secret": 1}})).await.status(), 400);
    server.scrape_after("length", 2.0).await;

    let lines = server.lines("wrong");
    let line = |id: &str| lines.iter().find(|line| line["id"] == id).unwrap();
    let gone = line("gone");
    assert_eq!(
        (&gone["finish"], &gone["status"], &gone["level"]),
        (&json!("abort 128"), &json!(200), &json!("INFO"))
    );
    assert!((1..128 * 200).contains(&gone["generated_tokens"].as_u64().unwrap()), "{gone}");
    let whole = line("whole");
    assert_eq!((&whole["finish"], &whole["generated_tokens"]), (&json!("length 2"), &json!(6)));
    assert_eq!((&whole["route"], &whole["status"]), (&json!("/v1/completions"), &json!(200)));
    let times = ["queue_ms", "first_token_ms", "total_ms"].map(|name| whole[name].as_f64().unwrap());
    assert!(times[0] <= times[1] && times[1] <= times[2], "{whole}");
    assert!((0.0..=1.0).contains(&whole["hit_rate"].as_f64().unwrap()), "{whole}");
    assert_eq!((&line("wrong")["status"], &line("wrong")["prompt_tokens"]), (&json!(400), &Value::Null));
    assert!(!std::fs::read_to_string(&server.log).unwrap().contains("secret"));
    assert!(!lines.iter().any(|line| line["route"] == "/metrics"), "scrapes are logged for debugging only");
}

#[test]
fn the_files_say_what_they_are_for() {
    let rules = std::fs::read_to_string(root().join("deploy/alerts.yaml")).unwrap();
    assert_eq!(rules.matches("summary: ").count(), rules.matches("- alert: ").count());
    let documented = std::fs::read_to_string(Path::new(&root()).join("docs/metrics.md")).unwrap();
    for metric in names::ALL {
        assert!(documented.contains(&format!("`{}`", metric.name)), "docs/metrics.md lacks {}", metric.name);
    }
}
