//! A server whose table is moved, cut and exchanged under it, wherever its rows live.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/tiny.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
mod tiny;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use scone::engine::{Config, Engine};
use scone::model::{LiveTable, ModelDirectory, Shard, TokenizerInfo, build_table};
use scone::server::{self, App, Chat, ModelCard, Observe};
use scone::table::{DirectReads, Placement, RowFormat, RowType};
use serde_json::{Value, json};
use tempfile::TempDir;

const PLACEMENTS: [Placement; 5] = [
    Placement::Ram { lock: false, huge_pages: false },
    Placement::Ram { lock: false, huge_pages: true },
    Placement::Mmap { prefault: 4096 },
    Placement::Direct { cache: 10_000, queue_depth: 8, reads: DirectReads::Ring },
    Placement::Direct { cache: 0, queue_depth: 8, reads: DirectReads::Threads },
];

struct Server {
    address: SocketAddr,
    client: Client,
    live: Option<Arc<LiveTable>>,
    _engine: Engine,
}

async fn start(directory: &ModelDirectory, placement: Placement) -> Server {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let live = directory.live_table(None, placement, &mut |_, _| ()).unwrap();
    let model = directory.load_with(live.clone(), &tiny::runtime(4 * 64)).unwrap();
    let engine =
        Engine::start(Box::new(model), Config { max_batch_tokens: 16, ..Config::default() }).unwrap();
    let app = App {
        engine: engine.handle(),
        tokenizer: Arc::new(ModelDirectory::open(directory.path()).unwrap().into_tokenizer()),
        chat: Chat::new(TokenizerInfo::default()),
        card: ModelCard { id: "tiny".into(), created: 1 },
        table: live.clone(),
        stop_tokens: vec![],
        observe: Observe::new(),
        guard: Arc::default(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(server::run(listener, app, std::future::pending()));
    Server { address, client: Client::new(), live, _engine: engine }
}

impl Server {
    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let response =
            self.client.post(format!("http://{}{path}", self.address)).json(body).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let response = self.client.get(format!("http://{}{path}", self.address)).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    async fn complete(&self) -> (StatusCode, Value) {
        let prompt = "the sea of the night and the wind held its breath";
        self.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 8, "temperature": 0})).await
    }

    async fn text(&self) -> String {
        let (status, answer) = self.complete().await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    }
}

fn model(seed: u64) -> (TempDir, ModelDirectory, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let opened = tiny::write(directory.path(), seed, RowType::F32);
    let table = opened.table_path().unwrap();
    (directory, opened, table)
}

/// Puts a file in another's place, as a table should be replaced.
fn move_over(bytes: &[u8], path: &Path) {
    let beside = path.with_extension("new");
    fs::write(&beside, bytes).unwrap();
    fs::rename(beside, path).unwrap();
}

fn message(answer: &Value) -> &str {
    answer["error"]["message"].as_str().unwrap_or_else(|| panic!("no error: {answer}"))
}

#[tokio::test]
async fn a_table_that_is_cut_fails_requests_until_it_is_reloaded() {
    let (_keep, directory, table) = model(1);
    let whole = fs::read(&table).unwrap();
    let mut texts = Vec::new();
    for placement in PLACEMENTS {
        let server = start(&directory, placement).await;
        texts.push(server.text().await);
        let (status, health) = server.get("/health").await;
        assert_eq!((status, &health["table"]["replaced"]), (StatusCode::OK, &json!(false)));
        assert_eq!(health["table"]["mode"], placement.to_string());

        fs::OpenOptions::new().write(true).open(&table).unwrap().set_len(5000).unwrap();
        for _ in 0..2 {
            let (status, answer) = server.complete().await;
            assert!(status.is_server_error() && message(&answer).contains("table.safetensors"), "{answer}");
            let (status, answer) = server.get("/health").await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(message(&answer).contains("table.safetensors"), "{answer}");
            assert_eq!(server.get("/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
        }
        let (status, answer) = server.post("/admin/table", &json!({})).await;
        assert_eq!(status, StatusCode::CONFLICT, "{answer}");
        assert!(message(&answer).contains("5000 bytes"), "{answer}");

        move_over(&whole, &table);
        let (status, answer) = server.post("/admin/table", &json!({})).await;
        assert_eq!((status, &answer["path"]), (StatusCode::OK, &json!(table)), "{answer}");
        assert_eq!((&answer["dtype"], &answer["bytes"]), (&json!("f32"), &json!(whole.len())));
        assert_eq!(server.get("/health").await.0, StatusCode::OK);
        assert_eq!(server.get("/ready").await.0, StatusCode::OK);
        texts.push(server.text().await);
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_under_load_drops_no_request() {
    let (_keep, directory, table) = model(1);
    let other = table.with_file_name("other.safetensors");
    fs::copy(&table, &other).unwrap();
    for placement in PLACEMENTS {
        let server = start(&directory, placement).await;
        let expected = server.text().await;
        let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let client = async || {
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(server.text().await, expected);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        };
        let exchange = async {
            for round in 0..20 {
                let path = if round % 2 == 0 { &other } else { &table };
                let (status, answer) = server.post("/admin/table", &json!({"path": path})).await;
                assert_eq!((status, &answer["path"]), (StatusCode::OK, &json!(path)), "{answer}");
                let before = answered.load(Ordering::Relaxed);
                while answered.load(Ordering::Relaxed) == before {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            is_over.store(true, Ordering::Relaxed);
        };
        tokio::join!(client(), client(), client(), exchange);
        // The counters are those of all the tables together.
        let metrics = server.live.as_ref().unwrap().get().metrics().snapshot();
        let positions: u64 = metrics.positions.iter().sum();
        assert!(
            positions >= 8 * answered.load(Ordering::Relaxed) as u64 && metrics.hit_rate > 0.3,
            "{metrics:?}"
        );
        assert_eq!(metrics.positions[2..].iter().sum::<u64>(), rows(&metrics));
    }
}

fn rows(metrics: &scone::table::MetricsSnapshot) -> u64 {
    metrics.rows_cache + metrics.rows_memory + metrics.rows_disk
}

#[tokio::test]
async fn only_a_table_that_fits_is_taken() {
    let (_keep, directory, table) = model(1);
    let (_other_keep, _, others) = model(2);
    let server = start(&directory, Placement::default()).await;
    let expected = server.text().await;
    let missing = table.with_file_name("missing");
    let no_table = table.with_file_name("config.json");
    for (path, words) in [
        (&others, "made for another token embedding"),
        (&missing, "there is no table"),
        (&no_table, "is not a scone table"),
    ] {
        let (status, answer) = server.post("/admin/table", &json!({"path": path})).await;
        assert_eq!(status, StatusCode::CONFLICT, "{answer}");
        assert!(message(&answer).contains(words), "{answer}");
        assert_eq!(server.text().await, expected);
    }
    assert_eq!(server.post("/admin/table", &json!({"path": 5})).await.0, StatusCode::BAD_REQUEST);

    // Another type of rows fits, and is what is told of the model from then on.
    let set = tiny::fgrams(directory.tokenizer());
    let int8 = table.with_file_name("int8.safetensors");
    let format = RowFormat::packed(RowType::Int8, directory.config().hidden_size);
    build_table(&directory, &set, format, Shard::WHOLE, &int8, &candle_core::Device::Cpu, &mut |_| {})
        .unwrap();
    fs::rename(&int8, &table).unwrap();
    assert_eq!(server.get("/health").await.1["table"]["replaced"], json!(true));
    let url = format!("http://{}/admin/table", server.address);
    let forwarded = server.client.post(&url).header("X-Forwarded-For", "127.0.0.1").send().await.unwrap();
    assert_eq!(forwarded.status(), StatusCode::FORBIDDEN);
    let reloaded: Value = server.client.post(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!((&reloaded["dtype"], &reloaded["rows"]), (&json!("int8"), &json!(set.len())));
    let (_, models) = server.get("/v1/models").await;
    let told = &models["data"][0]["scone"]["table"];
    assert_eq!((&told["dtype"], &told["bytes"]), (&reloaded["dtype"], &reloaded["bytes"]));
    assert_eq!(server.get("/health").await.1["table"]["replaced"], json!(false));
}

#[tokio::test]
async fn a_baseline_has_no_table_to_reload() {
    let (_keep, directory, _) = model(1);
    fs::remove_file(directory.path().join("scone.json")).unwrap();
    let server = start(&ModelDirectory::open(directory.path()).unwrap(), Placement::default()).await;
    let (status, answer) = server.post("/admin/table", &json!({})).await;
    assert!(status == StatusCode::NOT_FOUND && message(&answer).contains("baseline"), "{answer}");
    assert_eq!(server.get("/health").await.1["table"], Value::Null);
}

#[tokio::test]
async fn prompts_are_read_ahead() {
    let (_keep, directory, _) = model(1);
    let server = start(&directory, PLACEMENTS[3]).await;
    let start = Instant::now();
    // Whether reading ahead comes before the engine is a race; one of many requests that wait for others wins it.
    let metrics = || server.live.as_ref().unwrap().get().metrics().snapshot();
    while metrics().rows_prefetched == 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", metrics());
        server.live.as_ref().unwrap().reload(None).unwrap();
        let requests = (0..8).map(|_| server.text());
        futures_util::future::join_all(requests).await;
    }
}

/// The program itself: its flags, what it says at the start, and the signal.
#[tokio::test]
async fn the_signal_reloads() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (_keep, directory, table) = model(1);
    let whole = fs::read(&table).unwrap();
    for (flags, words) in [
        ("--table-mode ram", "ram: "),
        ("--table-mode ram --table-huge-pages", "ram: a private copy of "),
        ("--table-prefault 4KiB", "mmap: 4.00 KiB of the most frequent rows read, others on demand"),
        ("--table-mode direct --table-cache 1MiB", "direct: rows read "),
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_scone"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .arg(directory.path())
            .args(flags.split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        let status = async || reqwest::get(format!("{url}/health")).await.unwrap().status();
        assert_eq!(status().await, StatusCode::OK);
        fs::OpenOptions::new().write(true).open(&table).unwrap().set_len(9000).unwrap();
        assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
        move_over(&whole, &table);
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGHUP) };
        let start = Instant::now();
        while status().await != StatusCode::OK {
            assert!(start.elapsed() < Duration::from_secs(20), "SIGHUP did nothing");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // SAFETY: as above.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && told.contains(words), "{flags}: {told}");
    }
}
