//! What an operator sees of the server: metrics, a log line a request, traces.
//!
//! Everything hangs on one [`Record`] a request. [`layer`] puts it into the request's extensions, a route that hands
//! sequences to the engine wraps it in a [`Watch`], and each sequence reports to its own [`ChoiceWatch`]. When the last of
//! them is dropped, the request is over, however it ended, and is counted and logged.
//!
//! What the engine and the table count themselves is read from them when `/metrics` is asked for (`exporter`).

mod exporter;
mod exposition;
mod histogram;
mod layer;
mod metrics;
pub mod names;
mod process;
mod record;
#[cfg(feature = "otel")]
mod traces;
mod watch;

use std::sync::Arc;

pub(in crate::server) use exporter::scrape;
pub(in crate::server) use layer::layer;
pub(in crate::server) use record::Record;
#[cfg(feature = "otel")]
pub use traces::Traces;
pub(in crate::server) use watch::{ChoiceWatch, Watch};

use metrics::Metrics;

/// The counters of one server. Servers in one process share nothing.
#[derive(Debug, Default)]
pub struct Observe {
    metrics: Metrics,
    #[cfg(feature = "otel")]
    traces: Option<Traces>,
}

impl Observe {
    /// With everything at zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The same, and a span of each request is sent.
    #[cfg(feature = "otel")]
    pub fn with_traces(traces: Traces) -> Arc<Self> {
        Arc::new(Self { traces: Some(traces), ..Self::default() })
    }

    /// To be called when no more requests come: sends what has not been sent yet.
    pub fn finish(&self) {
        #[cfg(feature = "otel")]
        if let Some(traces) = &self.traces {
            traces.stop();
        }
    }
}
