//! The certificate authorities: whoever signs this mesh's workload certificates.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::SpiffeId;

/// How long a workload certificate is valid unless told otherwise: Istio's 24 hours.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// A certificate counts from this much before it was signed, for peers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(300);
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Who signs workload certificates.
#[derive(Debug)]
pub enum Ca {
    /// In this process, with a root that the agents of the mesh share through a directory.
    Embedded(EmbeddedCa),
}

/// A signed certificate and what it is checked against.
#[derive(Debug)]
pub struct SignedChain {
    /// The leaf first; the root is left out.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots that this CA's peers are checked against.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why a CA could not be opened or did not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the CA directory could not be read or written.
    #[error("cannot {action} {}: check that --ca-dir names a directory which this agent may read and write", .path.display())]
    File {
        /// `read`, `create`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of the CA directory holds something else than it should.
    #[error("{}: {problem}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Signing failed.
    #[error("cannot sign a certificate for {identity}")]
    Sign {
        /// For whom.
        identity: SpiffeId,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
}

impl Ca {
    /// Signs a certificate for `identity` with the public half of `key`.
    pub async fn sign(&self, identity: &SpiffeId, key: &KeyPair) -> Result<SignedChain, CaError> {
        match self {
            Self::Embedded(ca) => ca.sign(identity, key),
        }
    }
}

/// A CA whose root key is a file: for a mesh without istiod, and for tests.
#[derive(Debug)]
pub struct EmbeddedCa {
    issuer: Issuer<'static, KeyPair>,
    roots: Vec<CertificateDer<'static>>,
    ttl: Duration,
}

impl EmbeddedCa {
    /// Opens the CA in `dir` (`ca.crt` and `ca.key`, PEM); makes a root there when there is none.
    ///
    /// Agents that start at once agree on one root: the first to lock `ca.lock` makes it. Every certificate in
    /// `ca.crt` is trusted, the first one signs; so a root can be replaced by way of a bundle.
    pub fn open(dir: &Path, ttl: Duration) -> Result<Self, CaError> {
        let file_error = |action, path: &Path| {
            let path = path.to_owned();
            move |source| CaError::File { action, path, source }
        };
        fs::create_dir_all(dir).map_err(file_error("create", dir))?;
        let lock_path = dir.join("ca.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(file_error("create", &lock_path))?;
        lock.lock().map_err(file_error("lock", &lock_path))?;

        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !cert_path.exists() {
            // A key alone is what a crash in here leaves, or what an operator brought: it gets its certificate now.
            let key = if key_path.exists() { read_key(&key_path)? } else { make_key(&key_path)? };
            make_root(&cert_path, key)?;
        } else if !key_path.exists() {
            let problem = format!(
                "missing, but {} exists: put the matching key here, or remove both files to have a new root made",
                cert_path.display()
            );
            return Err(CaError::Content { path: key_path, problem });
        }
        Self::load(&cert_path, &key_path, ttl)
    }

    fn load(cert_path: &Path, key_path: &Path, ttl: Duration) -> Result<Self, CaError> {
        let content = |problem: String| CaError::Content { path: cert_path.to_owned(), problem };
        let pem = fs::read(cert_path).map_err(|source| CaError::File {
            action: "read",
            path: cert_path.to_owned(),
            source,
        })?;
        let roots = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| content(format!("not a PEM certificate: {error}")))?;
        let first = roots.first().ok_or_else(|| content("holds no PEM certificate".to_owned()))?;
        let key = read_key(key_path)?;
        check_root(first, &key).map_err(content)?;
        let issuer = Issuer::from_ca_cert_der(first, key)
            .map_err(|error| content(format!("cannot be used to sign: {error}")))?;
        Ok(Self { issuer, roots, ttl })
    }

    fn sign(&self, identity: &SpiffeId, key: &KeyPair) -> Result<SignedChain, CaError> {
        let now = SystemTime::now();
        self.sign_for_period(identity, key, now - BACKDATE, now + self.ttl)
    }

    /// Signs with the given validity: for tests of expired and not yet valid certificates.
    pub fn sign_for_period(
        &self,
        identity: &SpiffeId,
        key: &KeyPair,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<SignedChain, CaError> {
        let error = |source| CaError::Sign { identity: identity.clone(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().map_err(error)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let leaf = params.signed_by(key, &self.issuer).map_err(error)?;
        Ok(SignedChain { chain: vec![leaf.into()], roots: self.roots.clone() })
    }
}

fn check_root(root: &CertificateDer<'_>, key: &KeyPair) -> Result<(), String> {
    let (_, cert) = x509_parser::parse_x509_certificate(root)
        .map_err(|error| format!("the first certificate cannot be read: {error}"))?;
    if !cert.is_ca() {
        return Err("the first certificate is not a CA's (basicConstraints CA is missing)".to_owned());
    }
    if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err("does not belong to the key in ca.key beside it: bring the matching pair".to_owned());
    }
    if !cert.validity().is_valid() {
        return Err(format!(
            "the root is not valid now (valid until {}): replace ca.crt and ca.key on every node",
            cert.validity().not_after
        ));
    }
    Ok(())
}

fn read_key(path: &Path) -> Result<KeyPair, CaError> {
    let pem = fs::read_to_string(path).map_err(|source| CaError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    KeyPair::from_pem(&pem).map_err(|error| CaError::Content {
        path: path.to_owned(),
        problem: format!("not a private key in PKCS#8 PEM form: {error}"),
    })
}

fn make_key(path: &Path) -> Result<KeyPair, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| CaError::Content {
        path: path.to_owned(),
        problem: format!("a key could not be made: {error}"),
    })?;
    write_whole(path, 0o600, &key.serialize_pem())?;
    Ok(key)
}

fn make_root(path: &Path, key: KeyPair) -> Result<(), CaError> {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Culvert");
    name.push(DnType::CommonName, "Culvert mesh root");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    let root = params.self_signed(&key).map_err(|error| CaError::Content {
        path: path.to_owned(),
        problem: format!("a root certificate could not be made: {error}"),
    })?;
    write_whole(path, 0o644, &root.pem())
}

/// Writes a file so that nobody ever reads half of it.
fn write_whole(path: &Path, mode: u32, text: &str) -> Result<(), CaError> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let _ = fs::remove_file(&temporary);
        let mut file: File = OpenOptions::new().create_new(true).write(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| CaError::File { action: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open(dir: &Path) -> Result<EmbeddedCa, CaError> {
        EmbeddedCa::open(dir, DEFAULT_TTL)
    }

    #[test]
    fn agents_that_start_at_once_share_one_root() {
        let dir = tempfile::tempdir().unwrap();
        let roots: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| open(dir.path()).unwrap().roots)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(roots.iter().all(|r| *r == roots[0]));
        let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_leaf_carries_only_the_spiffe_id_and_is_backdated() {
        let dir = tempfile::tempdir().unwrap();
        let ca = open(dir.path()).unwrap();
        let id = SpiffeId::new("cluster.local", "test", "default");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let signed = ca.sign(&id, &key).unwrap();
        assert_eq!(super::super::spiffe_ids(&signed.chain[0]).unwrap(), std::slice::from_ref(&id));
        let (_, cert) = x509_parser::parse_x509_certificate(&signed.chain[0]).unwrap();
        assert_eq!(cert.subject().iter().count(), 0);
        let validity = cert.validity();
        let lifetime = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert_eq!(lifetime, 24 * 3600 + 300);
    }

    #[test]
    fn a_broken_directory_is_explained_by_file() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("ca.key: missing"), "{error}");
        make_key(&dir.path().join("ca.key")).unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("ca.crt") && error.contains("does not belong"), "{error}");
        fs::write(dir.path().join("ca.crt"), "hello").unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("holds no PEM certificate"), "{error}");
    }

    #[test]
    fn a_key_without_certificate_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        make_key(&dir.path().join("ca.key")).unwrap();
        open(dir.path()).unwrap();
    }
}
