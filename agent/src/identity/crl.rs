//! Certificate revocation lists: a watched file of certificates that are no longer accepted.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio::sync::watch;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::sys::files::Stamp;

/// How often the file is looked at: a change is in force that late at the latest.
const LOOK: Duration = Duration::from_secs(1);

type Lists = Vec<CertRevocationList<'static>>;

/// The lists in force. Cheap to clone; all clones see the same. [`Revocations::default`] revokes nothing.
#[derive(Clone)]
pub struct Revocations(Arc<watch::Sender<Arc<Lists>>>);

impl Default for Revocations {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Arc::default())))
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revocations({} lists)", self.0.borrow().len())
    }
}

/// Which end of a connection a certificate was shown by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The one that connected.
    Client,
    /// The one that accepted.
    Server,
}

impl Revocations {
    /// The lists in `path` (PEM), and what becomes of the file, for as long as a clone lives. Lives in a tokio runtime.
    ///
    /// A file that is missing or broken is reported, and the lists before stay in force. A list past its nextUpdate is
    /// reported and not used, as ztunnel has it.
    pub fn follow(path: PathBuf) -> Self {
        let this = Self::default();
        let weak = Arc::downgrade(&this.0);
        let mut stamp = Stamp::of(&path);
        this.load(&path);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(sender) = weak.upgrade() else { return };
                let now = Stamp::of(&path);
                if now != stamp {
                    stamp = now;
                    Self(sender).load(&path);
                }
            }
        });
        this
    }

    fn load(&self, path: &Path) {
        match read(path) {
            Ok(lists) => {
                tracing::info!(path = %path.display(), lists = lists.len(), "revocation lists are in force");
                self.0.send_replace(Arc::new(lists));
            }
            Err(problem) => tracing::warn!(
                path = %path.display(),
                problem,
                "the revocation lists (--crl) cannot be used; those before stay in force"
            ),
        }
    }

    /// Whether one of the lists names a certificate of `chain` (leaf first), which has been verified against `roots`. A chain
    /// for which there is no list is not revoked.
    pub(super) fn revoke(
        &self,
        chain: &[CertificateDer<'_>],
        roots: &RootCertStore,
        role: Role,
        now: UnixTime,
    ) -> bool {
        let lists = self.0.borrow().clone();
        let lists: Vec<&CertRevocationList<'_>> = lists.iter().collect();
        let (Ok(options), [leaf, intermediates @ ..]) = (RevocationOptionsBuilder::new(&lists), chain) else {
            return false;
        };
        let options = options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        let Ok(leaf) = EndEntityCert::try_from(leaf) else { return false };
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let verified =
            leaf.verify_for_usage(algorithms, &roots.roots, intermediates, now, usage, Some(options), None);
        matches!(verified, Err(webpki::Error::CertRevoked))
    }
}

fn read(path: &Path) -> Result<Lists, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut lists = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(&bytes) {
        let der = der.map_err(|error| format!("not PEM: {error}"))?;
        let list = OwnedCertRevocationList::from_der(&der)
            .map_err(|error| format!("list {} cannot be read: {error}", lists.len() + 1))?;
        warn_of_end(path, &der);
        lists.push(list.into());
    }
    // An empty file revokes nothing; a file of something else is a mistake.
    if lists.is_empty() && !bytes.trim_ascii().is_empty() {
        return Err("holds no X509 CRL in PEM form".to_owned());
    }
    Ok(lists)
}

fn warn_of_end(path: &Path, der: &CertificateRevocationListDer<'_>) {
    let Ok((_, list)) = x509_parser::parse_x509_crl(der) else { return };
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    if let Some(end) = list.next_update()
        && end.timestamp() < now
    {
        tracing::warn!(
            path = %path.display(),
            issuer = %list.issuer(),
            next_update = %end,
            "a revocation list has expired and is not used: bring a newer one"
        );
    }
}

/// What a peer has proven, held against what is revoked later.
#[derive(Clone, Debug)]
pub struct Proof {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) revocations: Revocations,
    pub(super) role: Role,
    /// When it was verified: a certificate may end while its connection goes on.
    pub(super) verified: UnixTime,
}

impl Proof {
    /// Returns when a certificate of the peer's chain is revoked.
    pub async fn revoked(&self) {
        let mut lists = self.revocations.0.subscribe();
        // Also what was revoked since the handshake.
        while !self.is_revoked() {
            if lists.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn is_revoked(&self) -> bool {
        self.revocations.revoke(&self.chain, &self.roots, self.role, self.verified)
    }
}
