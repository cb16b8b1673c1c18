//! The part of an address after `?`: names, values, and bytes that need an escape (RFC 3986).

/// `name=value` pairs, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what follows the `?`.
    ///
    /// # Errors
    ///
    /// What cannot be read, and names that `known` does not have: a filter that is not understood must not be left out.
    pub(crate) fn parse(text: Option<&str>, known: &[&str]) -> Result<Self, String> {
        let mut pairs = Vec::new();
        for pair in text.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            if !known.contains(&name.as_str()) {
                return Err(format!("unknown parameter {name:?}: this page has {}", known.join(", ")));
            }
            pairs.push((name, value));
        }
        Ok(Self(pairs))
    }

    /// The value of `name`; empty when it is only named.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of `name` as a number.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("{name}={text:?} is not a number"));
        self.get(name).map(number).transpose()
    }
}

/// `path?name=value&…`, with escapes where they are needed; names are plain.
pub(crate) fn address<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut text = path.to_owned();
    let mut mark = '?';
    for (name, value) in pairs {
        text.push(mark);
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => text.push(byte.into()),
                b'-' | b'_' | b'.' | b'~' | b'/' | b':' | b',' => text.push(byte.into()),
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
        mark = '&';
    }
    text
}

fn decode(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?}: `%` is followed by two hexadecimal digits, and all is UTF-8");
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(wrong()) };
        out.push(u8::try_from(high << 4 | low).map_err(|_| wrong())?);
    }
    String::from_utf8(out).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::{Query, address};

    #[test]
    fn what_is_written_is_read_again() {
        for value in ["shop/web:80", "a&b=c?d#e%f g", "ü", "", "[fd00::1]:80"] {
            let text = address("/flows", [("from", value.to_owned()), ("follow", String::new())]);
            let query =
                Query::parse(text.split_once('?').map(|(_, query)| query), &["from", "follow"]).unwrap();
            assert_eq!(query.get("from"), Some(value), "{text}");
            assert_eq!(query.get("follow"), Some(""));
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in ["from=%", "from=%4", "from=%zz", "from=%ff", "nonsense=1", "since=x"] {
            let read = Query::parse(Some(text), &["from", "since"]).and_then(|query| query.number("since"));
            assert!(read.is_err(), "{text}");
        }
        assert_eq!(Query::parse(Some("since=7"), &["since"]).unwrap().number("since"), Ok(Some(7)));
        assert_eq!(Query::parse(None, &[]), Ok(Query::default()));
    }
}
