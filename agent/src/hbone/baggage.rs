//! The `baggage` header (W3C Baggage): who asks, for the other end's telemetry. Nothing is decided by it.

use std::fmt::Write;

/// Longest value after encoding, in bytes. Kubernetes' names and label values are shorter.
const LONGEST: usize = 256;

/// `key=value,…` of `pairs` without those that have no value. What may not stand in a value is percent-encoded, so the
/// result is always a valid header value. Keys are the caller's own words: tokens (RFC 9110 5.6.2).
pub fn baggage<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (key, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{key}={}", encode(value));
    }
    text
}

fn encode(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        let before = text.len();
        let mut bytes = [0; 4];
        for byte in c.encode_utf8(&mut bytes).bytes() {
            if is_octet(byte) {
                text.push(char::from(byte));
            } else {
                let _ = write!(text, "%{byte:02X}");
            }
        }
        if text.len() > LONGEST {
            text.truncate(before);
            break;
        }
    }
    text
}

/// `baggage-octet` of W3C Baggage 3.3.1.3 but for `%`, which begins an encoded byte.
fn is_octet(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_and_empty_ones_left_out() {
        let pairs = [
            ("k8s.namespace.name", "a-b.c"),
            ("service.name", ""),
            ("service.version", "1,0;x=%\u{e9} \"\\"),
        ];
        assert_eq!(baggage(pairs), "k8s.namespace.name=a-b.c,service.version=1%2C0%3Bx=%25%C3%A9%20%22%5C",);
        assert_eq!(baggage([]), "");
    }

    #[test]
    fn a_long_value_ends_between_characters() {
        let text = baggage([("a", "\u{e9}".repeat(99).as_str())]);
        assert_eq!(text.len(), 2 + LONGEST / 6 * 6);
        assert!(text.ends_with("%C3%A9"));
    }
}
