//! The model in the repository, as people get it: its table is whole and its own, and it serves.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use reqwest::Client;
use scone::tokenizer::Tokenizer;
use serde_json::{Value, json};

const SCONE: &str = env!("CARGO_BIN_EXE_scone");

fn cards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("model_cards")
}

fn scone(arguments: &[&str]) -> Output {
    let mut command = Command::new(SCONE);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().expect("the program starts")
}

fn verify(table: &Path) -> Output {
    let table = table.to_str().expect("a path in UTF-8");
    scone(&["table", "verify", "--table", table, "--rows", "500", "--json"])
}

#[test]
fn its_table_verifies_and_damage_is_found_and_named() {
    let output = scone(&["table", "verify", "--all", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["checked"]["rows"].as_u64() >= Some(1_000_000), "{report}");
    assert_eq!(report["checked"]["rows"], report["recomputed"]["rows"]);

    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("table.safetensors");
    let good = std::fs::read(cards().join("default/table.safetensors")).expect("the table");
    // Every region of the file, and places without a pattern in between.
    for i in 0..24u64 {
        let at = (i * good.len() as u64 / 24 + i * i * 7919 % 10_007) as usize % good.len();
        let mut bad = good.clone();
        bad[at] ^= 1 << (i % 8);
        std::fs::write(&path, &bad).expect("a writable directory");
        let output = verify(&path);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "byte {at} was changed and nothing found");
        assert!(message.contains("table.safetensors") && !message.contains("panicked"), "{message}");
    }
    for length in [0, 7, 4096, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..length]).expect("a writable directory");
        assert_eq!(verify(&path).status.code(), Some(1), "cut to {length} bytes");
    }
}

#[test]
fn its_table_fits_no_other_model_and_its_files_are_small_enough_for_git() {
    let bytes: u64 = ["default", "default-baseline"].iter().map(|name| size(&cards().join(name))).sum();
    assert!(bytes < 80_000_000, "{bytes} bytes");
    let table = cards().join("default/table.safetensors");
    let output = Command::new(SCONE)
        .args(["generate", "--prompt", "a", "--table"])
        .arg(table)
        .arg(cards().join("default-baseline"))
        .output()
        .expect("the program starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("baseline"), "{message}");
}

fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            if path.is_dir() { size(&path) } else { path.metadata().expect("a file").len() }
        })
        .sum()
}

/// `scone serve`, ended with the test.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new(SCONE)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let url = line.trim().strip_prefix("listening on ").expect("where it listens").to_owned();
        Self { child, url }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended by itself where this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that goes to the server itself. reqwest comes without a provider for TLS and wants one all the same.
fn client() -> Client {
    // An error says only that another test of this program was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().expect("a client")
}

async fn complete(client: &Client, url: &str, body: &Value) -> Value {
    let answer = client.post(format!("{url}/v1/completions")).json(body).send().await.expect("an answer");
    assert!(answer.status().is_success(), "{}", answer.status());
    answer.json().await.expect("JSON")
}

#[tokio::test]
async fn greedy_completions_do_not_change_with_what_runs_beside_them() {
    let server = Server::start();
    let client = client();
    let prompts = [
        "The old man",
        "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals",
        "In the beginning",
        "\"My dear Mr. Bennet,\" said his lady to him one day,",
        "Chapter 1",
    ];
    let request = |prompt: &str| json!({"prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": true, "logprobs": 2});
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.push(complete(&client, &server.url, &request(prompt)).await["choices"][0].clone());
    }
    let requests: Vec<Value> = (0..3).flat_map(|_| prompts).map(request).collect();
    let together =
        futures_util::future::join_all(requests.iter().map(|body| complete(&client, &server.url, body)))
            .await;
    for (i, answer) in together.iter().enumerate() {
        // Text and log-probabilities, to the last bit.
        assert_eq!(answer["choices"][0], alone[i % prompts.len()]);
    }
}

#[tokio::test]
async fn scores_through_the_endpoint_are_those_of_eval() {
    let text =
        "The captain stood upon the deck, and looked out over the sea. He had not slept for three days.";
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("text");
    std::fs::write(&file, text).expect("a writable directory");
    let output = scone(&["eval", "--json", "--text", file.to_str().expect("UTF-8")]);
    let eval: Value = serde_json::from_slice(&output.stdout).expect("JSON");

    let server = Server::start();
    let client = client();
    let body = json!({"prompt": text, "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = complete(&client, &server.url, &body).await;
    let scores = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().expect("scores");
    assert!(scores[0].is_null());
    let sum: f64 = scores[1..].iter().map(|score| score.as_f64().expect("a number")).sum();
    let nll = -sum / (scores.len() - 1) as f64;
    assert_eq!(eval["tokens"], scores.len());
    assert!((nll - eval["nll"].as_f64().expect("a number")).abs() < 1e-4, "{nll} and {eval}");
}

/// The sum of the log-probabilities of the last tokens of a text as the endpoint gives them, and whether each is the likeliest.
async fn score(client: &Client, url: &str, tokens: &[u32], last: usize) -> (f64, bool) {
    let body = json!({"prompt": tokens, "max_tokens": 0, "echo": true, "logprobs": 1});
    let answer = complete(client, url, &body).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    let (mut sum, mut is_greedy) = (0.0, true);
    for i in tokens.len() - last..tokens.len() {
        let own = logprobs["token_logprobs"][i].as_f64().expect("a number");
        let top = logprobs["top_logprobs"][i].as_object().expect("an object");
        sum += own;
        is_greedy &= top.values().all(|other| other.as_f64() <= Some(own));
    }
    (sum, is_greedy)
}

#[tokio::test]
async fn likelihoods_without_a_server_are_those_through_the_endpoint() {
    let tokenizer = Tokenizer::from_file(cards().join("default/tokenizer.json")).expect("the tokenizer");
    let encode = |text: &str| tokenizer.encode(text).expect("tokens");
    let eos = tokenizer.eos().expect("an end of text");
    let long = "He went on and on, through rain and snow, and never once looked back. ".repeat(40);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("lines.jsonl");
    let path = file.to_str().expect("UTF-8");
    let server = Server::start();
    let client = client();

    let pairs =
        [("The old man", " and the sea"), ("of  ", "the"), ("", "Once upon a time"), (&long, " of the")];
    let lines = pairs
        .map(|(context, continuation)| json!({"context": context, "continuation": continuation}).to_string());
    std::fs::write(&file, lines.join("\n")).expect("a writable directory");
    // The endpoint takes a whole context, what is scored among it.
    let config = std::fs::read(cards().join("default/config.json")).expect("the configuration");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    let window = config["max_position_embeddings"].as_u64().expect("a number") as usize;
    let output = scone(&["eval", "--pairs", path, "--context", &(window - 1).to_string()]);
    let found: Vec<Value> = output
        .stdout
        .split_inclusive(|&byte| byte == b'\n')
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect();
    assert_eq!(found.len(), pairs.len(), "{}", String::from_utf8_lossy(&output.stderr));
    for ((context, continuation), found) in pairs.iter().zip(found) {
        let whole = encode(&format!("{context}{continuation}"));
        let before = encode(context.trim_end()).len();
        let scored = whole.len() - before;
        let mut tokens = if context.is_empty() { [vec![eos], whole].concat() } else { whole };
        tokens.drain(..tokens.len().saturating_sub(window));
        let (sum, is_greedy) = score(&client, &server.url, &tokens, scored).await;
        assert_eq!((&found["tokens"], &found["is_greedy"]), (&json!(scored), &json!(is_greedy)));
        let difference = (sum - found["loglikelihood"].as_f64().expect("a number")).abs();
        assert!(difference < 1e-4 * scored as f64, "{difference} {found}");
    }

    let texts = ["It was a dark and stormy night; the rain fell in torrents.", "The end.", &long[..400]];
    let lines = texts.map(|text| json!({"text": text}).to_string());
    std::fs::write(&file, lines.join("\n")).expect("a writable directory");
    let output = scone(&["eval", "--rolling", "--text", path, "--context", "10", "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut all = 0.0;
    for (i, text) in texts.iter().enumerate() {
        let tokens = [vec![eos], encode(text)].concat();
        let mut sum = 0.0;
        for first in (1..tokens.len()).step_by(10) {
            let end = tokens.len().min(first + 10);
            let start = if first == 1 { 0 } else { end - 11 };
            sum += score(&client, &server.url, &tokens[start..end], end - first).await.0;
        }
        let difference = (sum - found["loglikelihoods"][i].as_f64().expect("a number")).abs();
        assert!(difference < 1e-4 * tokens.len() as f64, "{difference} {found}");
        all += sum;
    }
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    let words: usize = texts.iter().map(|text| text.split(' ').count()).sum();
    for (name, expected) in [
        ("bits_per_byte", -all / bytes as f64 / std::f64::consts::LN_2),
        ("byte_perplexity", (-all / bytes as f64).exp()),
        ("word_perplexity", (-all / words as f64).exp()),
    ] {
        let found = found[name].as_f64().expect("a number");
        assert!((found / expected - 1.0).abs() < 1e-3, "{name} {found} {expected}");
    }
}

#[tokio::test]
async fn what_the_endpoint_says_of_f_grams_is_what_explain_says() {
    let text = "It was the best of times, it was the worst of times.<|endoftext|>A naïve café";
    let output = scone(&["explain", "--json", "--text", text]);
    let explained: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let server = Server::start();
    let client = client();
    let ask = async |body: Value| -> Value {
        let answer =
            client.post(format!("{}/v1/fgrams", server.url)).json(&body).send().await.expect("an answer");
        answer.json().await.expect("JSON")
    };
    let answer = ask(json!({"prompt": text})).await;
    assert_eq!((&answer["tokens"], &answer["totals"]), (&explained["tokens"], &explained["totals"]));
    let tokens = answer["tokens"].as_array().expect("tokens");
    let ids: Vec<&Value> = tokens.iter().map(|token| &token["id"]).collect();
    assert_eq!(ask(json!({"prompt": ids})).await, answer, "token ids say the same as their text");

    // The totals are those of the tokens, and each f-gram ends with its token.
    let length = |token: &Value| token["match"].as_u64().expect("a length");
    let hits: Vec<&Value> = tokens.iter().filter(|token| length(token) > 1).collect();
    assert_eq!(answer["totals"]["hits"], hits.len());
    assert!(hits.len() > tokens.len() / 3 && length(&tokens[0]) == 1);
    for hit in hits {
        let gram = hit["fgram_tokens"].as_array().expect("an f-gram");
        assert_eq!((gram.len() as u64, gram.last()), (length(hit), Some(&hit["id"])));
        assert!(hit["count"].as_u64() >= Some(1) && hit["row"].is_u64());
    }
    let special = tokens.iter().find(|token| token["id"] == 0).expect("the end of text");
    assert_eq!((length(special), &special["fgram"]), (0, &Value::Null));
    for wrong in [
        json!({}),
        json!({"prompt": [9_000_000]}),
        json!({"prompt": vec![5; 70_000]}),
        json!({"prompt": [[5]]}),
    ] {
        assert_eq!(ask(wrong).await["error"]["param"], "prompt");
    }
}
