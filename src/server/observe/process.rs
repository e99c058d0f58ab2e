use std::fs;

use super::exposition::Exposition;
use super::names;

/// Of a second: what Linux counts processes' time in, whatever the kernel's own clock.
const TICKS: f64 = 100.0;

/// What the system says of this process. Where there is no `/proc`, nothing.
pub(super) fn process(page: &mut Exposition) {
    if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
        // The second field is the program's name in brackets, which may hold anything.
        let fields: Vec<f64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
            .unwrap_or_default();
        if let [user, system] = fields.get(11..13).unwrap_or_default() {
            page.number(&names::PROCESS_CPU, (user + system) / TICKS);
        }
        if let (Some(start), Some(boot)) = (fields.get(19), boot_time()) {
            page.number(&names::PROCESS_START, boot + start / TICKS);
        }
    }
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        for (metric, name) in [(&names::PROCESS_RESIDENT, "VmRSS:"), (&names::PROCESS_VIRTUAL, "VmSize:")] {
            if let Some(kibibytes) = number_after(&status, name) {
                page.number(metric, 1024.0 * kibibytes);
            }
        }
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        page.number(&names::PROCESS_FDS, files.count() as f64);
    }
    if let Ok(limits) = fs::read_to_string("/proc/self/limits")
        && let Some(most) = number_after(&limits, "Max open files")
    {
        page.number(&names::PROCESS_MAX_FDS, most);
    }
}

/// When the machine started, in seconds since 1970.
fn boot_time() -> Option<f64> {
    number_after(&fs::read_to_string("/proc/stat").ok()?, "btime ")
}

/// The first number of the line that begins with `name`.
fn number_after(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn this_process_began_not_long_ago_and_takes_memory() {
        let mut page = Exposition::default();
        process(&mut page);
        let text = page.into_text();
        let value = |name: &str| number_after(&text, &format!("{name} ")).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 86_400.0..now + 2.0).contains(&value("process_start_time_seconds")), "{text}");
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!((1.0..=value("process_max_fds")).contains(&value("process_open_fds")));
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
