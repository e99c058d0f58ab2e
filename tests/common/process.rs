//! `scone serve` as people start it: a process of its own over the shipped model, reached over sockets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a program of its own and uses a part of this"
)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A server, killed with the test.
pub struct Process {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
    pub url: String,
    pub client: Client,
}

impl Process {
    /// Serves the shipped model with these flags.
    pub fn start(flags: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut command = Command::new(env!("CARGO_BIN_EXE_scone"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
            command.env_remove(name);
        }
        let mut child = command
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("where it listens").to_owned();
        let address = url.strip_prefix("http://").unwrap().to_owned();
        Self { child, address, url, client: Client::builder().no_proxy().build().unwrap() }
    }

    pub async fn send(&self, body: &Value) -> reqwest::Result<Response> {
        self.client.post(format!("{}/v1/completions", self.url)).json(body).send().await
    }

    /// The answer to a request that must succeed.
    pub async fn complete(&self, body: &Value) -> Value {
        let response = self.send(body).await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, StatusCode::OK, "{body} {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// That a short request is answered within five seconds, whatever was asked before.
    pub async fn answers_soon(&self) {
        let body = json!({"prompt": "The old man", "max_tokens": 4, "ignore_eos": true});
        let answer = tokio::time::timeout(Duration::from_secs(5), self.complete(&body));
        let answer = answer.await.expect("an answer within five seconds");
        assert_eq!(answer["usage"]["completion_tokens"], 4);
    }

    /// How many sequences run or wait.
    pub async fn sequences(&self) -> usize {
        let answer = self.client.get(format!("{}/health", self.url)).send().await.unwrap();
        let health: Value = answer.json().await.unwrap();
        (health["running"].as_u64().unwrap() + health["waiting"].as_u64().unwrap()) as usize
    }

    /// A socket on which nothing was said yet.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    /// A socket on which this was sent.
    pub async fn say(&self, bytes: &[u8]) -> TcpStream {
        let mut socket = self.connect().await;
        // The server may refuse to read on: then what it says is what counts.
        let _ = socket.write_all(bytes).await;
        socket
    }

    /// A line of `/proc/PID/status` that counts kilobytes, in bytes.
    fn status(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Bytes of memory that the process has for itself: without the files that it maps.
    pub fn memory(&self) -> u64 {
        self.status("RssAnon")
    }

    /// Sockets and files that it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Waits until no more files are open than there were.
    pub async fn wait_for_files(&self, most: usize) {
        let start = Instant::now();
        while self.open_files() > most {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{} files open, not {most}",
                self.open_files()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        // SAFETY: sends a signal to a child that has not been waited for, so its number is still its own.
        let result = unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        assert_eq!(result, 0);
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request as it goes over the wire.
pub fn post(body: &Value) -> Vec<u8> {
    post_bytes(body.to_string().as_bytes())
}

/// The same of any bytes.
pub fn post_bytes(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
