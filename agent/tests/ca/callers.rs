//! What `culvert ca` is asked for that the caller may not have.

use culvert::identity::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};

use crate::{files, grpc, key, serve_at};

const UNAUTHENTICATED: u32 = 16;
const INVALID: u32 = 3;
const DENIED: u32 = 7;

fn id(trust_domain: &str, account: &str) -> SpiffeId {
    SpiffeId::new(trust_domain, "shop", account)
}

fn uri(id: &SpiffeId) -> SanType {
    SanType::URI(id.to_string().as_str().try_into().unwrap())
}

fn csr(names: Vec<SanType>, key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// Another key's name under a signature that is not its own.
fn forged(names: Vec<SanType>) -> String {
    let der = pem::parse(csr(names, &key())).unwrap().into_contents();
    let mut broken = der;
    let last = broken.len() - 1;
    broken[last] ^= 1;
    pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", broken))
}

#[tokio::test]
async fn a_caller_gets_no_certificate_that_it_may_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let address = serve_at(dir.path(), files(dir.path())).await;
    let (own, other, foreign) =
        (id("cluster.local", "app"), id("cluster.local", "other"), id("elsewhere.example", "app"));
    let dns = SanType::DnsName("app.shop".try_into().unwrap());
    let good = || csr(vec![uri(&own)], &key());
    let token = Some("Bearer right");
    let cases = [
        ("without a token", None, Some(&own), good(), UNAUTHENTICATED, "a bearer token"),
        ("with another token", Some("Bearer wrong"), Some(&own), good(), UNAUTHENTICATED, "a bearer token"),
        (
            "with a token of another kind",
            Some("Basic right"),
            Some(&own),
            good(),
            UNAUTHENTICATED,
            "a bearer token",
        ),
        ("without a word for whom", token, None, good(), INVALID, "ImpersonatedIdentity is missing"),
        ("a CSR of another than it asks for", token, Some(&other), good(), INVALID, "the CSR must name"),
        ("a CSR of nobody", token, Some(&own), csr(Vec::new(), &key()), INVALID, "the CSR must name"),
        (
            "a CSR of two",
            token,
            Some(&own),
            csr(vec![uri(&own), uri(&other)], &key()),
            INVALID,
            "the CSR must name",
        ),
        (
            "a CSR with a DNS name besides",
            token,
            Some(&own),
            csr(vec![uri(&own), dns], &key()),
            INVALID,
            "the CSR must name",
        ),
        (
            "another trust domain",
            token,
            Some(&foreign),
            csr(vec![uri(&foreign)], &key()),
            DENIED,
            "is not of the trust domain",
        ),
        ("a key that it does not have", token, Some(&own), forged(vec![uri(&own)]), INVALID, "the CSR"),
        ("no CSR", token, Some(&own), "nothing".to_owned(), INVALID, "the CSR"),
    ];
    for (what, token, who, csr, code, says) in cases {
        let (got, text) = grpc::ask(&address, dir.path(), token, &grpc::request(who, csr)).await;
        assert!(got == code && text.contains(says), "{what}: {got} {text}");
    }
    let (code, text) = grpc::ask(&address, dir.path(), token, &grpc::request(Some(&own), good())).await;
    assert_eq!((code, text.as_str()), (0, ""));
}
