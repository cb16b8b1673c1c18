//! What the agent itself takes, under the names that Prometheus' own clients use.

use std::fmt::Write;
use std::fs;

use nix::sys::resource::{Resource, getrlimit};

use super::exposition::Exposition;
use crate::sys::memory::of_status;
use crate::sys::processor_time;

/// Appends the process's figures; one that cannot be read is left out.
pub fn render(out: &mut Exposition) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size = |field: &str| of_status(&status, field).map(|bytes| bytes.to_string());
    let descriptors = fs::read_dir("/proc/self/fd").map(|dir| dir.count().to_string());
    let most = getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| soft.to_string());
    let seconds = processor_time().map(|time| format!("{}.{:06}", time.as_secs(), time.subsec_micros()));
    let rows = [
        ("process_resident_memory_bytes", "gauge", "Resident memory.", size("VmRSS:")),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory.", size("VmSize:")),
        ("process_open_fds", "gauge", "Open file descriptors.", descriptors.ok()),
        ("process_max_fds", "gauge", "File descriptors at most.", most.ok()),
        ("process_cpu_seconds_total", "counter", "Processor time, user and system.", seconds),
    ];
    for (name, kind, help, value) in rows {
        if let Some(value) = value {
            out.family(name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::telemetry::exposition::Format;

    #[test]
    fn every_figure_is_there() {
        let mut out = super::Exposition::new(Format::Prometheus);
        super::render(&mut out);
        let text = out.finish();
        for name in
            ["resident_memory_bytes", "virtual_memory_bytes", "open_fds", "max_fds", "cpu_seconds_total"]
        {
            let prefix = format!("process_{name} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap();
            assert!(value.parse::<f64>().unwrap() > 0.0, "{name} {value}");
        }
    }
}
