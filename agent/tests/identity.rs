//! Who is refused and how that reads, in each direction; and what is revoked: real TLS over loopback.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "identity/handshakes.rs"]
mod handshakes;
#[path = "identity/table.rs"]
mod table;
#[path = "hbone/world.rs"]
#[allow(dead_code, reason = "shared with the tests of tunnels")]
mod world;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert::identity::{EmbeddedCa, WorkloadCert};
use culvert::proxy::{Side, Stage, TunnelFlow};
use culvert_common::Reason;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls::{SignatureScheme, sign::CertifiedKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use table::{HOUR, Refused, Row, issuer_in};
use world::{DAY, Setup, World, id};

/// The refusal that says all of this.
async fn expect_refusal(world: &World, side: Side, what: &str, refused: &Refused) -> TunnelFlow {
    let like = |f: &TunnelFlow| {
        f.side == side
            && f.stage == Stage::Refused
            && f.decision.reason == refused.reason
            && refused.says.iter().all(|part| f.error.contains(part))
    };
    let flow = world.mesh.flow(&format!("of {what} at {side:?} that says {:?}", refused.says), like).await;
    world.mesh.flows.lock().unwrap().clear();
    flow
}

/// A world whose agents follow a list, and the table for it.
async fn world_and_table(
    impostor: Option<&TcpListener>,
    account: &str,
) -> (World, Vec<Row>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let crl = dir.path().join("crl.pem");
    let impostor = impostor.map(|listener| listener.local_addr().unwrap());
    let world = World::with(Setup { impostor, crl: Some(crl.clone()), ..Setup::default() }).await;
    let foreign = dir.path().join("foreign");
    let rows = table::table(&world, &crl, &foreign, account);
    // The list is looked at every second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    (world, rows, dir)
}

#[tokio::test]
async fn a_client_is_refused_with_the_reason_and_hears_it() {
    let (world, rows, _dir) = world_and_table(None, "client").await;
    for Row { what, cert, as_client, .. } in rows {
        let Some(refused) = as_client else {
            assert!(is_let_in(&world, &cert).await, "{what}");
            continue;
        };
        let tcp = TcpStream::connect(world.hbone).await.unwrap();
        let connector = TlsConnector::from(cert.connecting(&id("server")).0);
        let mut tls = connector
            .connect(rustls::pki_types::ServerName::IpAddress(world.server_ip.into()), tcp)
            .await
            .unwrap();
        // What an HTTP/2 client sends at once must not cost it the alert.
        let _ = tls.write_all(&[0; 4096]).await;
        let heard = tls.read_u8().await.unwrap_err().to_string();
        assert!(heard.contains(refused.alert), "{what}: {heard}");
        expect_refusal(&world, Side::Destination, what, &refused).await;
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
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let (world, rows, _dir) = world_and_table(Some(&listener), "server").await;
    let _app = world.app().await;
    for Row { what, cert, as_server: refused, .. } in rows {
        let mut app = world.connect().await;
        let (tcp, _) = listener.accept().await.unwrap();
        let heard = TlsAcceptor::from(cert.accepting().0).accept(tcp).await.unwrap_err().to_string();
        assert!(heard.contains(refused.alert), "{what}: {heard}");
        assert!(app.read_u8().await.is_err());
        expect_refusal(&world, Side::Source, what, &refused).await;
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
    std::fs::write(&temporary, params.signed_by(&issuer_in(dir)).unwrap().pem().unwrap()).unwrap();
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
