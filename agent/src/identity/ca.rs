//! Where certificates come from.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::SpiffeId;

/// Lifetime of the embedded root.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Clocks of nodes differ: certificates begin to be valid this long before they are made.
const BACKDATE: Duration = Duration::from_secs(300);

/// A certificate authority.
pub enum Ca {
    /// In this process, with a root that the agents of the mesh share.
    Embedded(EmbeddedCa),
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the CA directory.
    #[error("CA file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The root in the CA directory cannot be used.
    #[error("CA root in {path}: {source}: restore ca.crt and ca.key, or remove both to have a new root made")]
    Root {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        source: rcgen::Error,
    },
    /// Signing failed.
    #[error("cannot make a certificate: {0}")]
    Sign(#[from] rcgen::Error),
}

/// A workload certificate with its key, as the CA gives it.
pub struct Issued {
    /// Leaf first; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key, PKCS #8.
    pub key: PrivateKeyDer<'static>,
    /// The trust bundle.
    pub roots: Vec<CertificateDer<'static>>,
    /// When the leaf begins to be valid.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

impl Ca {
    /// A certificate for `id`, valid for `ttl` from now.
    ///
    /// # Errors
    ///
    /// [`CaError`] says what could not be done.
    pub async fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<Issued, CaError> {
        match self {
            Self::Embedded(ca) => ca.issue(id, ttl),
        }
    }
}

/// A root key in a directory that the agents of a mesh share (a Secret, in Kubernetes).
pub struct EmbeddedCa {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl EmbeddedCa {
    /// Opens the root in `dir` (`ca.crt`, `ca.key`), or makes one. Agents that start together agree on one.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or written, or is not a CA.
    pub fn open(dir: &Path, trust_domain: &str) -> Result<Self, CaError> {
        let file = |name: &str| dir.join(name);
        let fault = |path: PathBuf| move |source| CaError::File { path, source };
        fs::create_dir_all(dir).map_err(fault(dir.to_owned()))?;
        let lock = File::create(file(".lock")).map_err(fault(file(".lock")))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| CaError::File { path: file(".lock"), source: errno.into() })?;
        if !file("ca.crt").exists() && !file("ca.key").exists() {
            let (cert, key) = new_root(trust_domain)?;
            write_new(&file("ca.key"), &key).map_err(fault(file("ca.key")))?;
            write_new(&file("ca.crt"), &cert).map_err(fault(file("ca.crt")))?;
            tracing::info!(dir = %dir.display(), trust_domain, "made a new mesh root");
        }
        let cert = fs::read_to_string(file("ca.crt")).map_err(fault(file("ca.crt")))?;
        let key = fs::read_to_string(file("ca.key")).map_err(fault(file("ca.key")))?;
        Self::from_pem(&cert, &key).map_err(|source| CaError::Root { path: dir.to_owned(), source })
    }

    fn from_pem(cert: &str, key: &str) -> Result<Self, rcgen::Error> {
        use rustls::pki_types::pem::PemObject;
        let root = CertificateDer::from_pem_slice(cert.as_bytes())
            .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        let issuer = Issuer::from_ca_cert_pem(cert, KeyPair::from_pem(key)?)?;
        Ok(Self { root, issuer })
    }

    fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<Issued, CaError> {
        let now = SystemTime::now();
        self.issue_between(id, now - BACKDATE, now + ttl)
    }

    /// A certificate with given dates.
    ///
    /// # Errors
    ///
    /// When signing fails.
    pub fn issue_between(
        &self,
        id: &SpiffeId,
        from: SystemTime,
        until: SystemTime,
    ) -> Result<Issued, CaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::from(from);
        params.not_after = OffsetDateTime::from(until);
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            chain: vec![leaf.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            roots: vec![self.root.clone()],
            not_before: from,
            not_after: until,
        })
    }
}

fn new_root(trust_domain: &str) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "Culvert mesh root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + ROOT_LIFETIME);
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_that_start_together_share_one_root() {
        let dir = tempfile::tempdir().unwrap();
        let open = || EmbeddedCa::open(dir.path(), "cluster.local").unwrap().root;
        let roots: Vec<_> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4).map(|_| s.spawn(open)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(roots.iter().all(|root| *root == roots[0]));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_broken_root_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.crt"), "nonsense").unwrap();
        let error = EmbeddedCa::open(dir.path(), "cluster.local").err().unwrap().to_string();
        assert!(error.contains("ca.key"), "{error}");
        fs::write(dir.path().join("ca.key"), "nonsense").unwrap();
        let error = EmbeddedCa::open(dir.path(), "cluster.local").err().unwrap().to_string();
        assert!(error.contains("restore ca.crt and ca.key"), "{error}");
    }
}
