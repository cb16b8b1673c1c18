//! A manifest file as a tree that knows the bytes it came from.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Plain;
use serde_saphyr::{Span, Spanned};

/// A value, and the bytes of its text: all of a scalar's, the brace of a map or list in flow style, none where a block begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: usize,
    pub(super) len: usize,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
    Scalar(Plain),
}

/// A key, and the byte where it begins.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) at: usize,
    pub(super) text: String,
}

impl Node {
    /// The entry of `key`, if this is a map that has it.
    pub(super) fn entry(&self, key: &str) -> Option<&(Key, Node)> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(found, _)| found.text == key),
            Value::List(_) | Value::Scalar(_) => None,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, node)| node)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::Scalar(Plain::String(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.value, Value::Scalar(Plain::Null))
    }

    /// What it means, without where it is.
    pub(super) fn plain(&self) -> Plain {
        match &self.value {
            Value::List(items) => items.iter().map(Self::plain).collect(),
            Value::Map(entries) => {
                entries.iter().map(|(key, node)| (key.text.clone(), node.plain())).collect()
            }
            Value::Scalar(plain) => plain.clone(),
        }
    }
}

/// Bytes, which are known when the source is a text in memory.
fn bytes(span: Span) -> (usize, usize) {
    let number = |n: Option<_>| n.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    (number(span.byte_offset()), number(span.byte_len()))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let (at, len) = bytes(spanned.referenced.span());
        Ok(Self { at, len, value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { at: bytes(spanned.referenced.span()).0, text: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(Plain::Null))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(Plain::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}
