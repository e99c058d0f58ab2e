use std::time::SystemTime;

use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span, SpanKind, Status, Tracer, TracerProvider};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::record::{Record, Summary};

/// Sends a span of each request to an OpenTelemetry collector, in batches, from a thread of its own.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// The model's name.
    model: String,
}

/// Where a request's span belongs and when it began.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    parent: Context,
    start: SystemTime,
}

impl Traces {
    /// Begins to send to the collector at `endpoint`, the address before `/v1/traces`, as OTLP over HTTP. What else there
    /// is to say is read from the environment: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`,
    /// `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_*`.
    ///
    /// # Errors
    /// If the address is none, or the client cannot be made.
    pub fn start(endpoint: &str, model: String) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder().with_http().with_endpoint(url).build()?;
        let resource = Resource::builder();
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => resource,
            None => resource.with_service_name("scone"),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("scone");
        Ok(Self { provider, tracer, model })
    }

    /// What a request's headers say of the trace that it is a part of (W3C's `traceparent` and `tracestate`).
    pub(super) fn origin(headers: &HeaderMap) -> Origin {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        Origin { parent, start: SystemTime::now() }
    }

    /// Sends the span of a request that is over.
    pub(super) fn send(&self, record: &Record, summary: &Summary, origin: &Origin) {
        let operation =
            record.kind.get().map(|kind| if *kind == "chat" { "chat" } else { "text_completion" });
        let name = match operation {
            Some(operation) => format!("{operation} {}", self.model),
            None => format!("{} {}", record.method, record.route),
        };
        let mut attributes = vec![
            KeyValue::new("http.request.method", record.method),
            KeyValue::new("http.route", record.route.clone()),
            KeyValue::new("http.response.status_code", i64::from(summary.status)),
            KeyValue::new("scone.request_id", record.id.clone()),
        ];
        if let Some(operation) = operation {
            attributes.extend([
                KeyValue::new("gen_ai.operation.name", operation),
                KeyValue::new("gen_ai.provider.name", "scone"),
                KeyValue::new("gen_ai.request.model", self.model.clone()),
            ]);
        }
        if let Some(tokens) = &summary.tokens {
            attributes.extend([
                KeyValue::new("gen_ai.usage.input_tokens", tokens.prompt as i64),
                KeyValue::new("gen_ai.usage.output_tokens", tokens.generated as i64),
                KeyValue::new("gen_ai.usage.cache_read.input_tokens", tokens.cached as i64),
            ]);
        }
        let reasons: Vec<StringValue> =
            summary.reasons.iter().map(|(reason, _)| StringValue::from(*reason)).collect();
        if !reasons.is_empty() {
            let reasons = Value::Array(Array::String(reasons));
            attributes.push(KeyValue::new("gen_ai.response.finish_reasons", reasons));
        }
        let numbers = [
            ("gen_ai.latency.time_in_queue", record.queued.get().map(|time| time.as_secs_f64())),
            ("gen_ai.latency.time_to_first_token", record.first_token.get().map(|time| time.as_secs_f64())),
            ("scone.hit_rate", summary.hit_rate),
        ];
        let numbers = numbers.into_iter().filter_map(|(name, number)| Some(KeyValue::new(name, number?)));
        attributes.extend(numbers);
        let mut span = self
            .tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .with_start_time(origin.start)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, &origin.parent);
        if summary.is_error {
            span.set_status(Status::error("the server failed"));
        }
        span.end_with_timestamp(origin.start + record.start.elapsed());
    }

    /// Sends what has not been sent, and no more.
    pub(super) fn stop(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!("the last traces were not sent: {error}");
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}
