//! Static findings on manifests: what an agent would refuse, ignore or understand otherwise than it was meant.
//!
//! No agent and no cluster is asked; the input alone counts, and Deployments and the like stand for their pods.
//!
//! # Layout
//!
//! * [`Input`]: files, folders and texts, read by the agent's own parser. Objects that only the analyzer looks at
//!   (Gateways, pod templates, `targetRefs`) are in `foreign`.
//! * `index`: the input by name, namespace and label, so that no check compares everything with everything.
//! * `checks`: a file for each subject, a function for each kind of finding.
//! * [`Code`]: every code with its level and meaning. [`Message`]: how one reads.

use std::cmp::Reverse;

mod checks;
mod code;
mod foreign;
mod index;
mod input;
mod l7;
mod message;

pub use code::{Code, Level};
pub use input::{Input, InputError};
pub use message::Message;

use crate::model::Settings;
use index::Index;

/// What is notable about `input`: the worst first, then in the order of the files.
pub fn analyze(input: &Input, settings: &Settings) -> Vec<Message> {
    let mut messages: Vec<Message> = input.problems.iter().map(Message::from).collect();
    let index = Index::new(input, settings, &mut messages);
    for check in checks::ALL {
        check(&index, &mut messages);
    }
    if input.incomplete {
        messages.retain(|message| !message.code.is_absence());
    }
    messages.sort_by(|a, b| (Reverse(a.code.level()), a).cmp(&(Reverse(b.code.level()), b)));
    messages.dedup();
    messages
}

#[cfg(test)]
mod tests;
