//! What a client would like to get (RFC 9110, section 12.5), as far as there is a choice.

use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING};

use crate::telemetry::exposition::Format;

/// The form of metrics that the scraper likes best. Prometheus' text when it does not say, has no preference, or knows neither: what
/// cannot be read is reported by who reads it.
pub(super) fn format(headers: &HeaderMap) -> Format {
    let ranges = elements(headers, ACCEPT.as_str());
    let quality = |kind: &str, version: &str| {
        let (main, _) = kind.split_once('/').unwrap_or((kind, ""));
        let fits = |range: &Element| {
            let specific = match range.name.as_str() {
                "*/*" => 1,
                name if name.strip_suffix("/*") == Some(main) => 2,
                name if name == kind => 3,
                _ => return None,
            };
            let wanted = range.parameter("version");
            match wanted {
                Some(wanted) if wanted != version => None,
                _ => Some((specific + u16::from(wanted.is_some()), range.quality)),
            }
        };
        ranges.iter().filter_map(fits).max().map_or(0, |(_, quality)| quality)
    };
    let open = quality("application/openmetrics-text", "1.0.0");
    if open > quality("text/plain", "0.0.4") { Format::OpenMetrics } else { Format::Prometheus }
}

/// Whether the client takes gzip.
pub(super) fn gzip(headers: &HeaderMap) -> bool {
    let codings = elements(headers, ACCEPT_ENCODING.as_str());
    let named = |names: &[&str]| codings.iter().find(|coding| names.contains(&coding.name.as_str()));
    named(&["gzip", "x-gzip"]).or_else(|| named(&["*"])).is_some_and(|coding| coding.quality > 0)
}

/// One of a list, with its parameters.
struct Element {
    name: String,
    parameters: Vec<(String, String)>,
    /// In thousandths.
    quality: u16,
}

impl Element {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

fn elements(headers: &HeaderMap, header: &str) -> Vec<Element> {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(element).collect()
}

fn element(text: &str) -> Option<Element> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty())?.to_ascii_lowercase();
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        Some((name.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned()))
    };
    let parameters: Vec<_> = parts.filter_map(pair).collect();
    let quality = parameters.iter().find(|(name, _)| name == "q").map_or(1000, |(_, value)| {
        let value: f32 = value.parse().unwrap_or(0.0);
        (value.clamp(0.0, 1.0) * 1000.0) as u16
    });
    Some(Element { name, parameters, quality })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_form_is_the_one_with_the_highest_quality() {
        use Format::{OpenMetrics, Prometheus};
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,\
                          text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, form) in [
            (prometheus, OpenMetrics),
            ("application/openmetrics-text", OpenMetrics),
            ("APPLICATION/OpenMetrics-Text; version=\"1.0.0\"", OpenMetrics),
            ("application/openmetrics-text;q=0.5,text/plain;q=0.9", Prometheus),
            ("application/openmetrics-text;q=0.9,text/plain;q=0.5", OpenMetrics),
            ("application/openmetrics-text;q=0,*/*", Prometheus),
            ("text/*;q=0.2,application/*;q=0.3", OpenMetrics),
            ("text/plain", Prometheus),
            ("*/*", Prometheus),
            ("", Prometheus),
            ("application/openmetrics-text;version=0.0.1", Prometheus),
            (
                "application/openmetrics-text;version=0.0.1,application/openmetrics-text;version=1.0.0;q=0.1",
                OpenMetrics,
            ),
            ("application/openmetrics-text;q=x", Prometheus),
            ("text/html,application/xhtml+xml", Prometheus),
        ] {
            assert_eq!(format(&headers("accept", &[accept])), form, "{accept}");
        }
        assert_eq!(format(&HeaderMap::new()), Prometheus);
        assert_eq!(
            format(&headers("accept", &["text/plain;q=0.1", "application/openmetrics-text"])),
            OpenMetrics
        );
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for (accept, takes) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("*", true),
            ("gzip;q=0", false),
            ("gzip;q=0, *", false),
            ("identity", false),
            ("", false),
        ] {
            assert_eq!(gzip(&headers("accept-encoding", &[accept])), takes, "{accept}");
        }
    }
}
