//! TLS 1.3 with mutual SPIFFE authentication, as ztunnel speaks it: ALPN h2, no SNI, no session resumption.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Issued, SpiffeId};

/// Why a peer's certificate was refused, although its chain is good.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It has no SPIFFE id.
    #[error("peer certificate carries no SPIFFE id")]
    NoIdentity,
    /// It has another one.
    #[error("peer certificate carries {got}, expected {expected}")]
    Unexpected {
        /// What it carries.
        got: String,
        /// What the destination must be.
        expected: SpiffeId,
    },
    /// It is of another trust domain.
    #[error("peer {got} is not of trust domain {expected}")]
    TrustDomain {
        /// What it carries.
        got: SpiffeId,
        /// Ours.
        expected: String,
    },
}

/// A workload's certificate, ready for handshakes.
pub struct Certified {
    id: SpiffeId,
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// Serial number of the leaf, hexadecimal.
    pub serial: String,
}

impl Certified {
    /// Prepares what the CA gave.
    ///
    /// # Errors
    ///
    /// When the key or a certificate cannot be used.
    pub fn new(id: SpiffeId, issued: Issued) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for root in issued.roots {
            roots.add(root)?;
        }
        let roots = Arc::new(roots);
        let serial = serial(issued.chain.first());
        let signer = provider.key_provider.load_private_key(issued.key)?;
        let key = Arc::new(CertifiedKey::new(issued.chain, signer));
        let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| Error::General(format!("trust bundle: {e}")))?;
        let verifier = ClientVerifier { chain, trust_domain: id.trust_domain().to_owned() };
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key.clone())));
        server.alpn_protocols = vec![b"h2".to_vec()];
        server.send_tls13_tickets = 0;
        let server = Arc::new(server);
        Ok(Self {
            id,
            provider,
            key,
            roots,
            server,
            not_before: issued.not_before,
            not_after: issued.not_after,
            serial,
        })
    }

    /// Settings to accept tunnels as this identity.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// Settings to open a tunnel as this identity to a peer that must be `expected`.
    ///
    /// # Errors
    ///
    /// When the provider cannot do TLS 1.3.
    pub fn client(&self, expected: &SpiffeId) -> Result<Arc<ClientConfig>, Error> {
        let verifier = ServerVerifier {
            roots: self.roots.clone(),
            provider: self.provider.clone(),
            expected: expected.clone(),
        };
        let mut client = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(self.key.clone())));
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.enable_sni = false;
        client.resumption = Resumption::disabled();
        Ok(Arc::new(client))
    }

    /// The identity.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
}

fn serial(leaf: Option<&CertificateDer<'_>>) -> String {
    let parsed = leaf.and_then(|leaf| X509Certificate::from_der(leaf).ok());
    parsed.map_or_else(String::new, |(_, cert)| format!("{:x}", cert.serial))
}

/// Every SPIFFE id among the URI SANs of a certificate.
fn identities(cert: &CertificateDer<'_>) -> Vec<SpiffeId> {
    let Ok((_, cert)) = X509Certificate::from_der(cert) else { return Vec::new() };
    let Ok(Some(names)) = cert.subject_alternative_name() else { return Vec::new() };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    });
    uris.collect()
}

/// The SPIFFE id that a verified peer proved: the first among its URI SANs, as ztunnel takes it.
///
/// # Errors
///
/// [`PeerError::NoIdentity`].
pub fn peer_identity(certs: Option<&[CertificateDer<'_>]>) -> Result<SpiffeId, PeerError> {
    certs
        .and_then(|c| c.first())
        .and_then(|leaf| identities(leaf).into_iter().next())
        .ok_or(PeerError::NoIdentity)
}

fn refuse(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Chain to the roots, and the expected SPIFFE id. DNS names mean nothing in the mesh.
#[derive(Debug)]
struct ServerVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    expected: SpiffeId,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let ids = identities(end_entity);
        if ids.contains(&self.expected) {
            return Ok(ServerCertVerified::assertion());
        }
        let got = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(refuse(if got.is_empty() {
            PeerError::NoIdentity
        } else {
            PeerError::Unexpected { got, expected: self.expected.clone() }
        }))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Chain to the roots, and our trust domain.
#[derive(Debug)]
struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: String,
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
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let got = identities(end_entity).into_iter().next().ok_or_else(|| refuse(PeerError::NoIdentity))?;
        if got.trust_domain() != self.trust_domain {
            return Err(refuse(PeerError::TrustDomain { got, expected: self.trust_domain.clone() }));
        }
        Ok(verified)
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
