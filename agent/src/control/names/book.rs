//! What is known of each name, and when to ask again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::ask::Found;
use super::{Answer, CEILING, FLOOR, MAX_ADDRESSES, MAX_NAMES};
use crate::control::Update;

/// The longest pause between two tries while no server answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest that a name without addresses is left alone: somebody may just be adding it.
const NOTHING: Duration = Duration::from_secs(30);

/// The names that are asked for.
#[derive(Default)]
pub(super) struct Book {
    names: BTreeMap<String, Entry>,
    /// Names that there is no room for.
    refused: BTreeSet<String>,
    due: BTreeSet<(Instant, String)>,
}

#[derive(Default)]
struct Entry {
    /// IPv4, IPv6.
    known: [Vec<IpAddr>; 2],
    /// `None`: it was not answered yet.
    told: Option<Answer>,
    /// When it is to be asked for; `None`: it is being asked for.
    due: Option<Instant>,
    /// How often in a row a server failed.
    failed: u32,
}

impl Book {
    /// These names are wanted now, and no others. Returns what that says by itself.
    pub(super) fn want(&mut self, wanted: BTreeSet<&str>, now: Instant) -> Vec<Update> {
        let gone = |name: &String| !wanted.contains(name.as_str());
        let mut updates = Vec::new();
        for (name, entry) in self.names.extract_if(.., |name, _| gone(name)) {
            if let Some(due) = entry.due {
                self.due.remove(&(due, name.clone()));
            }
            updates.push(Update::Name(name, None));
        }
        let dropped: Vec<String> = self.refused.iter().filter(|name| gone(name)).cloned().collect();
        for name in dropped {
            self.refused.remove(&name);
            updates.push(Update::Name(name, None));
        }
        for name in wanted {
            if self.names.contains_key(name) {
                continue;
            }
            if self.names.len() < MAX_NAMES {
                self.refused.remove(name);
                self.names.insert(name.to_owned(), Entry { due: Some(now), ..Entry::default() });
                self.due.insert((now, name.to_owned()));
            } else if self.refused.insert(name.to_owned()) {
                let problem = format!("is not asked for: there are more than {MAX_NAMES} names already");
                tracing::warn!(name, problem, "DNS");
                updates.push(Update::Name(name.to_owned(), Some(Answer { problem, ..Answer::default() })));
            }
        }
        updates
    }

    /// Whether a name has not been answered once.
    pub(super) fn is_unanswered(&self) -> bool {
        self.names.values().any(|entry| entry.told.is_none())
    }

    /// When the next name is to be asked for.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// A name that is to be asked for by now.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<String> {
        if self.next_due()? > now {
            return None;
        }
        let (_, name) = self.due.pop_first()?;
        if let Some(entry) = self.names.get_mut(&name) {
            entry.due = None;
        }
        Some(name)
    }

    /// What was found for IPv4 and IPv6. Returns the answer when it is another one than before.
    pub(super) fn answer(&mut self, name: &str, found: [Found; 2], now: Instant) -> Option<Answer> {
        // A name that nobody wants any more, or that came back meanwhile and waits for its own question.
        let entry = self.names.get_mut(name).filter(|entry| entry.due.is_none())?;
        let (answer, again) = entry.take(found);
        let due = now + again;
        entry.due = Some(due);
        self.due.insert((due, name.to_owned()));
        if entry.told.as_ref() == Some(&answer) {
            return None;
        }
        log(name, entry.told.as_ref(), &answer);
        entry.told = Some(answer.clone());
        Some(answer)
    }
}

impl Entry {
    /// The answer now, and how long it holds.
    fn take(&mut self, found: [Found; 2]) -> (Answer, Duration) {
        let mut again = CEILING;
        let mut problem = String::new();
        let mut failed = false;
        let mut nothing = String::new();
        for (found, (known, family)) in found.into_iter().zip(self.known.iter_mut().zip(["IPv4", "IPv6"])) {
            match found {
                Found::Addresses(addresses, ttl) => {
                    *known = addresses;
                    again = again.min(ttl);
                }
                Found::Nothing(why, ttl) => {
                    known.clear();
                    nothing = why;
                    again = again.min(ttl);
                }
                Found::Failed(error) => {
                    problem = match failed {
                        true => format!("DNS does not answer: {error}"),
                        false => format!("DNS does not answer for {family}: {error}"),
                    };
                    failed = true;
                }
            }
        }
        self.failed = if failed { self.failed.saturating_add(1) } else { 0 };
        if failed {
            again = again.min(PATIENCE.min(FLOOR * 2_u32.saturating_pow(self.failed.min(6) - 1)));
        }
        let mut addresses: Vec<IpAddr> = self.known.iter().flatten().copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() {
            again = again.min(NOTHING);
        }
        if addresses.is_empty() && problem.is_empty() {
            problem = nothing;
        }
        (Answer { addresses, problem }, again.max(FLOOR))
    }
}

/// Once for each change.
fn log(name: &str, before: Option<&Answer>, now: &Answer) {
    let known = now.addresses.len();
    let same = before.is_some_and(|before| before.problem == now.problem);
    if !now.problem.is_empty() && !same {
        let stays = if known == 0 { "nothing is known of it" } else { "what it said before stays in force" };
        tracing::warn!(name, problem = now.problem, addresses = known, "{stays}");
    } else if before.is_some_and(|before| !before.problem.is_empty()) && now.problem.is_empty() {
        tracing::info!(name, addresses = known, "DNS answers again");
    } else {
        tracing::debug!(name, addresses = ?now.addresses, "DNS");
    }
}
