//! HTTPS: the same server behind a certificate, which may be renewed while it serves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{HashModel, Server, start_guarded};
use reqwest::{Certificate, Client, StatusCode};
use scone::engine::Config;
use scone::server::{Access, Guard, Limits, Stopping, Tls};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A certificate for this machine, in files.
struct Files {
    directory: TempDir,
    /// What a client must trust.
    pem: String,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Self { directory, pem: String::new() };
        files.renew();
        files
    }

    fn renew(&mut self) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        self.pem = made.cert.pem();
        std::fs::write(self.key(), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(self.certificate(), &self.pem).unwrap();
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("tls.crt")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("tls.key")
    }

    fn open(&self) -> Tls {
        Tls::open(&self.certificate(), &self.key()).unwrap()
    }

    /// A client that trusts this certificate and no other, with no connection yet.
    fn client(&self) -> Client {
        let certificate = Certificate::from_pem(self.pem.as_bytes()).unwrap();
        Client::builder().tls_certs_only([certificate]).build().unwrap()
    }
}

async fn start(files: &Files, model: HashModel) -> Server {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let access = Access { tls: Some(files.open()), ..Access::default() };
    let guard = Guard::new(Limits::default(), access, Stopping::default());
    let mut server = start_guarded(model, Config::default(), guard).await;
    server.client = files.client();
    server
}

fn long(stream: bool) -> Value {
    json!({"prompt": [1, 2], "max_tokens": 250, "ignore_eos": true, "stream": stream})
}

#[tokio::test]
async fn whole_answers_and_streams() {
    let files = Files::new();
    let server = start(&files, HashModel::new(2)).await;
    let body = json!({"prompt": "the", "max_tokens": 5, "temperature": 0, "ignore_eos": true});
    let whole = server.text(&body).await;
    let chunks = server.stream(&body).await;
    let streamed: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(streamed, whole);
    // One who does not trust it, or speaks no TLS, gets nothing, and disturbs nobody.
    assert!(Files::new().client().get(format!("{}/health", server.url)).send().await.is_err());
    let plain = server.url.replace("https", "http");
    assert!(Client::new().get(format!("{plain}/health")).send().await.is_err());
    server.complete(&body).await;
}

#[tokio::test]
async fn clients_that_leave_free_their_places() {
    let files = Files::new();
    let server = start(&files, HashModel::slow(1, Duration::from_millis(10))).await;
    let mut response = server.send(&long(true)).await;
    response.chunk().await.unwrap().unwrap();
    server.wait_for(1, 0).await;
    drop(response);
    server.wait_for(0, 0).await;
    let body = long(false);
    assert!(tokio::time::timeout(Duration::from_millis(100), server.post(&body)).await.is_err());
    server.wait_for(0, 0).await;
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way() {
    let files = Files::new();
    let server = start(&files, HashModel::slow(1, Duration::from_millis(10))).await;
    let response = server.send(&long(true)).await;
    server.stop().await.unwrap();
    assert!(response.text().await.unwrap().trim_end().ends_with("data: [DONE]"));
}

#[tokio::test]
async fn a_new_certificate_is_taken_over_and_a_bad_one_is_not() {
    let mut files = Files::new();
    let server = start(&files, HashModel::new(1)).await;
    let health = format!("{}/health", server.url);
    let old = files.client();
    let is_trusted = async |client: &Client| client.get(&health).send().await.is_ok();
    std::fs::write(files.certificate(), "no certificate").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(is_trusted(&files.client()).await, "the good one stays");
    files.renew();
    let start = Instant::now();
    while !is_trusted(&files.client()).await {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Connections that are open go on; new ones see the new certificate.
    assert!(!is_trusted(&old).await);
    let open = server.client.get(&health).send().await;
    assert!(open.is_err() || open.unwrap().status() == StatusCode::OK);
}

#[test]
fn what_is_no_certificate_is_named() {
    let (files, others) = (Files::new(), Files::new());
    let error = |certificate: &Path, key: &Path| Tls::open(certificate, key).unwrap_err().to_string();
    assert!(error(Path::new("/nowhere/a.crt"), &files.key()).contains("/nowhere/a.crt"));
    assert!(error(&files.certificate(), Path::new("/nowhere/a.key")).contains("/nowhere/a.key"));
    assert!(error(&files.certificate(), &others.key()).contains("do not go together"));
    assert!(error(&files.key(), &files.key()).contains("a certificate"));
    assert!(error(&files.certificate(), &files.certificate()).contains("a private key"));
}
