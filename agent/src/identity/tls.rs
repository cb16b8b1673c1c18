//! TLS settings of a workload: TLS 1.3 only, both sides prove a SPIFFE id, ALPN `h2`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::client::Resumption;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};

use super::crl::{Proof, Revocations, Role};
use super::crypto;
use super::explain::{Finding, serial};
use super::verify::{ClientVerifier, ServerVerifier};
use super::{Expected, PeerRules, SignedChain, SpiffeId};

const ALPN_H2: &[u8] = b"h2";

/// One identity's key and certificate, ready to open and to accept connections. Never written to disk.
pub struct WorkloadCert {
    identity: SpiffeId,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
    public: PublicChain,
    roots: Arc<RootCertStore>,
    clients: ClientVerifier,
    algorithms: WebPkiSupportedAlgorithms,
    revocations: Revocations,
    /// Both lack only the verifier of one handshake.
    server: ConfigBuilder<ServerConfig, WantsVerifier>,
    resolver: Arc<SingleCertAndKey>,
    client: ClientConfig,
}

/// The certificates that peers are shown, and those that vouch for them. No key.
#[derive(Clone, Debug)]
pub struct PublicChain {
    /// The leaf first; the root is left out.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// The roots that peers are checked against.
    pub roots: Arc<[CertificateDer<'static>]>,
}

impl fmt::Debug for WorkloadCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCert")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl WorkloadCert {
    /// Makes the TLS settings for `identity` from its key and what a CA signed.
    pub fn new(
        identity: SpiffeId,
        key: &KeyPair,
        signed: SignedChain,
        rules: &PeerRules,
    ) -> Result<Self, rustls::Error> {
        let provider = crypto::provider(rules.compliance);
        let algorithms = provider.signature_verification_algorithms;
        let public = PublicChain { chain: signed.chain.clone().into(), roots: signed.roots.clone().into() };
        let mut roots = RootCertStore::empty();
        for root in signed.roots {
            roots.add(root)?;
        }
        let roots = Arc::new(roots);
        let (serial, not_before, not_after) = describe(&signed.chain)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|error| rustls::Error::General(error.to_owned()))?;
        let key = provider.key_provider.load_private_key(key)?;
        let resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(signed.chain, key)));

        let domains =
            std::iter::once(identity.trust_domain()).chain(rules.aliases.iter().map(String::as_str));
        let clients = ClientVerifier::new(roots.clone(), provider.clone(), domains)?;
        let server =
            ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13])?;

        let revocations = rules.revocations.clone();
        let servers =
            server_verifier(&roots, &revocations, &Finding::default(), algorithms, (&identity).into());
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(servers)
            .with_client_cert_resolver(resolver.clone());
        client.alpn_protocols = vec![ALPN_H2.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(Self {
            identity,
            serial,
            not_before,
            not_after,
            public,
            roots,
            clients,
            algorithms,
            revocations,
            server,
            resolver,
            client,
        })
    }

    /// Whose it is.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// What anybody may see of it.
    pub fn public(&self) -> &PublicChain {
        &self.public
    }

    /// Serial number, hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Valid from.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Valid until.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Settings for accepting one connection: a client certificate of our trust domains is required. The finding says why one
    /// was refused.
    pub fn accepting(&self) -> (Arc<ServerConfig>, Finding) {
        let finding = Finding::default();
        let clients = self.clients.for_handshake(&self.revocations, &finding);
        let mut config = self
            .server
            .clone()
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(self.resolver.clone());
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        // Resumption would skip the check of the client's certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        (Arc::new(config), finding)
    }

    /// Settings for one connection to a server that must prove to be `expected`, and why it did not.
    pub fn connecting(&self, expected: impl Into<Expected>) -> (Arc<ClientConfig>, Finding) {
        let finding = Finding::default();
        let mut config = self.client.clone();
        let servers =
            server_verifier(&self.roots, &self.revocations, &finding, self.algorithms, expected.into());
        config.dangerous().set_certificate_verifier(servers);
        (Arc::new(config), finding)
    }

    /// What the peer in this `role` has shown, to be held against later revocations.
    pub(crate) fn proof(&self, shown: Option<&[CertificateDer<'static>]>, role: Role) -> Proof {
        Proof {
            chain: shown.unwrap_or_default().to_vec(),
            roots: self.roots.clone(),
            revocations: self.revocations.clone(),
            role,
            verified: UnixTime::now(),
        }
    }
}

fn server_verifier(
    roots: &Arc<RootCertStore>,
    revocations: &Revocations,
    finding: &Finding,
    algorithms: WebPkiSupportedAlgorithms,
    expected: Expected,
) -> Arc<ServerVerifier> {
    Arc::new(ServerVerifier {
        roots: roots.clone(),
        revocations: revocations.clone(),
        finding: finding.clone(),
        algorithms,
        expected,
    })
}

fn describe(chain: &[CertificateDer<'_>]) -> Result<(String, SystemTime, SystemTime), rustls::Error> {
    let bad = |what: String| rustls::Error::General(format!("the CA's answer cannot be used: {what}"));
    let leaf = chain.first().ok_or_else(|| bad("no certificate".to_owned()))?;
    let (_, cert) = x509_parser::parse_x509_certificate(leaf).map_err(|error| bad(error.to_string()))?;
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
    let validity = cert.validity();
    Ok((serial(&cert), time(validity.not_before.timestamp()), time(validity.not_after.timestamp())))
}
