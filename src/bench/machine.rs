use std::fs::read_to_string;

use serde::Serialize;

/// The machine that the requests were sent from, and the servers too where they were spawned.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name, where the system tells it.
    pub cpu: Option<String>,
    /// Hardware threads that this process may use.
    pub cores: usize,
    /// Bytes of memory, where the system tells it.
    pub memory_bytes: Option<u64>,
    /// Operating system and architecture.
    pub platform: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let memory_kib = field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()));
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib.map(|kib| kib * 1024),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// The value of the first line `name : value` of a file of the Linux kernel; none elsewhere.
fn field(path: &str, name: &str) -> Option<String> {
    let content = read_to_string(path).ok()?;
    let mut fields = content.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.trim() == name).map(|(_, value)| value.trim().to_owned())
}
