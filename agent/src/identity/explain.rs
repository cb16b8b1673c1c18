//! What a failed handshake means, for people.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, Error, PeerIncompatible, RootCertStore};
use x509_parser::prelude::{ParsedExtension, X509Certificate};
use x509_parser::x509::X509Name;

use super::spiffe_id;

/// A certificate that ended (or will begin) this close to now may be good, and a clock wrong.
const SKEW: u64 = 300;

/// What a verifier saw of the certificate that it refused. The TLS error does not name it, and must stay what it is: the peer
/// gets the alert that belongs to it (RFC 8446, 6.2).
#[derive(Clone, Debug, Default)]
pub struct Finding(Arc<OnceLock<String>>);

impl Finding {
    /// Keeps what `error` means for `leaf`, which was held against `roots`.
    pub(super) fn note(
        &self,
        error: &Error,
        leaf: &CertificateDer<'_>,
        roots: &RootCertStore,
        now: UnixTime,
    ) {
        if let Some(text) = describe(error, leaf, roots, now) {
            // One certificate is verified per handshake.
            let _ = self.0.set(text);
        }
    }
}

fn describe(
    error: &Error,
    leaf: &CertificateDer<'_>,
    roots: &RootCertStore,
    now: UnixTime,
) -> Option<String> {
    let Error::InvalidCertificate(error) = error else { return None };
    let (_, cert) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let whose = spiffe_id(leaf).map_or_else(|_| String::new(), |id| format!(" of {id}"));
    let peer = format!("the peer's certificate{whose}, signed by {},", name(cert.issuer()));
    Some(match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            let end = cert.validity().not_after.timestamp();
            let (time, past) = (Time(end), now.as_secs().saturating_sub(end.max(0).unsigned_abs()));
            let hint = hint(past, "its node does not renew it, or a clock is wrong");
            format!("{peer} expired at {time}, {} ago: {hint}", span(past))
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            let begin = cert.validity().not_before.timestamp();
            let (time, left) = (Time(begin), begin.max(0).unsigned_abs().saturating_sub(now.as_secs()));
            let hint = hint(left, "a clock is wrong");
            format!("{peer} is not valid yet, only from {time}, in {}: {hint}", span(left))
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("{peer} has an unknown issuer: {}", stranger(&cert, roots))
        }
        CertificateError::Revoked => format!("{peer} is revoked (serial {})", serial(&cert)),
        _ => return None,
    })
}

/// What is close to now may be a matter of clocks.
fn hint(distance: u64, otherwise: &str) -> String {
    if distance <= SKEW {
        "so little may be clock skew, compare the clocks of both nodes".to_owned()
    } else {
        otherwise.to_owned()
    }
}

/// Who signed it, if not one of `roots`.
fn stranger(cert: &X509Certificate<'_>, roots: &RootCertStore) -> String {
    if cert.issuer().as_raw() == cert.subject().as_raw() && own_key(cert) {
        return "it is self-signed".to_owned();
    }
    // A trust anchor's subject lacks the header of the sequence.
    let namesake = roots.roots.iter().any(|root| cert.issuer().as_raw().ends_with(&root.subject));
    if namesake && !roots.is_empty() {
        return "this mesh has a root of the same name with another key: two CAs were made apart".to_owned();
    }
    "none of this mesh's roots vouches for it".to_owned()
}

/// Whether its authority key is its own, as far as it says.
fn own_key(cert: &X509Certificate<'_>) -> bool {
    let key = |authority: bool| {
        cert.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) if authority => {
                id.key_identifier.as_ref().map(|key| key.0.to_vec())
            }
            ParsedExtension::SubjectKeyIdentifier(key) if !authority => Some(key.0.to_vec()),
            _ => None,
        })
    };
    key(true).is_none_or(|authority| key(false).is_some_and(|subject| subject == authority))
}

fn name(name: &X509Name<'_>) -> String {
    let text = name.to_string();
    if text.is_empty() { "nobody".to_owned() } else { format!("\"{text}\"") }
}

pub(super) fn serial(cert: &X509Certificate<'_>) -> String {
    cert.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 3339 of seconds since 1970.
struct Time(i64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{} s after 1970", self.0),
        }
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// What a failed handshake means, for people. `finding` is of the verifier that took part in it.
pub(crate) fn explain(error: &io::Error, finding: &Finding) -> String {
    if let Some(text) = finding.0.get() {
        return text.clone();
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::Other(other))) => other.0.to_string(),
        Some(Error::NoCertificatesPresented) => "the peer presented no certificate".to_owned(),
        Some(Error::PeerIncompatible(what)) => incompatible(what),
        Some(Error::AlertReceived(alert)) => refused_by_peer(&format!("{alert:?}")),
        _ => error.to_string(),
    }
}

/// What the peer lacks, or we do.
fn incompatible(what: &PeerIncompatible) -> String {
    match what {
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled => {
            "the peer does not speak TLS 1.3, and no older version is accepted".to_owned()
        }
        PeerIncompatible::KeyShareExtensionRequired
        | PeerIncompatible::NamedGroupsExtensionRequired
        | PeerIncompatible::NoKxGroupsInCommon => {
            "the peer knows no key exchange that is accepted here (--compliance-policy leaves some out)"
                .to_owned()
        }
        PeerIncompatible::NoCipherSuitesInCommon => {
            "the peer knows none of the cipher suites TLS_AES_256_GCM_SHA384 and TLS_AES_128_GCM_SHA256"
                .to_owned()
        }
        other => format!("the peer and we have no TLS in common: {other:?}"),
    }
}

/// TLS 1.3 tells a client that its certificate was refused only after the handshake: as an alert in the first answer, of which
/// the text is left.
pub(crate) fn explain_later(text: String) -> String {
    match text.split_once("fatal alert: ") {
        Some((_, alert)) => refused_by_peer(alert.trim()),
        None => text,
    }
}

/// What a peer means that ends the handshake with this alert, by the name that rustls has for it.
fn refused_by_peer(alert: &str) -> String {
    let reason = match alert {
        "CertificateExpired" => {
            "to the peer it has expired or is not valid yet; compare the clocks of both nodes"
        }
        "UnknownCA" | "DecryptError" => {
            "the peer does not trust who signed it; both nodes need the same roots"
        }
        "CertificateUnknown" | "AccessDenied" => {
            "the peer expects another identity or trust domain; its log names both"
        }
        "CertificateRevoked" => "the peer has it on its revocation list",
        "CertificateRequired" => "the peer got none",
        "ProtocolVersion" => {
            return "the peer speaks no TLS version in common with us: only TLS 1.3 is spoken here (alert ProtocolVersion)"
                .to_owned();
        }
        "HandshakeFailure" => {
            return "the peer accepts none of our cipher suites or key exchanges (alert HandshakeFailure): its log may say \
                    which; see --compliance-policy at both ends"
                .to_owned();
        }
        _ => return format!("the peer ended the handshake (alert {alert}): its log may say why"),
    };
    format!("the peer did not accept our certificate: {reason} (alert {alert})")
}
