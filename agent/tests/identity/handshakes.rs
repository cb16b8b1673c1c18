//! What is negotiated: TLS 1.3, and the hybrid key exchange with whoever knows it.

use std::process::Stdio;
use std::sync::Arc;

use culvert::hbone::OpenError;
use culvert::identity::{Compliance, FIPS_BUILD, WorkloadCert};
use culvert::proxy::Side;
use culvert_common::Reason;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, NamedGroup, RootCertStore, ServerConfig, SignatureScheme};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::table::{HOUR, Refused};
use crate::world::{DAY, Setup, World, id};
use crate::{echoes, expect_refusal};

/// A group that has nothing to do with ML-KEM, and is in the FIPS module where that is built in.
fn classical() -> &'static dyn SupportedKxGroup {
    if FIPS_BUILD { aws_lc_rs::kx_group::SECP256R1 } else { aws_lc_rs::kx_group::X25519 }
}

fn only(group: &'static dyn SupportedKxGroup) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() })
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// A client with the certificate that knows only one group.
fn client_with(cert: &WorkloadCert, group: &'static dyn SupportedKxGroup) -> ClientConfig {
    let mut settings = ClientConfig::builder_with_provider(only(group))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_cert_resolver(cert.connecting(&id("server")).0.client_auth_cert_resolver.clone());
    settings.alpn_protocols = vec![b"h2".to_vec()];
    settings
}

/// A server with the certificate that knows only one group, and takes any client of the mesh's root.
fn server_with(world: &World, cert: &WorkloadCert, group: &'static dyn SupportedKxGroup) -> ServerConfig {
    use rustls::pki_types::pem::PemObject;
    let pem = std::fs::read(world.ca_dir.path().join("ca.crt")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), only(group)).build().unwrap();
    let mut settings = ServerConfig::builder_with_provider(only(group))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_cert_resolver(cert.accepting().0.cert_resolver.clone());
    settings.alpn_protocols = vec![b"h2".to_vec()];
    settings
}

/// The group of a connection with these settings to the agent's HBONE port, when the agent's HTTP/2 speaks.
async fn group_with(world: &World, settings: ClientConfig) -> std::io::Result<NamedGroup> {
    let tcp = TcpStream::connect(world.hbone).await?;
    let name = ServerName::IpAddress(world.server_ip.into());
    let mut tls = TlsConnector::from(Arc::new(settings)).connect(name, tcp).await?;
    tls.read_u8().await?;
    Ok(tls.get_ref().1.negotiated_key_exchange_group().unwrap().name())
}

#[tokio::test]
async fn two_agents_use_the_hybrid_group_at_once_and_others_what_they_know() {
    let world = World::new().await;
    let cert = world.cert(id("client"), HOUR, DAY);
    let ours = (*cert.connecting(&id("server")).0).clone();
    assert_eq!(group_with(&world, ours).await.unwrap(), NamedGroup::X25519MLKEM768);
    let group = classical();
    assert_eq!(group_with(&world, client_with(&cert, group)).await.unwrap(), group.name());
    let p256 = aws_lc_rs::kx_group::SECP256R1;
    assert_eq!(group_with(&world, client_with(&cert, p256)).await.unwrap(), NamedGroup::secp256r1);
}

/// Accepts one connection with these settings and says which group it has, and whether a second round trip was needed for it.
async fn accept_one(listener: &TcpListener, settings: ServerConfig) -> std::io::Result<(NamedGroup, bool)> {
    let (tcp, _) = listener.accept().await?;
    let tls = TlsAcceptor::from(Arc::new(settings)).accept(tcp).await?;
    let connection = tls.get_ref().1;
    let asked_again = connection.handshake_kind() == Some(rustls::HandshakeKind::FullWithHelloRetryRequest);
    Ok((connection.negotiated_key_exchange_group().unwrap().name(), asked_again))
}

async fn with_impostor(compliance: Compliance) -> (World, TcpListener) {
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let setup = Setup { impostor: Some(listener.local_addr().unwrap()), compliance, ..Setup::default() };
    (World::with(setup).await, listener)
}

#[tokio::test]
async fn an_agent_offers_the_hybrid_group_first_and_takes_a_classical_one() {
    let (world, listener) = with_impostor(Compliance::None).await;
    let _app = world.app().await;
    let cert = world.cert(id("server"), HOUR, DAY);
    let hybrid = aws_lc_rs::kx_group::X25519MLKEM768;
    for group in [hybrid, classical()] {
        let _app = world.connect().await;
        let got = accept_one(&listener, server_with(&world, &cert, group)).await.unwrap();
        // Its first message has key shares of the hybrid group and of X25519 alone: none of them is asked for twice.
        assert_eq!(got, (group.name(), FIPS_BUILD && group.name() != hybrid.name()));
    }
}

#[tokio::test]
async fn with_pqc_nothing_but_the_hybrid_group_is_spoken() {
    let (world, listener) = with_impostor(Compliance::PostQuantum).await;
    let _app = world.app().await;
    let cert = world.cert(id("client"), HOUR, DAY);
    let ours = (*cert.connecting(&id("server")).0).clone();
    assert_eq!(group_with(&world, ours).await.unwrap(), NamedGroup::X25519MLKEM768);
    let heard = group_with(&world, client_with(&cert, classical())).await.unwrap_err().to_string();
    assert!(heard.contains("HandshakeFailure"), "{heard}");
    let says = |text: &str| Refused { reason: Reason::TunnelFailed, says: vec![text.to_owned()], alert: "" };
    let no_group =
        says("the peer knows no key exchange that is accepted here (--compliance-policy leaves some out)");
    expect_refusal(&world, Side::Destination, "a classical client", &no_group).await;

    let cert = world.cert(id("server"), HOUR, DAY);
    let _app = world.connect().await;
    assert!(accept_one(&listener, server_with(&world, &cert, classical())).await.is_err());
    let failure = says("accepts none of our cipher suites or key exchanges (alert HandshakeFailure)");
    expect_refusal(&world, Side::Source, "a classical server", &failure).await;
}

/// `openssl`, which speaks TLS 1.2 only.
fn openssl(args: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("openssl");
    command.args(args).arg("-tls1_2").stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn a_client_of_tls_1_2_is_refused_and_both_ends_say_why() {
    let world = World::new().await;
    let address = world.hbone.to_string();
    let output = openssl(&["s_client", "-connect", &address]).output().await.unwrap();
    let heard = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(heard.contains("alert protocol version"), "{heard}");
    let says = "the peer does not speak TLS 1.3, and no older version is accepted".to_owned();
    let refused = Refused { reason: Reason::TunnelFailed, says: vec![says], alert: "" };
    expect_refusal(&world, Side::Destination, "TLS 1.2", &refused).await;
}

#[tokio::test]
async fn a_server_of_tls_1_2_is_refused_and_both_ends_say_why() {
    let world = World::new().await;
    let root = world.ca_dir.path().join("ca.crt");
    let ca_key = world.ca_dir.path().join("ca.key");
    // Any certificate will do: it comes to none.
    let (root, ca_key) = (root.to_str().unwrap(), ca_key.to_str().unwrap());
    let mut server =
        openssl(&["s_server", "-accept", "127.0.0.3:0", "-naccept", "1", "-cert", root, "-key", ca_key])
            // It would end with its input.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    let mut out = tokio::io::BufReader::new(server.stdout.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert!(tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line).await.unwrap() > 0, "no address");
        if let Some(address) = line.trim().strip_prefix("ACCEPT ") {
            break address.parse::<std::net::SocketAddr>().unwrap();
        }
    };
    let destination = culvert::hbone::Destination { address, ..world.destination() };
    let request = http::Request::builder().method("CONNECT").uri("127.0.0.3:80").body(()).unwrap();
    let Err(error) = world.client.pool.open(&destination, &request).await else { panic!("it was let in") };
    assert!(matches!(error, OpenError::Broken { .. }));
    assert!(error.to_string().contains("only TLS 1.3 is spoken here (alert ProtocolVersion)"), "{error}");
    let mut heard = String::new();
    let mut stderr = server.stderr.take().unwrap();
    let said = async {
        while !heard.contains("unsupported protocol") {
            let mut bytes = [0; 4096];
            let count = stderr.read(&mut bytes).await.unwrap();
            assert!(count > 0, "{heard}");
            heard.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), said).await.unwrap();
    // The agent goes on as before.
    world.echo().await;
    assert!(echoes(&mut world.connect().await).await);
}
