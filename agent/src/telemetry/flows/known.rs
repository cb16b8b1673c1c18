//! The words of a record, when it is read again: those that are written, and nothing else.

use std::borrow::Cow;

use culvert_common::Reason;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

fn one_of<'de, D: Deserializer<'de>>(reader: D, words: &[&'static str]) -> Result<&'static str, D::Error> {
    let text = Cow::<str>::deserialize(reader)?;
    let found = words.iter().copied().find(|word| *word == text);
    found.ok_or_else(|| D::Error::custom(format!("{text:?} is none of {}", words.join(", "))))
}

pub(super) fn stage<'de, D: Deserializer<'de>>(reader: D) -> Result<&'static str, D::Error> {
    one_of(reader, &["opened", "refused", "closed", "ended"])
}

pub(super) fn verdict<'de, D: Deserializer<'de>>(reader: D) -> Result<&'static str, D::Error> {
    one_of(reader, &["allowed", "refused"])
}

pub(super) fn path<'de, D: Deserializer<'de>>(reader: D) -> Result<&'static str, D::Error> {
    one_of(reader, &["direct", "tunnel", "passthrough"])
}

pub(super) fn side<'de, D: Deserializer<'de>>(reader: D) -> Result<&'static str, D::Error> {
    one_of(reader, &["source", "destination"])
}

/// Another version may know more reasons.
pub(super) fn reason<'de, D: Deserializer<'de>>(reader: D) -> Result<&'static str, D::Error> {
    let text = Cow::<str>::deserialize(reader)?;
    Ok(Reason::ALL.iter().map(|reason| reason.as_str()).find(|word| *word == text).unwrap_or("unknown"))
}
