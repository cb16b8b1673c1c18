//! However verbose the log, nothing secret is in it: keys, tokens, and what a handshake derives. All crates log here as in the
//! agent, to a buffer, at their most verbose, from the CA's service and client to the bytes of a tunnel.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "hbone/world.rs"]
#[allow(dead_code, reason = "shared with the tests of tunnels")]
mod world;

use std::fmt::Write;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use culvert::identity::{
    Ca, CaFiles, CaService, Compliance, EmbeddedCa, PeerRules, RemoteCa, RemoteConfig, ServiceConfig,
    WorkloadCert,
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::KeyLog;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tracing_subscriber::fmt::MakeWriter;

use world::{World, id};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.bm90LWZvci1hbnlib2R5.c2lnbmF0dXJl";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The secrets of the test's own end of a handshake, which are those of the other end.
#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<(String, Vec<u8>)>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        self.0.lock().unwrap().push((label.to_owned(), secret.to_vec()));
    }
}

/// Bytes as a log may show them: hexadecimal, base64, as Rust's `Debug` prints slices and strings.
fn forms(bytes: &[u8]) -> Vec<String> {
    let mut hex = String::new();
    for byte in bytes {
        write!(hex, "{byte:02x}").unwrap();
    }
    let decimal: Vec<String> = bytes.iter().map(u8::to_string).collect();
    let spaced: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let base64: String =
        pem::encode(&pem::Pem::new("X", bytes)).lines().filter(|line| !line.starts_with("---")).collect();
    let escaped: String =
        bytes.iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect();
    // Where base64 begins is another matter when other bytes stand before.
    let base64 = base64.trim_end_matches('=').to_owned();
    vec![hex.to_uppercase(), hex, decimal.join(", "), spaced.join(" "), spaced.join(", 0x"), base64, escaped]
}

/// How a private key begins that is written out: PKCS#8 and SEC1 of P-256.
fn beginnings() -> Vec<String> {
    let pkcs8 = [0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d];
    let sec1 = [0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
    [&pkcs8[..], &sec1[..]].into_iter().flat_map(forms).chain(["PRIVATE KEY".to_owned()]).collect()
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// The 32 bytes of a P-256 key.
fn scalar(key: &KeyPair) -> Vec<u8> {
    let der = key.serialize_der();
    let begin = der.windows(7).position(|w| w == [0x30, 0x6b, 2, 1, 1, 4, 0x20]).unwrap() + 7;
    der[begin..begin + 32].to_vec()
}

/// A CA that serves at 127.0.0.1 and knows [`TOKEN`], and its client.
async fn remote(dir: &std::path::Path) -> Ca {
    std::fs::write(dir.join("tokens"), format!("{TOKEN}\n")).unwrap();
    std::fs::write(dir.join("token"), TOKEN).unwrap();
    let files = CaFiles { cert: dir.join("ca.crt"), key: dir.join("ca.key"), root: None, chain: None };
    let config = ServiceConfig {
        token: dir.join("tokens"),
        trust_domains: vec!["cluster.local".to_owned()],
        longest: Duration::from_secs(3600),
        names: vec!["127.0.0.1".to_owned()],
        compliance: Compliance::None,
    };
    let ca = EmbeddedCa::open_files(files, Duration::from_secs(3600)).unwrap();
    let service = Arc::new(CaService::new(ca, config).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(service.serve(listener));
    let config = RemoteConfig {
        address,
        root: dir.join("ca.crt"),
        token: dir.join("token"),
        cluster: "Kubernetes".to_owned(),
        ttl: Duration::from_secs(3600),
        compliance: Compliance::None,
    };
    Ca::Remote(RemoteCa::new(config).unwrap())
}

#[tokio::test]
async fn nothing_secret_is_logged_however_verbose() {
    let log = Log::default();
    tracing_subscriber::fmt().with_env_filter("trace").with_writer(log.clone()).with_ansi(false).init();
    let world = World::new().await;
    world.echo().await;
    let ca = remote(world.ca_dir.path()).await;
    let own = key();
    let signed = ca.sign(&id("client"), &own).await.unwrap();
    let cert = WorkloadCert::new(id("client"), &own, signed, &PeerRules::default()).unwrap();

    // A whole tunnel between two agents, and a handshake of the test's own whose secrets it knows.
    let mut app = world.connect().await;
    app.write_all(b"what the apps say").await.unwrap();
    app.read_u8().await.unwrap();
    let secrets = Arc::new(Secrets::default());
    let mut settings = (*cert.connecting(&id("server")).0).clone();
    settings.key_log = secrets.clone();
    let tcp = TcpStream::connect(world.hbone).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(world.server_ip.into());
    let mut tls = TlsConnector::from(Arc::new(settings)).connect(name, tcp).await.unwrap();
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    tls.read_u8().await.unwrap();

    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    // Everybody has spoken.
    for part in ["TRACE rustls", "h2::", "DEBUG culvert", "Sending ClientHello"] {
        assert!(text.contains(part), "the log has no {part:?}, so this says nothing");
    }
    let root_key =
        KeyPair::from_pem(&std::fs::read_to_string(world.ca_dir.path().join("ca.key")).unwrap()).unwrap();
    let known = secrets.0.lock().unwrap().clone();
    assert!(known.len() >= 4, "{known:?}");
    let mut never = beginnings();
    never.push("what the apps say".to_owned());
    never.extend(forms(b"what the apps say"));
    never.extend([TOKEN.to_owned()].into_iter().chain(forms(TOKEN.as_bytes())));
    for secret in [scalar(&own), scalar(&root_key)].iter().chain(known.iter().map(|(_, secret)| secret)) {
        never.extend(forms(secret));
    }
    for secret in never {
        let Some(at) = text.find(&secret) else { continue };
        let line = text[..at].matches('\n').count();
        panic!("the log has {secret:?}:\n{}", text.lines().nth(line).unwrap());
    }
}

#[tokio::test]
async fn what_the_admin_pages_show_of_a_certificate_is_public() {
    let world = World::new().await;
    let ca = remote(world.ca_dir.path()).await;
    let own = key();
    let signed = ca.sign(&id("client"), &own).await.unwrap();
    let cert = WorkloadCert::new(id("client"), &own, signed, &PeerRules::default()).unwrap();
    let public = cert.public();
    assert!(!public.chain.is_empty() && !public.roots.is_empty());
    let root_key =
        KeyPair::from_pem(&std::fs::read_to_string(world.ca_dir.path().join("ca.key")).unwrap()).unwrap();
    for der in public.chain.iter().chain(public.roots.iter()) {
        x509_parser::parse_x509_certificate(der).unwrap();
        for secret in [scalar(&own), scalar(&root_key)] {
            assert!(
                !der.windows(secret.len()).any(|bytes| bytes == secret),
                "a private key is in a certificate"
            );
        }
    }
}
