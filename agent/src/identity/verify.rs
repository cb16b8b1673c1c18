//! Checking a peer's certificate: the chain as webpki does, then the SPIFFE id instead of a DNS name.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::extensions::GeneralName;

use super::crl::{Revocations, Role};
use super::{Expected, Finding, SpiffeId};

/// Why a peer's certificate was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It cannot be read, or carries no SPIFFE id.
    #[error("the peer's certificate carries no SPIFFE id: {0}")]
    NoIdentity(String),
    /// It names several.
    #[error("the peer's certificate proves no identity, because it has more than one URI name: {0}")]
    Ambiguous(String),
    /// It is another workload's.
    #[error("expected the identity {expected}, got {got}")]
    Unexpected {
        /// Who should answer at this address.
        expected: Expected,
        /// Who the certificate says answered.
        got: SpiffeId,
    },
    /// It is of another trust domain.
    #[error("expected the trust domain {expected}, got {got}")]
    TrustDomain {
        /// Our own.
        expected: String,
        /// The peer.
        got: SpiffeId,
    },
}

/// The one SPIFFE id of a certificate: it has exactly one URI name (SPIFFE's X509-SVID, section 2), whatever other names it has.
///
/// # Errors
///
/// It cannot be read, has no URI name or several, or has one that is no workload's id.
pub fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    let unreadable = |error: &dyn fmt::Display| PeerError::NoIdentity(format!("it cannot be read: {error}"));
    let (_, cert) = x509_parser::parse_x509_certificate(leaf).map_err(|e| unreadable(&e))?;
    let Some(names) = cert.subject_alternative_name().map_err(|e| unreadable(&e))? else {
        return Err(PeerError::NoIdentity("it has no subjectAltName".to_owned()));
    };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match uris.collect::<Vec<_>>()[..] {
        [] => Err(PeerError::NoIdentity("none of its names is a URI".to_owned())),
        [uri] => uri.parse().map_err(|error| PeerError::NoIdentity(format!("{error}"))),
        ref several => Err(PeerError::Ambiguous(several.join(", "))),
    }
}

impl PeerError {
    /// The error as rustls carries it through a handshake; [`PeerError::find`] gets it back.
    fn into_tls(self) -> Error {
        CertificateError::Other(OtherError(Arc::new(self))).into()
    }

    /// The refusal of the peer's identity that made a handshake fail, when that is what happened.
    pub fn find(error: &std::io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref()? {
            Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref().cloned(),
            _ => None,
        }
    }
}

fn check_revocation(
    revocations: &Revocations,
    roots: &RootCertStore,
    (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
    role: Role,
    now: UnixTime,
) -> Result<(), Error> {
    let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
    if revocations.revoke(&chain, roots, role, now) {
        return Err(CertificateError::Revoked.into());
    }
    Ok(())
}

/// Verifies a server: chain to the roots, and its SPIFFE id is an expected one. DNS names do not matter.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) revocations: Revocations,
    pub(super) finding: Finding,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) expected: Expected,
}

impl ServerVerifier {
    fn verify_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, intermediates, now, algorithms)?;
        check_revocation(&self.revocations, &self.roots, (end_entity, intermediates), Role::Server, now)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify_chain(end_entity, intermediates, now)
            .inspect_err(|error| self.finding.note(error, end_entity, &self.roots, now))?;
        let got = spiffe_id(end_entity).map_err(PeerError::into_tls)?;
        if self.expected.admits(&got) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(PeerError::Unexpected { expected: self.expected.clone(), got }.into_tls())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies a client: chain to the roots, then the trust domain of its SPIFFE id is one of ours.
#[derive(Clone, Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    revocations: Revocations,
    finding: Finding,
    trust_domains: Arc<[String]>,
}

impl ClientVerifier {
    pub(super) fn new<'a>(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        trust_domains: impl Iterator<Item = &'a str>,
    ) -> Result<Self, Error> {
        let chain = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self {
            chain,
            roots,
            revocations: Revocations::default(),
            finding: Finding::default(),
            trust_domains: trust_domains.map(str::to_owned).collect(),
        })
    }

    /// For one handshake: tells `finding` what is wrong, and accepts nothing that is revoked now.
    pub(super) fn for_handshake(&self, revocations: &Revocations, finding: &Finding) -> Self {
        Self { revocations: revocations.clone(), finding: finding.clone(), ..self.clone() }
    }

    fn verify_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        check_revocation(&self.revocations, &self.roots, (end_entity, intermediates), Role::Client, now)?;
        Ok(verified)
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .verify_chain(end_entity, intermediates, now)
            .inspect_err(|error| self.finding.note(error, end_entity, &self.roots, now))?;
        let got = spiffe_id(end_entity).map_err(PeerError::into_tls)?;
        if self.trust_domains.iter().any(|ours| ours == got.trust_domain()) {
            Ok(verified)
        } else {
            Err(PeerError::TrustDomain { expected: self.trust_domains.join(" or "), got }.into_tls())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
