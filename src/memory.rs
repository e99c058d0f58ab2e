//! How much memory there is, as the system says it: of the machine, and of the process's control group, which in a container
//! may be less.

use std::fs;

/// Where nothing says how much memory the machine has.
const UNKNOWN: u64 = 8 << 30;

/// Bytes that this process may have: all of the machine's, or of its control group's. 8 GiB where neither is known.
pub(crate) fn total() -> u64 {
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limits.iter().find_map(|path| number(path));
    // SAFETY: `sysconf` only reads its argument.
    let [pages, page] = [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
    let machine = match (u64::try_from(pages), u64::try_from(page)) {
        (Ok(pages), Ok(page)) if pages > 0 && page > 0 => pages.saturating_mul(page),
        _ => UNKNOWN,
    };
    machine.min(limit.unwrap_or(u64::MAX))
}

/// Bytes that can be had without driving out what others use. None where the system does not say.
pub(crate) fn available() -> Option<u64> {
    let machine = kib_field("/proc/meminfo", "MemAvailable:")?;
    let limit = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current"));
    // Cached files count as used there, though their memory can be had.
    let cached = ["active_file ", "inactive_file "]
        .iter()
        .filter_map(|name| field("/sys/fs/cgroup/memory.stat", name));
    let cached: u64 = cached.sum();
    Some(limit.map_or(machine, |(most, used)| machine.min(most.saturating_sub(used.saturating_sub(cached)))))
}

/// Bytes that this process holds; 0 where the system does not say.
pub(crate) fn resident() -> u64 {
    kib_field("/proc/self/status", "VmRSS:").unwrap_or(0)
}

/// The most bytes that this process has held so far. None where the system does not say.
pub(crate) fn peak_resident() -> Option<u64> {
    kib_field("/proc/self/status", "VmHWM:")
}

/// A file with nothing but a number; None as well where it says `max`.
fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn kib_field(path: &str, name: &str) -> Option<u64> {
    field(path, name).map(|kib| kib << 10)
}

/// The number after a name in a file of such lines.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_figures_fit_each_other() {
        let (held, peak) = (resident(), peak_resident().unwrap());
        assert!(0 < held && held < total(), "{held} of {}", total());
        assert!(held <= peak.max(resident()), "{held}, at most {peak}");
        assert!(available().unwrap() <= total());
    }
}
