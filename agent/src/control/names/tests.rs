//! Against a DNS server over real sockets.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

use super::*;
use crate::control::objects;

/// What a server says of a name and family.
#[derive(Clone)]
enum Says {
    Addresses(Vec<IpAddr>, u32),
    Alias(&'static str, IpAddr, u32),
    Code(ResponseCode),
    /// Nothing at all.
    Silence,
}

#[derive(Clone, Default)]
struct Zone {
    says: Arc<Mutex<HashMap<(String, RecordType), Says>>>,
    asked: Arc<AtomicUsize>,
}

impl Zone {
    fn set(&self, name: &str, family: RecordType, says: Says) {
        self.says.lock().unwrap().insert((format!("{name}."), family), says);
    }

    fn v4(&self, name: &str, addresses: &[[u8; 4]], ttl: u32) {
        let addresses = addresses.iter().map(|ip| IpAddr::from(*ip)).collect();
        self.set(name, RecordType::A, Says::Addresses(addresses, ttl));
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn answer(&self, question: &Message) -> Option<Message> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let query = question.queries.first()?;
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.message_type = MessageType::Response;
        answer.metadata.recursion_available = true;
        answer.queries.push(query.clone());
        let key = (query.name().to_string().to_lowercase(), query.query_type());
        let record = |ttl, name: &Name, ip: IpAddr| {
            let data = match ip {
                IpAddr::V4(ip) => RData::A(A(ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
            };
            Record::from_rdata(name.clone(), ttl, data)
        };
        match self.says.lock().unwrap().get(&key) {
            Some(Says::Addresses(addresses, ttl)) => {
                answer.answers.extend(addresses.iter().map(|ip| record(*ttl, query.name(), *ip)));
            }
            Some(Says::Alias(name, ip, ttl)) => {
                let name = Name::from_ascii(name).unwrap();
                answer.answers.push(Record::from_rdata(
                    query.name().clone(),
                    *ttl,
                    RData::CNAME(CNAME(name.clone())),
                ));
                answer.answers.push(record(3600, &name, *ip));
            }
            Some(Says::Code(code)) => answer.metadata.response_code = *code,
            Some(Says::Silence) => return None,
            None => answer.metadata.response_code = ResponseCode::NoError,
        }
        Some(answer)
    }

    /// A server of this zone at a port of its own, and where to find it.
    async fn serve(&self, dir: &tempfile::TempDir) -> Config {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let zone = self.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (n, from) = socket.recv_from(&mut buffer).await.unwrap();
                if let Some(answer) = zone.answer(&Message::from_vec(&buffer[..n]).unwrap()) {
                    socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        let resolv_conf = dir.path().join("resolv.conf");
        std::fs::write(
            &resolv_conf,
            "search wrong.example\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        )
        .unwrap();
        Config { resolv_conf, port }
    }
}

/// A source that the test feeds, and what comes out behind the names.
struct Names {
    source: mpsc::Sender<Vec<Update>>,
    updates: mpsc::Receiver<Vec<Update>>,
    told: HashMap<String, Option<Answer>>,
}

impl Names {
    fn start(config: Config) -> Self {
        let (source, behind) = mpsc::channel(4);
        let updates = spawn(behind, config, CancellationToken::new());
        Self { source, updates, told: HashMap::new() }
    }

    async fn send(&self, batch: Vec<Update>) {
        self.source.send(batch).await.unwrap();
    }

    /// The next batch.
    async fn next(&mut self) -> Vec<Update> {
        let batch =
            tokio::time::timeout(Duration::from_secs(10), self.updates.recv()).await.unwrap().unwrap();
        for update in &batch {
            if let Update::Name(name, answer) = update {
                self.told.insert(name.clone(), answer.clone());
            }
        }
        batch
    }

    /// Waits until the name is told to have these addresses.
    async fn has(&mut self, name: &str, addresses: &[&str]) -> Answer {
        loop {
            if let Some(Some(answer)) = self.told.get(name) {
                let shown: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
                if shown == addresses {
                    return answer.clone();
                }
            }
            self.next().await;
        }
    }
}

fn machine(name: &str, address: &str) -> Update {
    let json =
        serde_json::json!({"metadata": {"name": name, "namespace": "a"}, "spec": {"address": address}});
    let entry: objects::WorkloadEntry = serde_json::from_value(json).unwrap();
    Update::Upsert(Object::WorkloadEntry(Arc::new(entry)))
}

fn gone(name: &str) -> Update {
    Update::Remove(ObjectRef::new(crate::control::Kind::WorkloadEntry, "a", name))
}

#[tokio::test]
async fn the_first_picture_has_both_families() {
    let (zone, dir) = (Zone::default(), tempfile::tempdir().unwrap());
    zone.v4("db.example", &[[10, 3, 0, 2], [10, 3, 0, 1]], 60);
    let v6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3));
    zone.set("db.example", RecordType::AAAA, Says::Addresses(vec![v6], 60));
    let mut names = Names::start(zone.serve(&dir).await);
    names.send(vec![machine("m", "DB.example."), machine("n", "10.0.0.1"), Update::Synced]).await;
    let first = names.next().await;
    assert_eq!(first[..2], [machine("m", "DB.example."), machine("n", "10.0.0.1")]);
    assert!(first.contains(&Update::Synced));
    let answer = names.told["db.example"].clone().unwrap();
    let shown: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(
        (shown, answer.problem.as_str()),
        (vec!["10.3.0.1".into(), "10.3.0.2".into(), "fd00::3".into()], "")
    );
    assert_eq!(zone.asked(), 2, "once for each family");
}

#[tokio::test]
async fn answers_are_asked_for_again_when_they_are_too_old() {
    let (zone, dir) = (Zone::default(), tempfile::tempdir().unwrap());
    zone.v4("short.example", &[[10, 3, 0, 1]], 0);
    zone.v4("long.example", &[[10, 3, 0, 1]], 3600);
    let alias = Says::Alias("real.example.", Ipv4Addr::new(10, 3, 0, 1).into(), 1);
    zone.set("alias.example", RecordType::A, alias);
    let mut names = Names::start(zone.serve(&dir).await);
    names
        .send(vec![
            machine("s", "short.example"),
            machine("l", "long.example"),
            machine("a", "alias.example"),
        ])
        .await;
    for name in ["short.example", "long.example", "alias.example"] {
        names.has(name, &["10.3.0.1"]).await;
    }
    for name in ["short.example", "long.example"] {
        zone.v4(name, &[[10, 3, 0, 9]], 3600);
    }
    let alias = Says::Alias("real.example.", Ipv4Addr::new(10, 3, 0, 9).into(), 3600);
    zone.set("alias.example", RecordType::A, alias);
    let begun = Instant::now();
    names.has("short.example", &["10.3.0.9"]).await;
    names.has("alias.example", &["10.3.0.9"]).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(names.told["long.example"].clone().unwrap().addresses, [IpAddr::from([10, 3, 0, 1])]);
    let asked = zone.asked();
    assert!((10..30).contains(&asked), "{asked}: a TTL of 0 is no leave to ask all the time");
}

#[tokio::test]
async fn what_was_known_stays_while_no_server_answers() {
    for trouble in [Says::Silence, Says::Code(ResponseCode::ServFail), Says::Code(ResponseCode::Refused)] {
        let (zone, dir) = (Zone::default(), tempfile::tempdir().unwrap());
        zone.v4("db.example", &[[10, 3, 0, 1]], 1);
        let mut names = Names::start(zone.serve(&dir).await);
        names.send(vec![machine("m", "db.example")]).await;
        assert_eq!(names.has("db.example", &["10.3.0.1"]).await.problem, "");
        zone.set("db.example", RecordType::A, trouble);
        names.next().await;
        let stale = names.has("db.example", &["10.3.0.1"]).await;
        assert!(stale.problem.starts_with("DNS does not answer for IPv4: "), "{stale:?}");
        zone.v4("db.example", &[[10, 3, 0, 2]], 60);
        assert_eq!(names.has("db.example", &["10.3.0.2"]).await.problem, "");
    }
}

#[tokio::test]
async fn a_name_that_is_no_more_has_no_addresses() {
    for (end, says) in [
        (Says::Code(ResponseCode::NXDomain), "knows no such name"),
        (Says::Addresses(vec![], 1), "has no address"),
    ] {
        let (zone, dir) = (Zone::default(), tempfile::tempdir().unwrap());
        zone.v4("db.example", &[[10, 3, 0, 1]], 1);
        // The search list of resolv.conf must not give it the address of another one.
        zone.v4("db.example.wrong.example", &[[10, 3, 0, 7]], 1);
        let mut names = Names::start(zone.serve(&dir).await);
        names.send(vec![machine("m", "db.example")]).await;
        names.has("db.example", &["10.3.0.1"]).await;
        if let Says::Code(_) = end {
            zone.set("db.example", RecordType::AAAA, end.clone());
        }
        zone.set("db.example", RecordType::A, end);
        let answer = names.has("db.example", &[]).await;
        assert!(answer.problem.contains(says), "{answer:?}");
    }
}

#[tokio::test]
async fn a_picture_does_not_wait_long_for_dns() {
    let (zone, dir) = (Zone::default(), tempfile::tempdir().unwrap());
    zone.set("db.example", RecordType::A, Says::Silence);
    zone.set("db.example", RecordType::AAAA, Says::Silence);
    let mut config = zone.serve(&dir).await;
    let mut names = Names::start(config.clone());
    let begun = Instant::now();
    names.send(vec![machine("m", "db.example"), Update::Synced]).await;
    assert!(names.next().await.contains(&Update::Synced));
    assert!((900..2000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert!(names.has("db.example", &[]).await.problem.contains("DNS does not answer"));
    // Without a file to name a server there is nothing to wait for.
    config.resolv_conf = dir.path().join("none");
    let mut names = Names::start(config.clone());
    let begun = Instant::now();
    names.send(vec![machine("m", "db.example"), Update::Synced]).await;
    names.next().await;
    assert!(begun.elapsed() < Duration::from_millis(800), "{:?}", begun.elapsed());
    assert!(
        names.told["db.example"].clone().unwrap().problem.contains("none: No such file"),
        "{:?}",
        names.told
    );
    // It is read once it is there.
    zone.v4("db.example", &[[10, 3, 0, 1]], 60);
    std::fs::copy(dir.path().join("resolv.conf"), &config.resolv_conf).unwrap();
    names.has("db.example", &["10.3.0.1"]).await;
}

#[tokio::test]
async fn only_names_that_are_wanted_are_asked_for() {
    let (zone, dir) = (Zone::default(), tempfile::tempdir().unwrap());
    zone.v4("db.example", &[[10, 3, 0, 1]], 1);
    let mut names = Names::start(zone.serve(&dir).await);
    names.send(vec![machine("m", "db.example"), machine("n", "db.example")]).await;
    names.has("db.example", &["10.3.0.1"]).await;
    names.send(vec![gone("n")]).await;
    assert_eq!(names.next().await, [gone("n")]);
    names.send(vec![machine("m", "10.0.0.1")]).await;
    let last = names.next().await;
    assert!(last.contains(&Update::Name("db.example".to_owned(), None)), "{last:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let asked = zone.asked();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(zone.asked(), asked);
}

#[test]
fn there_are_at_most_so_many_names() {
    let names: Vec<String> = (0..=MAX_NAMES).map(|n| format!("n{n:05}.example")).collect();
    let all = || names.iter().map(String::as_str).collect();
    let mut book = Book::default();
    let told = book.want(all(), Instant::now());
    let [Update::Name(name, Some(answer))] = &told[..] else { panic!("{told:?}") };
    assert_eq!(name, names.last().unwrap());
    assert!(answer.problem.contains("more than 4096 names"), "{answer:?}");
    assert!(book.want(all(), Instant::now()).is_empty(), "told once");
    // One that goes makes room.
    let told = book.want(names[1..].iter().map(String::as_str).collect(), Instant::now());
    assert_eq!(told, [Update::Name(names[0].clone(), None)]);
    let mut due = 0;
    while book.take_due(Instant::now()).is_some() {
        due += 1;
    }
    assert_eq!(due, MAX_NAMES);
}

#[test]
fn tries_become_rarer_while_no_server_answers() {
    let mut book = Book::default();
    let mut now = Instant::now();
    book.want(["x".to_owned()].iter().map(String::as_str).collect(), now);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert_eq!(book.take_due(now).as_deref(), Some("x"));
        let failed = || Found::Failed("timeout".to_owned());
        book.answer("x", [failed(), failed()], now);
        let next = book.next_due().unwrap();
        pauses.push((next - now).as_secs());
        now = next;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    // One family that fails does not make the other one old, nor is it forgotten.
    let good = Found::Addresses(vec![IpAddr::from([10, 0, 0, 1])], Duration::from_secs(100_000));
    book.take_due(now);
    let answer = book.answer("x", [good.clone(), Found::Nothing("none".to_owned(), CEILING)], now).unwrap();
    assert_eq!((answer.addresses.len(), answer.problem.as_str()), (1, ""));
    assert_eq!(book.next_due().unwrap() - now, CEILING);
    // A name that is not there may be added any time.
    now = book.next_due().unwrap();
    book.take_due(now);
    let none = || Found::Nothing("none".to_owned(), CEILING);
    assert_eq!(book.answer("x", [none(), none()], now).unwrap().problem, "none");
    assert_eq!(book.next_due().unwrap() - now, Duration::from_secs(30));
}

#[test]
fn names_are_told_from_addresses() {
    for (address, name) in [
        ("Db.Example.", Some("db.example")),
        ("localhost", Some("localhost")),
        ("_sip.example", Some("_sip.example")),
        ("10.0.0.1", None),
        ("fd00::1", None),
        ("*.example", None),
        ("unix:///x", None),
        ("", None),
        ("a..b", None),
    ] {
        assert_eq!(name_of(address).as_deref(), name, "{address}");
    }
}
