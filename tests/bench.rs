//! The load generator against a server whose timing and faults are known.

// Clippy takes only the functions marked as tests for tests; here all are.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use indicatif::ProgressBar;
use scone::bench::{
    Bench, BenchError, FailureKind, Load, Metric, OutputTokens, Plan, Prompt, Prompts, QualityText, Report,
    Sampling, Server, Source, Target, arrivals, run,
};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Instant, sleep_until};

/// What a peer does to a streamed request.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Answers,
    Refuses,
    /// Cuts the connection after this many tokens.
    BreaksOff(u64),
    /// Ends the stream in good order, but too early.
    EndsEarly,
    ReportsAnError,
    Hangs,
}

/// A server of completions with fixed delays.
struct Peer {
    ttft: Duration,
    gap: Duration,
    manner: Manner,
    seen: Mutex<Vec<(Instant, Value)>>,
}

impl Peer {
    async fn start(ttft_ms: u64, gap_ms: u64, manner: Manner) -> (String, Arc<Self>) {
        let [ttft, gap] = [ttft_ms, gap_ms].map(Duration::from_millis);
        let peer = Arc::new(Self { ttft, gap, manner, seen: Mutex::default() });
        let app = Router::new()
            .route(
                "/v1/models",
                get(|| async { Json(json!({"object": "list", "data": [{"id": "peer-1"}]})) }),
            )
            .route("/health", get(|| async { "ok" }))
            .route("/v1/completions", post(complete))
            .with_state(Arc::clone(&peer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // Else the second half of an event waits for the client to acknowledge the first: 40 ms on Linux.
        let listener = listener.tap_io(|connection| connection.set_nodelay(true).unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (url, peer)
    }

    fn prompts(&self) -> Vec<Value> {
        self.seen.lock().unwrap().iter().map(|(_, body)| body["prompt"].clone()).collect()
    }
}

async fn complete(State(peer): State<Arc<Peer>>, Json(body): Json<Value>) -> Response {
    let start = Instant::now();
    assert_eq!(body["model"], "peer-1");
    if body["echo"] == true {
        return Json(echo(body["prompt"].as_str().unwrap())).into_response();
    }
    peer.seen.lock().unwrap().push((start, body.clone()));
    match peer.manner {
        Manner::Refuses => {
            let error = json!({"error": {"message": "the model is on holiday", "type": "server_error"}});
            (StatusCode::INTERNAL_SERVER_ERROR, Json(error)).into_response()
        }
        Manner::Hangs => std::future::pending().await,
        _ => {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let tokens = body["max_tokens"].as_u64().unwrap();
            tokio::spawn(async move { stream(&peer, start, tokens, &sender).await });
            let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
            ([("content-type", "text/event-stream")], body).into_response()
        }
    }
}

type Sender = tokio::sync::mpsc::Sender<Result<Bytes, std::io::Error>>;

/// Sends the answer, each event cut in two in the middle of a character.
async fn stream(peer: &Peer, start: Instant, tokens: u64, sender: &Sender) -> Option<()> {
    for i in 0..tokens {
        sleep_until(start + peer.ttft + peer.gap * i as u32).await;
        match peer.manner {
            Manner::BreaksOff(after) if i == after => {
                return sender.send(Err(std::io::Error::other("cut"))).await.ok();
            }
            Manner::EndsEarly if i == 2 => return None,
            Manner::ReportsAnError if i == 2 => {
                return event(sender, &json!({"error": {"message": "out of rows"}}).to_string()).await;
            }
            _ => {
                let choice = json!({"index": 0, "text": "é", "finish_reason": null});
                event(sender, &json!({"choices": [choice]}).to_string()).await?;
            }
        }
    }
    event(sender, &json!({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}).to_string())
        .await?;
    let usage = json!({"prompt_tokens": 11, "completion_tokens": tokens, "total_tokens": 11 + tokens});
    event(sender, &json!({"choices": [], "usage": usage}).to_string()).await?;
    event(sender, "[DONE]").await
}

async fn event(sender: &Sender, data: &str) -> Option<()> {
    let bytes = Bytes::from(format!("data: {data}\n\n"));
    let middle = data.find('é').map_or(3, |at| "data: ".len() + at + 1);
    sender.send(Ok(bytes.slice(..middle))).await.ok()?;
    sender.send(Ok(bytes.slice(middle..))).await.ok()
}

/// Every byte is a token, and each but the first has a probability of one half.
fn echo(prompt: &str) -> Value {
    assert!(prompt.is_ascii());
    let logprob = |i: usize| if i == 0 { Value::Null } else { json!(-std::f64::consts::LN_2) };
    let logprobs = json!({
        "tokens": prompt.chars().collect::<Vec<_>>(),
        "token_logprobs": (0..prompt.len()).map(logprob).collect::<Vec<_>>(),
        "text_offset": (0..prompt.len()).collect::<Vec<_>>(),
    });
    json!({"choices": [{"index": 0, "text": prompt, "logprobs": logprobs, "finish_reason": "length"}]})
}

/// A small run; the prompts are numbered.
fn bench(targets: &[(&str, &str)]) -> Bench {
    let list = (0..100).map(|i| Prompt::Text(format!("prompt {i}"))).collect();
    let target = |&(name, url): &(&str, &str)| Target { name: name.into(), source: Source::Url(url.into()) };
    Bench {
        targets: targets.iter().map(target).collect(),
        baseline: None,
        plan: Plan {
            loads: vec![Load::Closed { concurrency: 1 }],
            requests: 4,
            repetitions: 2,
            warmup: 1,
            seed: 0,
            slo: None,
        },
        prompts: Prompts { list, source: "numbers".to_owned() },
        sampling: Sampling {
            output_tokens: OutputTokens::exactly(8).unwrap(),
            temperature: 0.0,
            seed: 5,
            timeout: Duration::from_secs(20),
        },
        quality: None,
        requests_log: None,
        startup: Duration::from_secs(20),
    }
}

async fn report(bench: Bench) -> Report {
    run(bench, &ProgressBar::hidden()).await.unwrap()
}

#[tokio::test]
async fn times_and_counts_are_those_of_the_server() {
    let (url, peer) = Peer::start(60, 15, Manner::Answers).await;
    let mut bench = bench(&[("peer", &format!("{url}/v1/"))]);
    bench.plan.slo = Some("ttft:1".parse().unwrap());
    let report = report(bench).await;
    let result = &report.results[0];
    assert_eq!((result.ok, result.failed, result.short), (8, 0, 0));
    let [ttft, itl] = [result.ttft_ms.unwrap(), result.itl_ms.unwrap()];
    assert!((58.0..95.0).contains(&ttft.p50), "TTFT {ttft:?}");
    assert!((13.0..22.0).contains(&itl.p50), "ITL {itl:?}");
    assert_eq!(itl.count, 8 * 7);
    let [tpot, e2e] = [result.tpot_ms.unwrap(), result.e2e_ms.unwrap()];
    assert!((14.0..22.0).contains(&tpot.p50), "TPOT {tpot:?}");
    assert!((160.0..240.0).contains(&e2e.p50), "E2E {e2e:?}");
    // One at a time: a request takes as long as its answer.
    assert!((result.requests_per_s * e2e.mean / 1e3 - 1.0).abs() < 0.1, "{}", result.requests_per_s);
    assert!((result.output_tokens_per_s / result.requests_per_s - 8.0).abs() < 1e-9);
    assert!((result.total_tokens_per_s.unwrap() / result.requests_per_s - 19.0).abs() < 1e-9);
    assert_eq!(result.goodput_per_s, Some(0.0));

    let seen = peer.seen.lock().unwrap();
    assert_eq!(seen.len(), 9, "with the one that warms up");
    let sent = &seen[0].1;
    for (key, value) in [
        ("max_tokens", json!(8)),
        ("temperature", json!(0.0)),
        ("seed", json!(5)),
        ("ignore_eos", json!(true)),
        ("stream", json!(true)),
        ("stream_options", json!({"include_usage": true})),
    ] {
        assert_eq!(sent[key], value, "{key}");
    }
}

#[tokio::test]
async fn concurrent_requests_overlap() {
    let (url, _) = Peer::start(80, 5, Manner::Answers).await;
    let mut bench = bench(&[("peer", &url)]);
    bench.plan.loads = vec![Load::Closed { concurrency: 1 }, Load::Closed { concurrency: 4 }];
    let report = report(bench).await;
    let speedup = report.results[1].requests_per_s / report.results[0].requests_per_s;
    assert!((2.5..4.5).contains(&speedup), "{speedup}");
}

#[tokio::test]
async fn targets_get_the_same_prompts_by_turns() {
    let (url_a, a) = Peer::start(1, 0, Manner::Answers).await;
    let (url_b, b) = Peer::start(1, 0, Manner::Answers).await;
    let report = report(bench(&[("a", &url_a), ("b", &url_b)])).await;
    assert_eq!(report.results.len(), 2);
    let expected: Vec<Value> = [8, 0, 1, 2, 3, 4, 5, 6, 7].map(|i| json!(format!("prompt {i}"))).into();
    assert_eq!(a.prompts(), expected);
    assert_eq!(b.prompts(), expected);
    // A B, then B A: the middle of the run is b's.
    let times = |peer: &Peer| peer.seen.lock().unwrap()[1..].iter().map(|(at, _)| *at).collect::<Vec<_>>();
    let (a, b) = (times(&a), times(&b));
    assert!(a[3] < b[0] && b[7] < a[4]);
}

#[tokio::test]
async fn a_target_that_is_twice_as_slow_has_twice_the_times() {
    let (fast, _) = Peer::start(20, 10, Manner::Answers).await;
    let (slow, _) = Peer::start(40, 20, Manner::Answers).await;
    let mut bench = bench(&[("slow", &slow), ("fast", &fast)]);
    bench.baseline = Some("fast".to_owned());
    bench.plan.repetitions = 5;
    let report = report(bench).await;
    assert_eq!(report.ratios.len(), 3);
    for ratio in &report.ratios {
        assert_eq!((ratio.target.as_str(), ratio.baseline.as_str(), ratio.ratios.len()), ("slow", "fast", 5));
        let expected = if ratio.metric == Metric::OutputTokensPerS { 0.5 } else { 2.0 };
        let mean = ratio.geometric_mean.unwrap();
        assert!((mean / expected - 1.0).abs() < 0.15, "{ratio:?}");
        let [low, high] = ratio.interval.unwrap();
        assert!(low <= mean && mean <= high && ratio.includes_one == Some(false), "{ratio:?}");
    }
    let text = report.to_string();
    assert!(text.contains("slow / fast, median TPOT: ") && text.contains("(n = 5)"), "{text}");
    assert!(!text.contains("no difference shown"), "{text}");
}

#[tokio::test]
async fn every_kind_of_failure_is_counted_and_shown() {
    for (manner, kind, part) in [
        (Manner::Refuses, FailureKind::Status, "500 Internal Server Error: the model is on holiday"),
        (Manner::BreaksOff(0), FailureKind::Stream, ""),
        (Manner::BreaksOff(3), FailureKind::Stream, ""),
        (Manner::EndsEarly, FailureKind::Stream, "ended before"),
        (Manner::ReportsAnError, FailureKind::Server, "out of rows"),
        (Manner::Hangs, FailureKind::Timeout, "300ms"),
    ] {
        let (good, _) = Peer::start(1, 0, Manner::Answers).await;
        let (bad, _) = Peer::start(1, 0, manner).await;
        let mut bench = bench(&[("good", &good), ("bad", &bad)]);
        bench.plan.requests = 2;
        if manner == Manner::Hangs {
            bench.sampling.timeout = Duration::from_millis(300);
        }
        let report = report(bench).await;
        assert_eq!((report.results[0].failed, report.results[1].ok), (0, 0));
        let failures = &report.results[1].failures;
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert_eq!(failures[&kind].count, 4);
        assert!(failures[&kind].first.contains(part), "{failures:?}");
        assert!(report.to_string().contains("bad: 4 failed, the first: "));
        assert!(report.all_failed());
        assert!(report.ratios.iter().all(|ratio| ratio.ratios.is_empty() && ratio.geometric_mean.is_none()));
    }
}

#[tokio::test]
async fn an_open_loop_follows_its_schedule_and_waits_for_no_answer() {
    let (url, peer) = Peer::start(400, 0, Manner::Answers).await;
    let mut bench = bench(&[("peer", &url)]);
    bench.plan = Plan {
        loads: vec![Load::Open { rate: 40.0 }],
        requests: 20,
        repetitions: 1,
        warmup: 0,
        seed: 9,
        slo: None,
    };
    report(bench).await;
    let seen: Vec<Instant> = peer.seen.lock().unwrap().iter().map(|(at, _)| *at).collect();
    let expected = arrivals(40.0, 20, 9);
    // The first request's delay, which opens the connection, is in all of them: compare with the first.
    for (at, expected_at) in seen.iter().zip(&expected) {
        let offset = (*at - seen[0]).as_secs_f64() - (expected_at - expected[0]);
        assert!(offset.abs() < 0.08, "{offset} s off");
    }
}

#[tokio::test]
async fn quality_comes_through_the_endpoint() {
    let (url, _) = Peer::start(1, 0, Manner::Answers).await;
    let mut bench = bench(&[("peer", &url)]);
    let text = "one two three\n".repeat(20);
    bench.quality = Some(QualityText { text, piece_chars: 30, limit: 4 });
    let report = report(bench).await;
    let quality = report.targets[0].quality.as_ref().unwrap();
    assert_eq!((quality.pieces, quality.tokens, quality.bytes), (4, 4 * 27, 4 * 27));
    assert!((quality.perplexity - 2.0).abs() < 1e-9 && (quality.bits_per_byte - 1.0).abs() < 1e-9);
    let text = report.to_string();
    assert!(text.contains("perplexity") && text.contains("2.000"), "{text}");
}

#[tokio::test]
async fn requests_are_logged_one_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests.jsonl");
    let (url, _) = Peer::start(5, 2, Manner::Answers).await;
    let mut logged = bench(&[("peer", &url)]);
    logged.requests_log = Some(path.clone());
    report(logged).await;
    let log = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 8);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(
            (line["target"].as_str(), line["repetition"].as_u64()),
            (Some("peer"), Some(i as u64 / 4))
        );
        assert_eq!((line["prompt"].as_u64(), line["output_tokens"].as_u64()), (Some(i as u64), Some(8)));
        assert_eq!(line["load"], json!({"mode": "closed", "concurrency": 1}));
        let itl = line["itl_ms"].as_array().unwrap();
        let sum: f64 = itl.iter().map(|ms| ms.as_f64().unwrap()).sum();
        assert!(line["ttft_ms"].as_f64().unwrap() + sum <= line["e2e_ms"].as_f64().unwrap() + 1e-6);
        assert!(line["error"].is_null() && itl.len() == 7);
    }
    // A run that fails leaves nothing, neither under the name nor beside it.
    std::fs::remove_file(&path).unwrap();
    let mut failed = bench(&[("peer", &url), ("nobody", "http://127.0.0.1:9")]);
    failed.requests_log = Some(path);
    let error = run(failed, &ProgressBar::hidden()).await.unwrap_err().to_string();
    assert!(error.contains("nobody at http://127.0.0.1:9"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_run_that_makes_no_sense_is_refused() {
    type Spoil = fn(&mut Bench);
    let cases: [(Spoil, &str); 6] = [
        (|bench| bench.targets.clear(), "no target"),
        (|bench| bench.targets[1].name = "a".to_owned(), "two targets are named a"),
        (|bench| bench.baseline = Some("c".to_owned()), "no target is named c"),
        (|bench| bench.plan.loads = vec![Load::Open { rate: 0.0 }], "rate"),
        (|bench| bench.plan.loads = vec![Load::Closed { concurrency: 0 }], "concurrency"),
        (|bench| bench.plan.requests = 0, "at least"),
    ];
    for (spoil, part) in cases {
        let mut bench = bench(&[("a", "http://127.0.0.1:9"), ("b", "http://127.0.0.1:9")]);
        spoil(&mut bench);
        let error = run(bench, &ProgressBar::hidden()).await.unwrap_err();
        assert!(matches!(&error, BenchError::Config(why) if why.contains(part)), "{error}");
    }
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn is_alive(pid: &str) -> bool {
    // A zombie answers signals too, but has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[tokio::test]
async fn a_spawned_server_is_measured_and_ended() {
    let directory = tempfile::tempdir().unwrap();
    let pid_file = directory.path().join("pid");
    let (url, _) = Peer::start(1, 0, Manner::Answers).await;
    let script =
        format!("echo starting; echo $$ > {}; echo listening on {url}; exec sleep 60", pid_file.display());
    let mut bench = bench(&[("peer", &url)]);
    bench.targets.push(Target { name: "own".to_owned(), source: Source::Program(shell(&script)) });
    let report = report(bench).await;
    assert_eq!(report.targets.iter().map(|target| target.spawned).collect::<Vec<_>>(), [false, true]);
    assert_eq!((report.targets[1].url.as_str(), report.results[1].ok), (url.as_str(), 8));
    let pid = std::fs::read_to_string(pid_file).unwrap();
    assert!(!is_alive(pid.trim()));
}

#[tokio::test]
async fn a_server_that_ignores_sigterm_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let pid_file = directory.path().join("pid");
    let (url, _) = Peer::start(1, 0, Manner::Answers).await;
    let script = format!(
        "trap '' TERM; echo $$ > {}; echo listening on {url}; while :; do sleep 0.1; done",
        pid_file.display()
    );
    let server = Server::start("own", shell(&script), Duration::from_secs(10)).await.unwrap();
    let pid = std::fs::read_to_string(pid_file).unwrap();
    assert!(is_alive(pid.trim()));
    server.stop().await;
    assert!(!is_alive(pid.trim()));
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() {
    let start = async |script: &str, ms| {
        Server::start("own", shell(script), Duration::from_millis(ms)).await.unwrap_err().to_string()
    };
    let error = start("echo no such model >&2; exit 3", 10_000).await;
    assert!(error.contains("exit status: 3") && error.contains("no such model"), "{error}");
    let error = start("echo loading >&2; exec sleep 60", 500).await;
    assert!(error.contains("not ready after 500ms") && error.contains("loading"), "{error}");
    let error = Server::start("own", Command::new("./no-such-program"), Duration::from_secs(1)).await;
    assert!(error.unwrap_err().to_string().contains("could not start"));
}

#[tokio::test]
async fn a_server_that_dies_under_load_ends_the_run() {
    let (url, _) = Peer::start(30, 0, Manner::Answers).await;
    let script = format!("echo listening on {url}; sleep 0.3; echo out of memory >&2; exit 9");
    let mut bench = bench(&[("peer", &url)]);
    bench.plan.repetitions = 20;
    bench.targets.push(Target { name: "own".to_owned(), source: Source::Program(shell(&script)) });
    let error = run(bench, &ProgressBar::hidden()).await.unwrap_err().to_string();
    assert!(error.contains("the server own ended") && error.contains("out of memory"), "{error}");
}

fn program(url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scone"));
    command.args(["bench", "--requests", "2", "--repetitions", "2", "--output-tokens", "3", "--target"]);
    // A proxy is none of a loopback target's business.
    command.arg(format!("peer={url}")).env("http_proxy", "http://127.0.0.1:9").kill_on_drop(true);
    command
}

#[tokio::test]
async fn the_program_prints_one_json_document() {
    let (url, _) = Peer::start(1, 0, Manner::Answers).await;
    let output = program(&url).args(["--json", "--concurrency", "1,2"]).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["targets"][0]["model"], "peer-1");
    assert_eq!(report["sampling"]["timeout_s"], 120.0);
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0 && report["version"].is_string());
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for (result, concurrency) in results.iter().zip(1..) {
        assert_eq!(result["load"], json!({"mode": "closed", "concurrency": concurrency}));
        assert_eq!((&result["ok"], &result["failed"]), (&json!(4), &json!(0)));
        for metric in ["ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"] {
            for figure in ["mean", "p50", "p90", "p99"] {
                assert!(result[metric][figure].is_f64(), "{metric} {figure}");
            }
        }
    }
}

#[tokio::test]
async fn the_program_fails_where_all_requests_do() {
    let (url, _) = Peer::start(1, 0, Manner::Refuses).await;
    let output = program(&url).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        stdout.contains("on holiday") && stderr.contains("all requests to a target failed"),
        "{stdout}{stderr}"
    );
}

#[tokio::test]
async fn the_program_can_be_interrupted() {
    let (url, peer) = Peer::start(1, 0, Manner::Hangs).await;
    let mut child = program(&url).spawn().unwrap();
    while peer.prompts().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let status = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(130));
}
