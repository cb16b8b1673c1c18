//! Every kind of certificate, and how its refusal reads in each direction.

use std::path::Path;
use std::time::{Duration, SystemTime};

use culvert::identity::{EmbeddedCa, PeerRules, SignedChain, SpiffeId, WorkloadCert};
use culvert_common::Reason;
use rcgen::{CertificateParams, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::revoke;
use crate::world::{DAY, World, id};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
const MOMENT: Duration = Duration::from_secs(20);

/// A certificate that a peer may show, and what either end makes of it.
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) cert: WorkloadCert,
    /// Of a client that shows it; `None`: it is let in, and policy judges it.
    pub(crate) as_client: Option<Refused>,
    pub(crate) as_server: Refused,
}

/// The reason in the flow event, parts of its text (which the log has too), and the alert that the peer gets.
#[derive(Clone)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) says: Vec<String>,
    pub(crate) alert: &'static str,
}

fn refused(reason: Reason, alert: &'static str, says: &[&str]) -> Refused {
    Refused { reason, says: says.iter().map(|s| (*s).to_owned()).collect(), alert }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// Of this mesh's CA, for the time given.
fn valid(dir: &Path, identity: &SpiffeId, from: SystemTime, to: SystemTime) -> WorkloadCert {
    let key = key();
    let signed = EmbeddedCa::open(dir, DAY).unwrap().sign_for_period(identity, &key, from, to).unwrap();
    WorkloadCert::new(identity.clone(), &key, signed, &PeerRules::default()).unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// With these names, for a workload that trusts the root in `dir`; signed by that root, or by `issuer`, or by itself.
fn named(dir: &Path, names: Vec<SanType>, issuer: Signer) -> WorkloadCert {
    let (key, strangers_key) = (key(), key());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "it says so itself");
    params.subject_alt_names = names;
    let leaf = match issuer {
        Signer::Mesh => params.signed_by(&key, &issuer_in(dir)).unwrap(),
        Signer::Itself => params.self_signed(&key).unwrap(),
        Signer::Stranger => {
            let mut root = CertificateParams::default();
            root.distinguished_name.push(rcgen::DnType::CommonName, "somebody else");
            root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.signed_by(&key, &Issuer::new(root, strangers_key)).unwrap()
        }
    };
    let root = std::fs::read_to_string(dir.join("ca.crt")).unwrap();
    let signed = SignedChain {
        chain: vec![leaf.into()],
        roots: vec![CertificateDer::from_pem_slice(root.as_bytes()).unwrap()],
    };
    WorkloadCert::new(id("whoever"), &key, signed, &PeerRules::default()).unwrap()
}

enum Signer {
    Mesh,
    Itself,
    Stranger,
}

/// The CA in `dir`, with its key.
pub(crate) fn issuer_in(dir: &Path) -> Issuer<'static, KeyPair> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let root = CertificateDer::from_pem_slice(read("ca.crt").as_bytes()).unwrap();
    Issuer::from_ca_cert_der(&root, KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap()
}

/// What is refused, and how that reads: every kind of certificate, shown by the `account` that is expected unless it is about that.
pub(crate) fn table(world: &World, crl: &Path, foreign: &Path, account: &str) -> Vec<Row> {
    let (dir, now, who) = (world.ca_dir.path(), SystemTime::now(), id(account));
    let ended = |ago: Duration| valid(dir, &who, now - DAY, now - ago);
    let begins = |after: Duration| valid(dir, &who, now + after, now + DAY);
    let signed_by = |issuer| named(dir, vec![uri(&who.to_string())], issuer);
    let (name, other) = (who.to_string(), id("other"));
    let stranger = SpiffeId::new("elsewhere.example", "test", account);
    let server = id("server");
    let failed = |alert, says: &[&str]| refused(Reason::TunnelFailed, alert, says);
    let wrong = |says: &[&str]| refused(Reason::WrongPeer, "CertificateUnknown", says);
    let both = |what, cert, refused: Refused| Row {
        what,
        cert,
        as_client: Some(refused.clone()),
        as_server: refused,
    };
    let revoked = valid(dir, &who, now - HOUR, now + DAY);
    let serial = revoked.serial().to_owned();
    revoke(dir, crl, &serial, false);
    vec![
        Row {
            what: "another workload's",
            cert: valid(dir, &other, now - HOUR, now + DAY),
            as_client: None,
            as_server: wrong(&[&format!("expected the identity {server}, got {other}")]),
        },
        Row {
            what: "of another trust domain",
            cert: valid(dir, &stranger, now - HOUR, now + DAY),
            as_client: Some(wrong(&[&format!("expected the trust domain cluster.local, got {stranger}")])),
            as_server: wrong(&[&format!("expected the identity {server}, got {stranger}")]),
        },
        both(
            "expired",
            ended(3 * HOUR),
            failed(
                "CertificateExpired",
                &["expired at 20", ", 3 h ago", &name, "Culvert mesh root", "a clock is wrong"],
            ),
        ),
        both(
            "expired just now",
            ended(MOMENT),
            failed("CertificateExpired", &["expired at", "clock skew, compare the clocks"]),
        ),
        both(
            "not valid yet",
            begins(3 * HOUR),
            failed("CertificateExpired", &["is not valid yet, only from 20", ", in ", &name]),
        ),
        both(
            "valid in a moment",
            begins(MOMENT),
            failed("CertificateExpired", &["not valid yet", "clock skew"]),
        ),
        both(
            "self-signed",
            signed_by(Signer::Itself),
            failed("UnknownCA", &["unknown issuer: it is self-signed", "it says so itself", &name]),
        ),
        both(
            "signed by another root",
            signed_by(Signer::Stranger),
            failed(
                "UnknownCA",
                &["unknown issuer: none of this mesh's roots vouches for it", "somebody else"],
            ),
        ),
        both(
            "signed by another root of the same name",
            world.foreign_cert(foreign, who.clone()),
            failed("DecryptError", &["unknown issuer", "a root of the same name with another key"]),
        ),
        both(
            "without any name",
            named(dir, Vec::new(), Signer::Mesh),
            wrong(&["carries no SPIFFE id: it has no subjectAltName"]),
        ),
        both(
            "without a URI",
            named(dir, vec![SanType::DnsName("server.test".try_into().unwrap())], Signer::Mesh),
            wrong(&["carries no SPIFFE id: none of its names is a URI"]),
        ),
        both(
            "with a URI that is no workload's",
            named(dir, vec![uri("spiffe://cluster.local/vm/1")], Signer::Mesh),
            wrong(&["carries no SPIFFE id: \"spiffe://cluster.local/vm/1\" is not spiffe://"]),
        ),
        both(
            "with two URIs",
            named(dir, vec![uri(&name), uri(&other.to_string())], Signer::Mesh),
            wrong(&["proves no identity, because it has more than one URI name", &name, "/sa/other"]),
        ),
        both(
            "revoked",
            revoked,
            failed("CertificateRevoked", &[&format!("is revoked (serial {serial})"), &name]),
        ),
    ]
}
