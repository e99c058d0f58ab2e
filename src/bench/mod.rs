//! The load generator: an HTTP client; it never links the engine.
//!
//! It measures any server of OpenAI's `/v1/completions`, and compares several by turns under the same load:
//!
//! - **TTFT**: from when a request is due to its first streamed token.
//! - **ITL**: the gap between one streamed token and the next.
//! - **TPOT**: (E2E - TTFT) / (n - 1), of a request with n output tokens.
//! - **goodput**: requests a second that keep a service level.
//!
//! Under an open loop a request is due when the schedule says, under a closed loop when it is sent. Ratios between
//! targets pair what each did in the same repetition, with the same prompts, within the same minutes; their interval
//! is a bootstrap over repetitions. Where a text is given, each target's perplexity stands beside its latency.

mod client;
mod error;
mod load;
mod log;
mod machine;
mod output_tokens;
mod prompts;
mod quality;
mod report;
mod run;
mod spawn;
mod sse;
mod stats;
mod summary;

pub use client::{Client, Failure, FailureKind, Record, Sampling};
pub use error::BenchError;
pub use load::{Load, Pass, Sent, arrivals};
pub use machine::Machine;
pub use output_tokens::OutputTokens;
pub use prompts::{Prompt, Prompts};
pub use quality::Quality;
pub use report::{Report, TargetReport};
pub use run::{Bench, Plan, QualityText, Source, Target, run};
pub use spawn::Server;
pub use stats::{Distribution, bootstrap_interval, geometric_mean, percentile};
pub use summary::{Failures, Metric, Ratio, Slo, Summary};
