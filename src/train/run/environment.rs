use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::dead::DeadFgrams;
use crate::new_file;
use crate::train::{Corpora, TrainError};

/// `environment.json`: what a run stands on, besides its configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Environment {
    pub(super) corpora: Vec<DatasetIdentity>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) fgrams: Option<FgramsIdentity>,
    /// Every start, the first one and each that continued it.
    pub(super) starts: Vec<Start>,
}

/// What was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct DatasetIdentity {
    name: String,
    /// Of the mixture.
    share: f64,
    tokenizer_sha256: String,
    vocabulary: usize,
    train_tokens: u64,
    validation_tokens: u64,
}

/// The f-gram set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct FgramsIdentity {
    sha256: String,
    fgrams: u64,
    max_n: usize,
    /// Of the whole validation split.
    dead_in_validation: DeadFgrams,
}

/// A start of the run: when, by what, on what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Start {
    /// In UTC, as RFC 3339 has it.
    time: String,
    /// Updates done before.
    step: u64,
    /// Processes that trained together; the machine is that of rank 0.
    #[serde(default = "one")]
    processes: usize,
    #[serde(flatten)]
    machine: Machine,
}

fn one() -> usize {
    1
}

/// What the last bits of a run depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Machine {
    /// Of this program.
    version: String,
    /// The commit that it was built from, if the build was told (`SCONE_REVISION`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    revision: Option<String>,
    /// The processor's name, if the system tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    cpu: Option<String>,
    /// The widest vectors that are computed with.
    simd: String,
    /// The GPU that computes, if one does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    gpu: Option<String>,
    threads: usize,
    os: String,
}

impl Environment {
    pub(super) fn new(corpora: &Corpora, dead: Option<DeadFgrams>) -> Self {
        let identities = corpora.iter().map(|corpus| DatasetIdentity {
            name: corpus.name().to_owned(),
            share: corpus.share(),
            tokenizer_sha256: corpus.dataset().tokenizer().sha256().to_owned(),
            vocabulary: corpus.dataset().tokenizer().vocab_size(),
            train_tokens: corpus.dataset().train().tokens,
            validation_tokens: corpus.dataset().validation().tokens,
        });
        let fgrams = corpora.set().zip(dead).map(|(set, dead_in_validation)| FgramsIdentity {
            sha256: set.sha256(),
            fgrams: set.len() as u64,
            max_n: set.policy().max_n,
            dead_in_validation,
        });
        Self { corpora: identities.collect(), fgrams, starts: Vec::new() }
    }

    /// Adds a start of so many processes after `step` updates to those that the file names, and writes it. What differs from the first start is
    /// warned of, for then the run does not end bit for bit as it would have.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(super) fn record(
        mut self,
        path: &Path,
        step: u64,
        processes: usize,
        gpu: Option<String>,
    ) -> Result<(), TrainError> {
        // A file that is not there, or not one of these, has nothing to go on with.
        let before: Option<Self> =
            std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        self.starts = before.map_or_else(Vec::new, |before| before.starts);
        let machine = Machine::this(gpu);
        let first = self.starts.iter().rfind(|start| start.step == 0 && step > 0);
        if let Some(first) = first.map(|first| first.machine.to_string())
            && first != machine.to_string()
        {
            tracing::warn!(
                "the run began with {first} and goes on with {machine}: its last bits will not be those of a run that \
                 was left alone"
            );
        }
        self.starts.push(Start { time: now(), step, processes, machine });
        let mut text = serde_json::to_vec_pretty(&self).unwrap_or_default();
        text.push(b'\n');
        new_file::write(path, &text).map_err(TrainError::io(path))
    }
}

impl Machine {
    fn this(gpu: Option<String>) -> Self {
        Self {
            gpu,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: option_env!("SCONE_REVISION").map(str::to_owned),
            cpu: cpu(),
            simd: simd().to_owned(),
            threads: rayon::current_num_threads(),
            os: os(),
        }
    }
}

/// What may change a sum: not the system's release.
impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { version, cpu, simd, threads, gpu, .. } = self;
        if let Some(gpu) = gpu {
            return write!(f, "scone {version}, {gpu}");
        }
        let cpu = cpu.as_deref().unwrap_or("an unnamed CPU");
        write!(f, "scone {version}, {threads} threads of {cpu} ({simd})")
    }
}

fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    chrono::DateTime::from_timestamp(seconds as i64, 0).unwrap_or_default().to_rfc3339()
}

/// Linux on x86 names the model; where it does not, nobody does.
fn cpu() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn os() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {} {}", std::env::consts::OS, release.trim(), std::env::consts::ARCH)
}

fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if pulp::x86::V4::try_new().is_some() {
            return "AVX-512";
        }
        if pulp::x86::V3::try_new().is_some() {
            return "AVX2";
        }
    }
    if cfg!(target_arch = "aarch64") { "NEON" } else { "scalar" }
}
