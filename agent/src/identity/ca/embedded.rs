//! A CA whose key is a file.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData,
};

use super::super::SpiffeId;
use super::authority::{Authority, read_key};
use super::{BACKDATE, CaError, SignedChain};
use crate::sys::files::Stamp;

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Where a CA has its key and certificates, all PEM.
#[derive(Clone, Debug)]
pub struct CaFiles {
    /// The certificate that signs, first; without [`CaFiles::root`] all in the file are roots.
    pub cert: PathBuf,
    /// Its key, PKCS#8.
    pub key: PathBuf,
    /// The roots, when the certificate that signs is an intermediate.
    pub root: Option<PathBuf>,
    /// What else is between that and the roots.
    pub chain: Option<PathBuf>,
}

impl CaFiles {
    fn stamps(&self) -> Vec<Stamp> {
        let optional = [&self.root, &self.chain].into_iter().flatten();
        [&self.cert, &self.key].into_iter().chain(optional).map(|path| Stamp::of(path)).collect()
    }
}

/// A CA whose key is a file: for a mesh without istiod, for `culvert ca`, and for tests.
#[derive(Debug)]
pub struct EmbeddedCa {
    files: CaFiles,
    ttl: Duration,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    /// Of the files when they were last looked at.
    stamps: Vec<Stamp>,
    authority: Arc<Authority>,
}

impl EmbeddedCa {
    /// Opens the CA in `dir` (`ca.crt` and `ca.key`, PEM); makes a root there when there is none.
    ///
    /// Agents that start at once agree on one root: the first to lock `ca.lock` makes it. Every certificate in
    /// `ca.crt` is trusted, the first one signs; so a root can be replaced by way of a bundle.
    pub fn open(dir: &Path, ttl: Duration) -> Result<Self, CaError> {
        let files = CaFiles { cert: dir.join("ca.crt"), key: dir.join("ca.key"), root: None, chain: None };
        Self::open_files(files, ttl)
    }

    /// Opens the CA in `files`; makes a root when its certificate is missing and is to be the root.
    pub fn open_files(files: CaFiles, ttl: Duration) -> Result<Self, CaError> {
        let file_error = |action, path: &Path| {
            let path = path.to_owned();
            move |source| CaError::File { action, path, source }
        };
        if let Some(dir) = files.cert.parent() {
            fs::create_dir_all(dir).map_err(file_error("create", dir))?;
        }
        // Read-only files, as Kubernetes mounts them, need no lock: nobody can make any.
        if !(files.cert.exists() && files.key.exists()) {
            let lock_path = files.cert.with_extension("lock");
            let lock = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&lock_path)
                .map_err(file_error("create", &lock_path))?;
            lock.lock().map_err(file_error("lock", &lock_path))?;
            make_missing(&files)?;
        }
        let stamps = files.stamps();
        let authority = Arc::new(Authority::load(&files)?);
        Ok(Self { files, ttl, state: RwLock::new(State { stamps, authority }) })
    }

    pub(super) fn authority(&self) -> Arc<Authority> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).authority.clone()
    }

    /// Reads the files again when they have changed. True when there are other roots or another signer now; what cannot be used
    /// is reported, and the last good state stays in force.
    pub(super) fn refresh(&self) -> bool {
        let stamps = self.files.stamps();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.stamps == stamps {
            return false;
        }
        state.stamps = stamps;
        match Authority::load(&self.files) {
            Ok(authority) => {
                tracing::info!(
                    roots = authority.roots.len(),
                    "the files of the CA have changed and are in force"
                );
                state.authority = Arc::new(authority);
                true
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!(
                    "the files of the CA have changed and cannot be used; those before stay in force: {error:#}"
                );
                false
            }
        }
    }

    pub(super) fn sign(&self, identity: &SpiffeId, key: &KeyPair) -> Result<SignedChain, CaError> {
        self.sign_for(identity, key, self.ttl)
    }

    /// Signs for `ttl` from now.
    pub(super) fn sign_for(
        &self,
        identity: &SpiffeId,
        key: &impl PublicKeyData,
        ttl: Duration,
    ) -> Result<SignedChain, CaError> {
        let now = SystemTime::now();
        self.authority().sign(identity, key, now - BACKDATE, now + ttl)
    }

    /// Signs with the given validity: for tests of expired and not yet valid certificates.
    pub fn sign_for_period(
        &self,
        identity: &SpiffeId,
        key: &KeyPair,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<SignedChain, CaError> {
        self.authority().sign(identity, key, not_before, not_after)
    }
}

/// A root, unless somebody else made it meanwhile.
fn make_missing(files: &CaFiles) -> Result<(), CaError> {
    let CaFiles { cert, key, .. } = files;
    if let (false, Some(root)) = (cert.exists(), &files.root) {
        let problem =
            format!("missing: with a root in {} the certificate that signs must be brought", root.display());
        return Err(CaError::Content { path: cert.clone(), problem });
    }
    if !cert.exists() {
        // A key alone is what a crash in here leaves, or what an operator brought: it gets its certificate now.
        let pair = if key.exists() { read_key(key)? } else { make_key(key)? };
        return make_root(cert, pair);
    }
    if !key.exists() {
        let problem = format!(
            "missing, but {} exists: put the matching key here, or remove both files to have a new root made",
            cert.display()
        );
        return Err(CaError::Content { path: key.clone(), problem });
    }
    Ok(())
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

    use super::super::DEFAULT_TTL;
    use super::*;

    fn open(dir: &Path) -> Result<EmbeddedCa, CaError> {
        EmbeddedCa::open(dir, DEFAULT_TTL)
    }

    #[test]
    fn agents_that_start_at_once_share_one_root() {
        let dir = tempfile::tempdir().unwrap();
        let roots: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| open(dir.path()).unwrap().authority().roots.clone())).collect();
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
        assert_eq!(crate::identity::spiffe_id(&signed.chain[0]).unwrap(), id);
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
    fn other_roots_are_taken_over_and_a_broken_file_is_not() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ca = open(dir.path()).unwrap();
        open(other.path()).unwrap();
        assert!(!ca.refresh());
        let path = dir.path().join("ca.crt");
        let own = fs::read_to_string(&path).unwrap();
        let both = own + &fs::read_to_string(other.path().join("ca.crt")).unwrap();
        write_whole(&path, 0o644, &both).unwrap();
        assert!(ca.refresh());
        assert_eq!(ca.authority().roots.len(), 2);
        write_whole(&path, 0o644, "half a certifi").unwrap();
        assert!(!ca.refresh());
        fs::remove_file(&path).unwrap();
        assert!(!ca.refresh());
        assert_eq!(ca.authority().roots.len(), 2, "the last good state stays");
    }

    #[test]
    fn a_key_without_certificate_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        make_key(&dir.path().join("ca.key")).unwrap();
        open(dir.path()).unwrap();
    }
}
