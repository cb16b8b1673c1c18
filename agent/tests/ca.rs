//! `culvert ca` and its client, over real TLS on loopback: who gets what, and who does not.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by panicking")]

#[path = "ca/answers.rs"]
mod answers;
#[path = "ca/callers.rs"]
mod callers;
#[path = "ca/grpc.rs"]
mod grpc;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert::identity::{
    Ca, CaFiles, CaService, Compliance, EmbeddedCa, PeerRules, RemoteCa, RemoteConfig, ServiceConfig,
    SignedChain, SpiffeId, WorkloadCert,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use tokio::net::TcpListener;

const HOUR: Duration = Duration::from_secs(3600);

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn files(dir: &Path) -> CaFiles {
    CaFiles { cert: dir.join("ca.crt"), key: dir.join("ca.key"), root: None, chain: None }
}

/// A root in `dir`.
fn ca_of(dir: &Path) {
    EmbeddedCa::open(dir, HOUR).unwrap();
}

/// The CA in `dir`, with its key.
fn issuer_in(dir: &Path) -> Issuer<'static, KeyPair> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    Issuer::from_ca_cert_pem(&read("ca.crt"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap()
}

/// Where a CA serves that knows the tokens `old` and `right`.
async fn serve_at(dir: &Path, files: CaFiles) -> String {
    fs::write(dir.join("tokens"), "old\nright\n").unwrap();
    let config = ServiceConfig {
        token: dir.join("tokens"),
        trust_domains: vec!["cluster.local".to_owned()],
        longest: HOUR,
        names: vec!["127.0.0.1".to_owned()],
        compliance: Compliance::None,
    };
    let ca = EmbeddedCa::open_files(files, HOUR).unwrap();
    let service = Arc::new(CaService::new(ca, config).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(service.serve(listener));
    address
}

/// A CA that serves, and a client that shows `token`.
async fn serve(dir: &Path, files: CaFiles, root: &Path, token: &str) -> Ca {
    let address = serve_at(dir, files).await;
    fs::write(dir.join("token"), token).unwrap();
    let config = RemoteConfig {
        address,
        root: root.to_owned(),
        token: dir.join("token"),
        cluster: "Kubernetes".to_owned(),
        ttl: 10 * HOUR,
        compliance: Compliance::None,
    };
    Ca::Remote(RemoteCa::new(config).unwrap())
}

async fn ask(ca: &Ca, trust_domain: &str, namespace: &str, account: &str) -> Result<SignedChain, String> {
    let told = |error: &dyn Error| error.to_string();
    let identity = SpiffeId::new(trust_domain, namespace, account);
    ca.sign(&identity, &key()).await.map_err(|error| told(&error))
}

#[tokio::test]
async fn only_workloads_of_its_trust_domains_are_signed_for() {
    let dir = tempfile::tempdir().unwrap();
    let ca = serve(dir.path(), files(dir.path()), &dir.path().join("ca.crt"), "right\n").await;
    ask(&ca, "cluster.local", "shop", "app").await.unwrap();
    for (trust_domain, namespace, account, says) in [
        ("elsewhere.example", "shop", "app", "is not of the trust domain cluster.local"),
        ("cluster.local", "*", "app", "must be Kubernetes names"),
        ("cluster.local", "shop", "*", "must be Kubernetes names"),
        ("cluster.local", "", "app", "must be Kubernetes names"),
        ("cluster.local", "shop", "", "must be Kubernetes names"),
        ("cluster.local", "shop", "app/sa/root", "is not spiffe://"),
        ("cluster.local", "shop", "App", "must be Kubernetes names"),
    ] {
        let error = ask(&ca, trust_domain, namespace, account).await.unwrap_err();
        assert!(error.contains(says), "{namespace}/{account}: {error}");
    }
}

#[tokio::test]
async fn only_who_shows_a_token_is_answered_and_both_files_are_read_anew() {
    let dir = tempfile::tempdir().unwrap();
    let ca = serve(dir.path(), files(dir.path()), &dir.path().join("ca.crt"), "righ").await;
    let sign = async || ask(&ca, "cluster.local", "shop", "app").await;
    let error = sign().await.unwrap_err();
    assert!(error.contains("gRPC status 16") && error.contains("--ca-token"), "{error}");
    for (token, good) in [("right", true), ("righty", false), ("old", true), ("", false)] {
        fs::write(dir.path().join("token"), token).unwrap();
        assert_eq!(sign().await.is_ok(), good, "{token:?}");
    }
    fs::write(dir.path().join("tokens"), "right\n").unwrap();
    fs::write(dir.path().join("token"), "old").unwrap();
    assert!(sign().await.is_err(), "a token that was taken away");
    // Another root is not believed.
    let other = tempfile::tempdir().unwrap();
    EmbeddedCa::open(other.path(), HOUR).unwrap();
    fs::write(dir.path().join("token"), "right").unwrap();
    fs::copy(other.path().join("ca.crt"), dir.path().join("ca.crt")).unwrap();
    let error = sign().await.unwrap_err();
    assert!(error.contains("(--ca-root) its root"), "{error}");
}

#[tokio::test]
async fn an_intermediate_signs_and_its_chain_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let ca_params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let (root_key, own_key) = (key(), key());
    let root = ca_params("root").self_signed(&root_key).unwrap();
    let own = ca_params("intermediate")
        .signed_by(&own_key, &Issuer::from_params(&ca_params("root"), &root_key))
        .unwrap();
    fs::write(path("root-cert.pem"), root.pem()).unwrap();
    fs::write(path("ca-cert.pem"), own.pem()).unwrap();
    fs::write(path("ca-key.pem"), own_key.serialize_pem()).unwrap();
    fs::write(path("cert-chain.pem"), own.pem() + &root.pem()).unwrap();
    let files = CaFiles {
        cert: path("ca-cert.pem"),
        key: path("ca-key.pem"),
        root: Some(path("root-cert.pem")),
        chain: Some(path("cert-chain.pem")),
    };
    let ca = serve(dir.path(), files, &path("root-cert.pem"), "right").await;
    let (identity, key) = (SpiffeId::new("cluster.local", "shop", "app"), key());
    let signed = ca.sign(&identity, &key).await.unwrap();
    assert_eq!((signed.chain.len(), &signed.roots[..]), (2, &[root.der().clone()][..]));
    let cert = WorkloadCert::new(identity, &key, signed, &PeerRules::default()).unwrap();
    // The CA's limit, not the ten hours that were asked for.
    assert!(cert.not_after() <= SystemTime::now() + HOUR);
}
