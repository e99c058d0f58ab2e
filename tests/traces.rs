//! Spans as an OpenTelemetry collector receives them. Run by `cargo test --features otel --test traces`.
#![cfg(feature = "otel")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A field of a protobuf message: its number, and what it holds.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..).step_by(7) {
        let (&byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    number
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                fields.push((key >> 3, Field::Number(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            kind => panic!("wire type {kind}"),
        };
        let (value, rest) = bytes.split_at(length);
        bytes = rest;
        let field = match <[u8; 8]>::try_from(value) {
            Ok(value) if key & 7 == 1 => Field::Number(u64::from_le_bytes(value)),
            _ => Field::Bytes(value),
        };
        fields.push((key >> 3, field));
    }
    fields
}

/// All messages in the field of this number.
fn inner(message: &[u8], number: u64) -> Vec<&[u8]> {
    let bytes = |(found, field)| match field {
        Field::Bytes(bytes) if found == number => Some(bytes),
        _ => None,
    };
    fields(message).into_iter().filter_map(bytes).collect()
}

fn text(message: &[u8], number: u64) -> String {
    String::from_utf8(inner(message, number)[0].to_vec()).unwrap()
}

/// An `AnyValue`.
fn value(message: &[u8]) -> Value {
    match fields(message).remove(0) {
        (1, Field::Bytes(text)) => json!(std::str::from_utf8(text).unwrap()),
        (2, Field::Number(truth)) => json!(truth == 1),
        (3, Field::Number(number)) => json!(number as i64),
        (4, Field::Number(bits)) => json!(f64::from_bits(bits)),
        (5, Field::Bytes(list)) => inner(list, 1).into_iter().map(value).collect(),
        (number, _) => panic!("a value of kind {number}"),
    }
}

fn attributes(message: &[u8], number: u64) -> BTreeMap<String, Value> {
    inner(message, number).into_iter().map(|pair| (text(pair, 1), value(inner(pair, 2)[0]))).collect()
}

#[derive(Debug)]
struct Received {
    service: Value,
    name: String,
    trace: String,
    parent: String,
    attributes: BTreeMap<String, Value>,
}

/// The spans of an `ExportTraceServiceRequest`.
fn spans(body: &[u8]) -> Vec<Received> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut found = Vec::new();
    for group in inner(body, 1) {
        let service = attributes(inner(group, 1)[0], 1)["service.name"].clone();
        for span in inner(group, 2).into_iter().flat_map(|scope| inner(scope, 2)) {
            found.push(Received {
                service: service.clone(),
                name: text(span, 5),
                trace: hex(inner(span, 1)[0]),
                parent: inner(span, 4).first().map(|id| hex(id)).unwrap_or_default(),
                attributes: attributes(span, 9),
            });
        }
    }
    found
}

/// A collector, and what it gets.
async fn collector() -> (String, UnboundedReceiver<Received>) {
    let (tell, told) = unbounded_channel();
    let receive = move |body: Bytes| {
        let tell = tell.clone();
        async move { spans(&body).into_iter().for_each(|span| tell.send(span).unwrap()) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/v1/traces", post(receive));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, told)
}

struct Server(Child, String);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(collector: &str) -> Server {
    let mut child = Command::new(env!("CARGO_BIN_EXE_scone"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("OTEL_BSP_SCHEDULE_DELAY", "50")
        .args(["serve", "--listen", "127.0.0.1:0", "--otlp-endpoint", collector])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening on ").unwrap().to_owned();
    Server(child, url)
}

#[tokio::test]
async fn each_request_is_a_span_in_the_trace_of_who_asked() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (collector, mut told) = collector().await;
    let server = serve(&collector);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let body = json!({"prompt": "The old man", "max_tokens": 6, "n": 2, "ignore_eos": true});
    let request = client.post(format!("{}/v1/completions", server.1)).json(&body);
    let request =
        request.header("traceparent", format!("00-{trace}-{parent}-01")).header("x-request-id", "me");
    assert!(request.send().await.unwrap().status().is_success());
    client.get(format!("{}/health", server.1)).send().await.unwrap();
    client.get(format!("{}/v1/models", server.1)).send().await.unwrap();

    let mut next =
        async || tokio::time::timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap();
    let span = next().await;
    assert_eq!((span.service, span.name.as_str()), (json!("scone"), "text_completion default"));
    assert_eq!((span.trace.as_str(), span.parent.as_str()), (trace, parent));
    for (name, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!("/v1/completions")),
        ("http.response.status_code", json!(200)),
        ("scone.request_id", json!("me")),
        ("gen_ai.operation.name", json!("text_completion")),
        ("gen_ai.request.model", json!("default")),
        ("gen_ai.usage.output_tokens", json!(12)),
        ("gen_ai.response.finish_reasons", json!(["length"])),
    ] {
        assert_eq!(span.attributes[name], value, "{name}");
    }
    let seconds = |name: &str| span.attributes[name].as_f64().unwrap();
    assert!(seconds("gen_ai.latency.time_in_queue") <= seconds("gen_ai.latency.time_to_first_token"));
    // The probe has none.
    let span = next().await;
    assert_eq!((span.name.as_str(), span.parent.as_str()), ("GET /v1/models", ""));
    assert!(span.trace != trace && !span.attributes.contains_key("gen_ai.operation.name"));
}
