//! Values as YAML: in blocks, as `kubectl` prints them, and in one line.

use serde_json::Value;

/// `value` in block style, keys in alphabetical order, each line indented by `indent` and ended. A map or list that is empty, and a
/// scalar, take one line.
pub fn block(value: &Value, indent: usize) -> String {
    let mut out = String::new();
    write(value, indent, &mut out);
    out
}

fn write(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                out.push_str(&format!("{pad}{}:", scalar(key)));
                let deeper = if value.is_array() { indent } else { indent + 2 };
                nested(value, deeper, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let text = block(item, indent + 2);
                // The item's first line bears the dash.
                out.push_str(&format!("{pad}- {}", text.get(indent + 2..).unwrap_or_default()));
            }
        }
        other => out.push_str(&format!("{pad}{}\n", line(other, false))),
    }
}

fn nested(value: &Value, indent: usize, out: &mut String) {
    let empty = match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    if empty {
        out.push_str(&format!(" {}\n", line(value, false)));
    } else {
        out.push('\n');
        write(value, indent, out);
    }
}

/// `value` in one line, in flow style; `quoted`: as JSON.
pub(super) fn line(value: &Value, quoted: bool) -> String {
    let text = |text: &str| if quoted { Value::from(text).to_string() } else { scalar(text) };
    match value {
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| format!("{}: {}", text(key), line(value, quoted)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(|item| line(item, quoted)).collect::<Vec<_>>().join(", "))
        }
        Value::String(value) => text(value),
        other => other.to_string(),
    }
}

/// A text, with quotes where without them it would be (or might pass for) something else.
fn scalar(text: &str) -> String {
    const WORDS: &[&str] = &["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}
