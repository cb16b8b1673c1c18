//! Who is refused and how that reads, in each direction; and what is revoked: real TLS over loopback.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "hbone/world.rs"]
#[allow(dead_code, reason = "shared with the tests of tunnels")]
mod world;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert::identity::{EmbeddedCa, SignedChain, SpiffeId, WorkloadCert};
use culvert::proxy::{Side, Stage, TunnelFlow};
use culvert_common::Reason;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, PKCS_ECDSA_P256_SHA256,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{SignatureScheme, sign::CertifiedKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use world::{DAY, Setup, World, id};

const HOUR: Duration = Duration::from_secs(3600);
const MOMENT: Duration = Duration::from_secs(20);

/// A certificate that a peer shows, and what is said of it: the reason, parts of the text, and the alert it gets.
struct Case {
    cert: WorkloadCert,
    reason: Reason,
    says: Vec<String>,
    alert: &'static str,
}

fn case(cert: WorkloadCert, reason: Reason, says: &[&str], alert: &'static str) -> Case {
    Case { cert, reason, says: says.iter().map(|s| (*s).to_owned()).collect(), alert }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// Of this mesh's CA, for the time given.
fn valid(dir: &Path, identity: &SpiffeId, from: SystemTime, to: SystemTime) -> WorkloadCert {
    let key = key();
    let signed = EmbeddedCa::open(dir, DAY).unwrap().sign_for_period(identity, &key, from, to).unwrap();
    WorkloadCert::new(identity.clone(), &key, signed, &[]).unwrap()
}

/// Its own issuer, and trusts this mesh's root.
fn self_signed(dir: &Path, identity: &SpiffeId) -> WorkloadCert {
    let key = key();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "it says so itself");
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
    let chain = vec![params.self_signed(&key).unwrap().into()];
    let now = SystemTime::now();
    let roots =
        EmbeddedCa::open(dir, DAY).unwrap().sign_for_period(identity, &key, now, now + DAY).unwrap().roots;
    WorkloadCert::new(identity.clone(), &key, SignedChain { chain, roots }, &[]).unwrap()
}

/// What every verifier refuses, whichever end shows it.
fn bad(world: &World, foreign: &Path, account: &str) -> Vec<Case> {
    let (dir, now, who) = (world.ca_dir.path(), SystemTime::now(), id(account));
    let ended = |ago: Duration| valid(dir, &who, now - DAY, now - ago);
    let begins = |after: Duration| valid(dir, &who, now + after, now + DAY);
    let name = who.to_string();
    let failed = Reason::TunnelFailed;
    vec![
        case(
            ended(3 * HOUR),
            failed,
            &["expired at 20", ", 3 h ago", &name, "Culvert mesh root", "a clock is wrong"],
            "CertificateExpired",
        ),
        case(ended(MOMENT), failed, &["expired at", "clock skew, compare the clocks"], "CertificateExpired"),
        case(
            begins(3 * HOUR),
            failed,
            &["is not valid yet, only from 20", ", in ", &name],
            "CertificateExpired",
        ),
        case(begins(MOMENT), failed, &["not valid yet", "clock skew"], "CertificateExpired"),
        case(
            self_signed(dir, &who),
            failed,
            &["unknown issuer: it is self-signed", "it says so itself"],
            "UnknownCA",
        ),
        case(
            world.foreign_cert(foreign, who.clone()),
            failed,
            &["unknown issuer", "a root of the same name with another key"],
            "DecryptError",
        ),
    ]
}

/// The refusal that says all of this.
async fn expect_refusal(world: &World, side: Side, case: &Case) -> TunnelFlow {
    let like = |f: &TunnelFlow| {
        f.side == side
            && f.stage == Stage::Refused
            && f.decision.reason == case.reason
            && case.says.iter().all(|part| f.error.contains(part))
    };
    world.mesh.flow(&format!("at {side:?} that says {:?}", case.says), like).await
}

#[tokio::test]
async fn a_client_is_refused_with_the_reason_and_hears_it() {
    let foreign = tempfile::tempdir().unwrap();
    let world = World::new().await;
    let mut cases = bad(&world, foreign.path(), "client");
    let stranger = SpiffeId::new("elsewhere.example", "test", "client");
    let now = SystemTime::now();
    cases.push(case(
        valid(world.ca_dir.path(), &stranger, now, now + DAY),
        Reason::WrongPeer,
        &["expected the trust domain cluster.local, got spiffe://elsewhere.example/ns/test/sa/client"],
        "CertificateUnknown",
    ));
    for case in cases {
        let tcp = TcpStream::connect(world.hbone).await.unwrap();
        let connector = TlsConnector::from(case.cert.connecting(&id("server")).0);
        let mut tls = connector
            .connect(rustls::pki_types::ServerName::IpAddress(world.server_ip.into()), tcp)
            .await
            .unwrap();
        // What an HTTP/2 client sends at once must not cost it the alert.
        let _ = tls.write_all(&[0; 4096]).await;
        let heard = tls.read_u8().await.unwrap_err().to_string();
        assert!(heard.contains(case.alert), "{:?}: {heard}", case.says);
        expect_refusal(&world, Side::Destination, &case).await;
        world.mesh.flows.lock().unwrap().clear();
    }
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_without_certificate_is_told_so() {
    let world = World::new().await;
    let mut settings = (*world.cert(id("client"), HOUR, DAY).connecting(&id("server")).0).clone();
    settings.client_auth_cert_resolver = Arc::new(NoCertificate);
    let tcp = TcpStream::connect(world.hbone).await.unwrap();
    let mut tls = TlsConnector::from(Arc::new(settings))
        .connect(rustls::pki_types::ServerName::IpAddress(world.server_ip.into()), tcp)
        .await
        .unwrap();
    let heard = tls.read_u8().await.unwrap_err().to_string();
    assert!(heard.contains("CertificateRequired"), "{heard}");
    let flow = world.mesh.refusal(Reason::TunnelFailed).await;
    assert!(flow.error.contains("the peer presented no certificate"), "{}", flow.error);
}

#[tokio::test]
async fn a_server_is_refused_with_the_reason_and_gets_no_byte() {
    let foreign = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let setup = Setup { impostor: Some(listener.local_addr().unwrap()), ..Setup::default() };
    let world = World::with(setup).await;
    let _app = world.app().await;
    let mut cases = bad(&world, foreign.path(), "server");
    let now = SystemTime::now();
    for got in [id("other"), SpiffeId::new("elsewhere.example", "test", "server")] {
        cases.push(case(
            valid(world.ca_dir.path(), &got, now, now + DAY),
            Reason::WrongPeer,
            &[&format!("expected the identity {}, got {got}", id("server"))],
            "CertificateUnknown",
        ));
    }
    for case in cases {
        let mut app = world.connect().await;
        let (tcp, _) = listener.accept().await.unwrap();
        let heard = TlsAcceptor::from(case.cert.accepting().0).accept(tcp).await.unwrap_err().to_string();
        assert!(heard.contains(case.alert), "{:?}: {heard}", case.says);
        assert!(app.read_u8().await.is_err());
        expect_refusal(&world, Side::Source, &case).await;
        world.mesh.flows.lock().unwrap().clear();
    }
}

/// Two CAs that were made apart: the client trusts both, the server only its own.
#[tokio::test]
async fn what_the_peer_has_against_us_is_explained() {
    let foreign = tempfile::tempdir().unwrap();
    let world = World::new().await;
    EmbeddedCa::open(foreign.path(), DAY).unwrap();
    let path = foreign.path().join("ca.crt");
    let both = std::fs::read_to_string(&path).unwrap()
        + &std::fs::read_to_string(world.ca_dir.path().join("ca.crt")).unwrap();
    std::fs::write(&path, both).unwrap();
    let ca = EmbeddedCa::open(foreign.path(), DAY).unwrap();
    let certs = culvert::identity::CertStore::new(culvert::identity::Ca::Embedded(ca));
    let pool = culvert::hbone::Pool::new(certs, culvert::hbone::HboneConfig::default());
    let request = http::Request::builder().method("CONNECT").uri("127.0.0.3:80").body(()).unwrap();
    let Err(error) = pool.open(&world.destination(), &request).await else { panic!("it was let in") };
    assert_eq!(error.reason(), Reason::TunnelFailed);
    let text = error.to_string();
    assert!(text.contains("did not accept our certificate: the peer does not trust who signed it"), "{text}");
}

/// Revokes `serial` by a list of the CA in `dir`, which ends `end` from now (or that long ago).
fn revoke(dir: &Path, list: &Path, serial: &str, expired: bool) {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let root = CertificateDer::from_pem_slice(read("ca.crt").as_bytes()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&root, KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let bytes = (0..serial.len()).step_by(2).map(|n| u8::from_str_radix(&serial[n..n + 2], 16).unwrap());
    let now = SystemTime::now();
    let params = CertificateRevocationListParams {
        this_update: (now - DAY).into(),
        next_update: if expired { now - HOUR } else { now + HOUR }.into(),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(bytes.collect::<Vec<u8>>()),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let temporary = list.with_extension("new");
    std::fs::write(&temporary, params.signed_by(&issuer).unwrap().pem().unwrap()).unwrap();
    std::fs::rename(temporary, list).unwrap();
}

async fn echoes(tcp: &mut TcpStream) -> bool {
    tcp.write_all(b"x").await.is_ok() && tcp.read_u8().await.is_ok_and(|byte| byte == b'x')
}

/// Revokes what `account` shows; the other side, where `side` is, ends the tunnel and lets no new one come up.
async fn a_revoked_peer(account: &str, side: Side) {
    let dir = tempfile::tempdir().unwrap();
    let crl = dir.path().join("crl.pem");
    let world = World::with(Setup { crl: Some(crl.clone()), ..Setup::default() }).await;
    world.echo().await;
    let mut open = world.connect().await;
    assert!(echoes(&mut open).await);
    let certs = if account == "client" { &world.client.certs } else { &world.server.certs };
    let serial = certs.get(&id(account)).await.unwrap().serial().to_owned();

    // An expired list and a broken one change nothing.
    revoke(world.ca_dir.path(), &crl, &serial, true);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(echoes(&mut open).await && echoes(&mut world.connect().await).await);
    std::fs::write(&crl, "no list at all").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(echoes(&mut open).await && echoes(&mut world.connect().await).await);

    revoke(world.ca_dir.path(), &crl, &serial, false);
    let ended = tokio::time::timeout(Duration::from_secs(3), open.read_u8()).await.unwrap();
    assert!(ended.is_err(), "an open tunnel goes on");
    let closed = |f: &TunnelFlow| {
        f.side == side && matches!(f.stage, Stage::Closed { .. }) && f.error.contains("has been revoked")
    };
    world.mesh.flow("closed by revocation", closed).await;
    assert!(!echoes(&mut world.connect().await).await);
    let refused = |f: &TunnelFlow| {
        f.side == side
            && f.stage == Stage::Refused
            && f.error.contains(&format!("is revoked (serial {serial})"))
    };
    world.mesh.flow("refused as revoked", refused).await;
    // Broken again: the last good list stays in force.
    std::fs::write(&crl, "no list at all").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!echoes(&mut world.connect().await).await);
}

#[tokio::test]
async fn a_revoked_client_loses_its_tunnels_and_gets_no_new_one() {
    a_revoked_peer("client", Side::Destination).await;
}

#[tokio::test]
async fn a_revoked_server_loses_its_tunnels_and_gets_no_new_one() {
    a_revoked_peer("server", Side::Source).await;
}

/// Whether a client with this certificate is let in: the server's HTTP/2 settings come.
async fn is_let_in(world: &World, cert: &WorkloadCert) -> bool {
    let tcp = TcpStream::connect(world.hbone).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(world.server_ip.into());
    let connector = TlsConnector::from(cert.connecting(&id("server")).0);
    let mut tls = connector.connect(name, tcp).await.unwrap();
    tls.read_u8().await.is_ok()
}

#[tokio::test]
async fn another_root_in_the_bundle_counts_for_new_connections_and_open_ones_stay() {
    let foreign = tempfile::tempdir().unwrap();
    let world = World::new().await;
    world.echo().await;
    let mut open = world.connect().await;
    assert!(echoes(&mut open).await);
    let cert = world.foreign_cert(foreign.path(), id("client"));
    assert!(!is_let_in(&world, &cert).await);

    let path = world.ca_dir.path().join("ca.crt");
    let both = std::fs::read_to_string(&path).unwrap()
        + &std::fs::read_to_string(foreign.path().join("ca.crt")).unwrap();
    std::fs::write(path.with_extension("new"), both).unwrap();
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    let begun = std::time::Instant::now();
    while !is_let_in(&world, &cert).await {
        assert!(begun.elapsed() < Duration::from_secs(5), "the bundle is not taken over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(echoes(&mut open).await && echoes(&mut world.connect().await).await);
}
