//! Manifests as a tree that knows its lines, so that an error can name file, line and field.

use std::fmt;

use serde::de::value::StringDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value and the line where it begins.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Bool(bool),
    Float(f64),
    Int(i64),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
    Null,
    Text(String),
    UInt(u64),
}

/// A value that does not fit, and where.
#[derive(Debug)]
pub(super) struct FieldError {
    pub(super) line: u64,
    pub(super) field: String,
    pub(super) message: String,
}

impl Node {
    /// The value of `key`, if this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text of `key`, if there is one.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The line of [`Self::at`].
    pub(super) fn line_of(&self, path: &str) -> u64 {
        self.at(path).line
    }

    /// The deepest existing part of a path such as `spec.rules[0].to`.
    pub(super) fn at(&self, path: &str) -> &Node {
        let mut node = self;
        for part in path.split(['.', '[']) {
            let next = match (&node.value, part.strip_suffix(']')) {
                (Value::List(items), Some(index)) => index.parse().ok().and_then(|n: usize| items.get(n)),
                _ => node.get(part),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    /// At most the bytes that it takes as JSON: its texts and keys, and one for each value.
    pub(super) fn bytes(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Node::bytes).sum(),
            Value::Map(entries) => entries.iter().map(|(key, node)| key.len() + node.bytes()).sum(),
            Value::Text(text) => text.len(),
            Value::Bool(_) | Value::Float(_) | Value::Int(_) | Value::Null | Value::UInt(_) => 0,
        }
    }

    /// The path and line of the deepest part that holds more than half of [`Self::bytes`].
    pub(super) fn heaviest(&self) -> (String, u64) {
        let (mut node, mut path) = (self, String::new());
        let half = self.bytes() / 2;
        loop {
            let part = match &node.value {
                Value::List(items) => {
                    let heavy = items.iter().enumerate().find(|(_, item)| item.bytes() > half);
                    heavy.map(|(n, item)| (format!("[{n}]"), item))
                }
                Value::Map(entries) => {
                    let heavy = entries.iter().find(|(_, value)| value.bytes() > half);
                    heavy.map(|(key, value)| (format!(".{key}"), value))
                }
                _ => None,
            };
            let Some((name, part)) = part else { break };
            path += &name;
            node = part;
        }
        (path.trim_start_matches('.').to_owned(), node.line)
    }

    /// This tree as a `T`.
    pub(super) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, FieldError> {
        T::deserialize(self)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), value: spanned.value })
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
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Int(value), Value::UInt))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::UInt(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
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

impl de::Error for FieldError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { line: 0, field: String::new(), message: message.to_string() }
    }
}

impl std::error::Error for FieldError {}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl FieldError {
    /// The error as seen from one level up: inside `part`, whose value begins at `line`.
    fn inside(mut self, part: &str, line: u64) -> Self {
        let dot = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        self.field = format!("{part}{dot}{}", self.field);
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match &self.value {
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter(), index: 0 }),
            Value::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
            Value::Null => visitor.visit_unit(),
            Value::Text(text) => visitor.visit_str(text),
            Value::UInt(value) => visitor.visit_u64(*value),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.value {
            // What the API server does too: an empty text.
            Value::Null => visitor.visit_str(""),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.value {
            Value::Null => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        let Value::Text(text) = &self.value else {
            return Err(de::Error::custom(format!("expected one of {}", variants.join(", "))));
        };
        StringDeserializer::new(text.clone()).deserialize_enum(name, variants, visitor)
    }

    /// Only from a map. A derived struct takes a list too, field by field; and a rule without fields matches everything.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        match self.value {
            Value::Map(_) => self.deserialize_any(visitor),
            _ => Err(de::Error::custom("expected a map of fields")),
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct newtype_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, FieldError> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(node).map(Some).map_err(|e| e.inside(&format!("[{index}]"), node.line))
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, (String, Node)>,
    value: Option<&'de (String, Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, FieldError> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.value = Some(entry);
        let key = StringDeserializer::new(entry.0.clone());
        seed.deserialize(key).map(Some).map_err(|e: FieldError| e.inside("", entry.1.line))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        match self.value.take() {
            Some((name, node)) => seed.deserialize(node).map_err(|e| e.inside(name, node.line)),
            None => Err(de::Error::custom("a value without a key")),
        }
    }
}
