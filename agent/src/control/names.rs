//! Names that objects have in place of addresses, asked of DNS: a source of updates that stands behind another one.
//!
//! The endpoints of ServiceEntries and the addresses of WorkloadEntries may be host names. What DNS says of them comes as
//! [`Update::Name`], so that the model need not ask anybody. A name is asked for again when its answer is too old: after the
//! answer's TTL, but no sooner than [`FLOOR`] and no later than [`CEILING`]. When no server answers, the last answer stays and
//! the name is asked for again after one second, two, four, … half a minute. A server that says that there is no such name (or no
//! address of a family) has answered: what was known is gone.
//!
//! Names are asked for as they are written, without the search list of resolv.conf, unless they have no dot.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Object, ObjectRef, Update};
use crate::sys::until;
use ask::{Asker, Found};
use book::Book;

mod ask;
mod book;
#[cfg(test)]
mod tests;

/// The soonest that an answer is asked for again.
pub const FLOOR: Duration = Duration::from_secs(1);
/// The latest that an answer is asked for again.
pub const CEILING: Duration = Duration::from_secs(300);
/// How many names are asked for at all.
pub const MAX_NAMES: usize = 4096;
/// How many names are asked for at a time, both families of each.
pub const MAX_ASKED: usize = 16;
/// How many addresses of a name count; the first ones in their order.
pub const MAX_ADDRESSES: usize = 64;
/// How long the first picture waits for the first answers, so that a new agent does not take back what its predecessor knew.
const START_WAIT: Duration = Duration::from_secs(1);
/// Answers that come together change the world together.
const GATHER: Duration = Duration::from_millis(50);

/// What an address begins with that is a path.
pub(crate) const UNIX: &str = "unix://";

/// What DNS says of a name.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Answer {
    /// Of both families, in their order.
    pub addresses: Vec<IpAddr>,
    /// Why there are none, or why they may be old; empty: they are as DNS has them.
    pub problem: String,
}

/// Where to ask.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names the servers, as in resolv.conf(5); read again when it changes.
    pub resolv_conf: PathBuf,
    /// Where they listen.
    pub port: u16,
}

impl Config {
    /// The servers that `resolv_conf` names, at DNS's own port.
    pub fn new(resolv_conf: PathBuf) -> Self {
        Self { resolv_conf, port: 53 }
    }
}

/// The name to ask DNS for, where `address` is one: in lower case, without a dot at the end.
pub fn name_of(address: &str) -> Option<String> {
    let is_name = address.parse::<IpAddr>().is_err() && is_dns_name(address);
    is_name.then(|| address.trim_end_matches('.').to_ascii_lowercase())
}

/// Whether DNS can be asked for it (RFC 1035, and `_` as in RFC 2782).
pub(crate) fn is_dns_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let part = |part: &str| {
        let inner = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        (1..=63).contains(&part.len()) && part.bytes().all(inner)
    };
    text.len() <= 253 && text.split('.').all(part)
}

/// Passes on what `source` tells, and adds what DNS says of the names in it; until `shutdown`, or until one of the two ends is
/// gone. The first picture comes with the first answers, or after a second.
pub fn spawn(
    source: mpsc::Receiver<Vec<Update>>,
    config: Config,
    shutdown: CancellationToken,
) -> mpsc::Receiver<Vec<Update>> {
    let (sender, receiver) = mpsc::channel(16);
    let follower = Follower {
        source,
        sender,
        asker: Asker::new(config),
        asked: JoinSet::new(),
        wanted: BTreeMap::new(),
        book: Book::default(),
        held: None,
        gathered: None,
    };
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follower.follow() => {}
        }
    });
    receiver
}

struct Follower {
    source: mpsc::Receiver<Vec<Update>>,
    sender: mpsc::Sender<Vec<Update>>,
    asker: Asker,
    asked: JoinSet<(String, [Found; 2])>,
    /// The names in each object.
    wanted: BTreeMap<ObjectRef, Vec<String>>,
    book: Book,
    /// The first picture, and until when it waits.
    held: Option<(Vec<Update>, Instant)>,
    /// Answers to be told, and when.
    gathered: Option<(Vec<Update>, Instant)>,
}

impl Follower {
    async fn follow(mut self) {
        loop {
            self.ask();
            let due = self.book.next_due().filter(|_| self.asked.len() < MAX_ASKED);
            let alive = tokio::select! {
                batch = self.source.recv() => match batch {
                    Some(batch) => self.take(batch).await,
                    None => false,
                },
                Some(asked) = self.asked.join_next() => {
                    match asked {
                        Ok((name, found)) => self.answered(&name, found),
                        Err(error) => tracing::error!(%error, "a question to DNS was lost"),
                    }
                    self.release(false).await
                }
                () = until(due) => true,
                () = until(self.gathered.as_ref().map(|(_, when)| *when)) => self.tell().await,
                () = until(self.held.as_ref().map(|(_, when)| *when)) => self.release(true).await,
            };
            if !alive {
                return;
            }
        }
    }

    fn ask(&mut self) {
        while self.asked.len() < MAX_ASKED {
            let Some(name) = self.book.take_due(Instant::now()) else { return };
            let asker = self.asker.current();
            self.asked.spawn(async move {
                let found = asker.ask(&name).await;
                (name, found)
            });
        }
    }

    /// Whether to go on.
    async fn take(&mut self, mut batch: Vec<Update>) -> bool {
        batch.iter().for_each(|update| self.note(update));
        let names = self.wanted.values().flatten().map(String::as_str);
        batch.extend(self.book.want(names.collect(), Instant::now()));
        let first = batch.contains(&Update::Synced);
        match &mut self.held {
            Some((held, _)) => held.extend(batch),
            None if first && self.book.is_unanswered() => {
                self.held = Some((batch, Instant::now() + START_WAIT));
            }
            None => return self.sender.send(batch).await.is_ok(),
        }
        true
    }

    fn note(&mut self, update: &Update) {
        match update {
            Update::Upsert(object) => {
                let names: Vec<String> = match object {
                    Object::ServiceEntry(entry) => entry.inline_addresses().filter_map(name_of).collect(),
                    Object::WorkloadEntry(entry) => name_of(&entry.spec.address).into_iter().collect(),
                    _ => return,
                };
                self.wanted.insert(object.key(), names);
            }
            Update::Remove(object) => drop(self.wanted.remove(object)),
            Update::Report(_) | Update::Name(..) | Update::Synced => {}
        }
    }

    fn answered(&mut self, name: &str, found: [Found; 2]) {
        let Some(answer) = self.book.answer(name, found, Instant::now()) else { return };
        let update = Update::Name(name.to_owned(), Some(answer));
        match (&mut self.held, &mut self.gathered) {
            (Some((held, _)), _) => held.push(update),
            (None, Some((gathered, _))) => gathered.push(update),
            (None, None) => self.gathered = Some((vec![update], Instant::now() + GATHER)),
        }
    }

    async fn tell(&mut self) -> bool {
        match self.gathered.take() {
            Some((updates, _)) => self.sender.send(updates).await.is_ok(),
            None => true,
        }
    }

    /// Lets the first picture go when every name has been asked for, or when it has waited long enough.
    async fn release(&mut self, now: bool) -> bool {
        if !now && self.book.is_unanswered() {
            return true;
        }
        match self.held.take() {
            Some((batch, _)) => self.sender.send(batch).await.is_ok(),
            None => true,
        }
    }
}
