use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Response, Url};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::error::with_causes;
use super::{OutputTokens, Prompt, sse};

/// What every request asks for.
#[derive(Clone, Debug, Serialize)]
pub struct Sampling {
    /// Tokens to generate; an end of text does not stop a request before (`ignore_eos`).
    pub output_tokens: OutputTokens,
    /// 0 is greedy.
    pub temperature: f64,
    /// Sent along as the sampler's seed; also decides how many tokens each request asks for.
    pub seed: u64,
    /// A request that takes longer has failed.
    #[serde(rename = "timeout_s", serialize_with = "seconds")]
    pub timeout: Duration,
}

impl Sampling {
    /// How many tokens the request with this prompt asks for.
    pub fn output_tokens_of(&self, prompt: usize) -> u32 {
        self.output_tokens.of(prompt, self.seed)
    }
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// What kind of failure a request had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No connection.
    Connect,
    /// A status other than 2xx.
    Status,
    /// The server reported an error after it had begun to answer.
    Server,
    /// The stream broke off, or was no stream of completions.
    Stream,
    /// The answer was complete and without a token.
    NoTokens,
    /// It took too long.
    Timeout,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// In words, the server's own where it gave any.
    pub message: String,
}

impl Failure {
    fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    fn transport(error: &reqwest::Error) -> Self {
        let kind = match () {
            () if error.is_timeout() => FailureKind::Timeout,
            () if error.is_connect() => FailureKind::Connect,
            () => FailureKind::Stream,
        };
        Self::new(kind, with_causes(error))
    }
}

/// What was measured of one request. Times are in milliseconds since it was due.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Record {
    /// Until the first token came.
    pub ttft_ms: Option<f64>,
    /// Until the answer was complete, or until it failed.
    pub e2e_ms: f64,
    /// The gaps between streamed tokens.
    pub itl_ms: Vec<f64>,
    /// As the server counted them.
    pub prompt_tokens: Option<u64>,
    /// As the server counted them, or else the chunks with a token.
    pub output_tokens: u64,
    /// Why it failed, if it did.
    pub error: Option<Failure>,
}

impl Record {
    /// Mean time per output token after the first: (E2E - TTFT) / (n - 1).
    pub fn tpot_ms(&self) -> Option<f64> {
        let gaps = self.output_tokens.checked_sub(1).filter(|&gaps| gaps > 0)?;
        Some((self.e2e_ms - self.ttft_ms?) / gaps as f64)
    }
}

/// One target's `/v1` API.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    model: String,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl Client {
    /// Connects to a server given as `http://host:port`, with or without `/v1`, and asks it for its model.
    ///
    /// # Errors
    /// In words, where there is no server or it has no model.
    pub async fn connect(url: &str) -> Result<Self, String> {
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let http = http_client(&base)?;
        let ask = async {
            let response = http.get(format!("{base}/v1/models")).send().await.map_err(|e| with_causes(&e))?;
            if !response.status().is_success() {
                return Err(format!("GET /v1/models: {}", refusal(response).await));
            }
            let models: Models = response.json().await.map_err(|error| {
                format!("GET /v1/models did not answer as an OpenAI server does: {}", with_causes(&error))
            })?;
            Ok(models.data.into_iter().next().ok_or("GET /v1/models lists no model")?.id)
        };
        let patience = Duration::from_secs(10);
        let model = timeout(patience, ask).await.map_err(|_| "GET /v1/models: no answer in 10 s")??;
        Ok(Self { http, base, model })
    }

    /// The id of the model that is asked for.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Makes one streamed completion of so many tokens and measures it from `due`, the moment when it should be sent: a
    /// client that is late does not make its server look fast.
    pub async fn complete(
        &self,
        prompt: &Prompt,
        max_tokens: u32,
        sampling: &Sampling,
        due: Instant,
    ) -> Record {
        let mut record = Record::default();
        let answer = self.stream(prompt, max_tokens, sampling, due, &mut record);
        let outcome = timeout(sampling.timeout, answer).await;
        let late = || Failure::new(FailureKind::Timeout, format!("no end after {:?}", sampling.timeout));
        if let Err(failure) = outcome.unwrap_or_else(|_| Err(late())) {
            record.error = Some(failure);
            record.e2e_ms = ms_since(due);
        }
        record
    }

    async fn stream(
        &self,
        prompt: &Prompt,
        max_tokens: u32,
        sampling: &Sampling,
        due: Instant,
        record: &mut Record,
    ) -> Result<(), Failure> {
        let body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let mut bytes = self.post(&body).await?.bytes_stream();
        let mut parser = sse::Parser::default();
        let mut finished = false;
        while let Some(bytes) = bytes.next().await {
            let bytes = bytes.map_err(|error| Failure::transport(&error))?;
            for event in parser.push(&bytes) {
                if event == "[DONE]" {
                    finished = true;
                } else {
                    finished |= record.take(&event, ms_since(due))?;
                }
            }
        }
        match (finished, record.output_tokens) {
            (false, _) => Err(Failure::new(FailureKind::Stream, "the stream ended before the answer did")),
            (true, 0) => Err(Failure::new(FailureKind::NoTokens, "the answer had no token")),
            (true, _) => Ok(()),
        }
    }

    /// A completion that is not streamed, as JSON.
    pub(super) async fn completion(&self, mut body: Value, patience: Duration) -> Result<Value, Failure> {
        body["model"] = self.model.clone().into();
        let answer =
            async { self.post(&body).await?.json().await.map_err(|error| Failure::transport(&error)) };
        let late = |_| Failure::new(FailureKind::Timeout, format!("no answer after {patience:?}"));
        timeout(patience, answer).await.map_err(late)?
    }

    async fn post(&self, body: &Value) -> Result<Response, Failure> {
        let request = self.http.post(format!("{}/v1/completions", self.base)).json(body);
        let response = request.send().await.map_err(|error| Failure::transport(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Failure::new(FailureKind::Status, refusal(response).await))
    }
}

impl Record {
    /// Takes one event of the stream, which came at `at_ms`. Returns whether it says that the answer is complete.
    fn take(&mut self, event: &str, at_ms: f64) -> Result<bool, Failure> {
        let chunk: Chunk = serde_json::from_str(event).map_err(|error| {
            Failure::new(FailureKind::Stream, format!("an event that is no completion ({error}): {event}"))
        })?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(Failure::new(FailureKind::Server, message_of(&error)));
        }
        if let Some(usage) = chunk.usage {
            self.prompt_tokens = usage.prompt_tokens.or(self.prompt_tokens);
            self.output_tokens = usage.completion_tokens.unwrap_or(self.output_tokens);
        }
        let Some(choice) = chunk.choices.first() else {
            return Ok(false);
        };
        let before = std::mem::replace(&mut self.e2e_ms, at_ms);
        // A special token has no text, and neither has the closing chunk, which alone has a reason.
        if !choice.text.is_empty() || choice.finish_reason.is_none() {
            if self.ttft_ms.is_none() {
                self.ttft_ms = Some(at_ms);
            } else {
                self.itl_ms.push(at_ms - before);
            }
            self.output_tokens = self.output_tokens.max(self.itl_ms.len() as u64 + 1);
        }
        Ok(choice.finish_reason.is_some())
    }
}

fn ms_since(due: Instant) -> f64 {
    due.elapsed().as_secs_f64() * 1e3
}

pub(super) fn http_client(base: &str) -> Result<reqwest::Client, String> {
    // Fails where a provider is installed already, which is then as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = Url::parse(base).map_err(|error| format!("{base} is not a URL: {error}"))?;
    // A connection for each request: a server may close one that waits for its next just when that is sent, and the
    // request would then count as failed.
    let mut builder =
        reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).pool_max_idle_per_host(0);
    if url.host_str().is_some_and(is_loopback) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| with_causes(&error))
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Status and message of an answer that is not 2xx.
async fn refusal(response: Response) -> String {
    let status = response.status();
    let body = response.text().await.unwrap_or_default();
    let message = match serde_json::from_str::<Value>(&body) {
        Ok(json) => message_of(json.get("error").unwrap_or(&json)),
        Err(_) => body.chars().take(200).collect(),
    };
    format!("{status}: {message}")
}

/// The message of an error in OpenAI's form, or all of it in another.
fn message_of(error: &Value) -> String {
    error.get("message").unwrap_or(error).as_str().map_or_else(|| error.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_and_timed_chunk_by_chunk() {
        let mut record = Record::default();
        let token = r#"{"choices": [{"text": "a", "finish_reason": null}]}"#;
        let special = r#"{"choices": [{"text": "", "finish_reason": null}], "usage": null}"#;
        let end = r#"{"choices": [{"text": "", "finish_reason": "length"}]}"#;
        assert_eq!(record.take(token, 10.0), Ok(false));
        assert_eq!(record.take(special, 12.0), Ok(false));
        assert_eq!(record.take(token, 16.0), Ok(false));
        assert_eq!(record.take(end, 17.0), Ok(true));
        assert_eq!((record.ttft_ms, record.e2e_ms, record.output_tokens), (Some(10.0), 17.0, 3));
        assert_eq!(record.itl_ms, [2.0, 4.0]);
        assert_eq!(record.tpot_ms(), Some(3.5));
        // Two tokens to a chunk: the server's count holds.
        let usage = r#"{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}"#;
        assert_eq!(record.take(usage, 17.5), Ok(false));
        assert_eq!(
            (record.prompt_tokens, record.output_tokens, record.tpot_ms()),
            (Some(5), 7, Some(7.0 / 6.0))
        );
    }

    #[test]
    fn an_error_in_the_stream_fails_the_request() {
        let mut record = Record::default();
        let failure =
            record.take(r#"{"error": {"message": "out of memory", "code": 500}}"#, 1.0).unwrap_err();
        assert_eq!(failure, Failure::new(FailureKind::Server, "out of memory"));
        assert_eq!(record.take("{", 1.0).unwrap_err().kind, FailureKind::Stream);
    }

    #[test]
    fn loopback_is_recognised_in_every_spelling() {
        for host in ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.org", "10.0.0.1", "localhost.example.org"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
