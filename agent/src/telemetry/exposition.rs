//! The two text forms of metrics: Prometheus text 0.0.4 and OpenMetrics 1.0.0. Both have the same samples.

use std::fmt::{self, Write};

/// How metrics are written down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    #[default]
    Prometheus,
    /// OpenMetrics 1.0.0: a counter's family is named without `_total`, units are told, and the text has an end.
    OpenMetrics,
}

impl Format {
    /// The value of Content-Type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Units that names end with.
const UNITS: [&str; 2] = ["bytes", "seconds"];

/// Metrics being written down. Samples are lines that are appended to it.
#[derive(Debug, Default)]
pub struct Exposition {
    format: Format,
    text: String,
}

impl Exposition {
    /// Nothing yet.
    pub fn new(format: Format) -> Self {
        Self { format, text: String::new() }
    }

    /// Begins a family: the samples that follow are called `name`, counters with `_total`. `kind` is `counter` or `gauge`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let open = self.format == Format::OpenMetrics;
        let family = if open { name.strip_suffix("_total").unwrap_or(name) } else { name };
        let _ = writeln!(self.text, "# TYPE {family} {kind}");
        let unit =
            UNITS.iter().find(|unit| family.strip_suffix(**unit).is_some_and(|rest| rest.ends_with('_')));
        if let Some(unit) = unit.filter(|_| open) {
            let _ = writeln!(self.text, "# UNIT {family} {unit}");
        }
        // Only OpenMetrics escapes quotes here.
        let help = if open { help.replace('"', "\\\"") } else { help.to_owned() };
        let _ = writeln!(self.text, "# HELP {family} {help}");
    }

    /// All of it.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

impl Write for Exposition {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text.write_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(format: Format) -> String {
        let mut out = Exposition::new(format);
        out.family("a_bytes_total", "counter", "Bytes \"b\".");
        let _ = writeln!(out, "a_bytes_total 7");
        out.family("c_now", "gauge", "Now.");
        let _ = writeln!(out, "c_now{{d=\"e\"}} 8");
        out.finish()
    }

    #[test]
    fn both_forms_have_the_same_samples() {
        let prometheus = "# TYPE a_bytes_total counter\n# HELP a_bytes_total Bytes \"b\".\na_bytes_total 7\n\
                          # TYPE c_now gauge\n# HELP c_now Now.\nc_now{d=\"e\"} 8\n";
        assert_eq!(text(Format::Prometheus), prometheus);
        let open = "# TYPE a_bytes counter\n# UNIT a_bytes bytes\n# HELP a_bytes Bytes \\\"b\\\".\na_bytes_total 7\n\
                    # TYPE c_now gauge\n# HELP c_now Now.\nc_now{d=\"e\"} 8\n# EOF\n";
        assert_eq!(text(Format::OpenMetrics), open);
    }
}
