//! A key that signs, and what vouches for it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::super::SpiffeId;
use super::embedded::CaFiles;
use super::{BACKDATE, CaError, SignedChain};

#[derive(Debug)]
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Between the leaf and the roots.
    intermediates: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// Every certificate in the root file is trusted (without one: in the signer's file); the first in the signer's file signs.
    pub(super) fn load(files: &CaFiles) -> Result<Self, CaError> {
        let own = certificates(&files.cert)?;
        let content = |problem: String| CaError::Content { path: files.cert.clone(), problem };
        let first = own.first().ok_or_else(|| content("holds no PEM certificate".to_owned()))?.clone();
        let key = read_key(&files.key)?;
        check(&first, &key, &files.key).map_err(content)?;
        let roots = match &files.root {
            Some(path) => certificates(path)?,
            None => own.clone(),
        };
        let mut intermediates = vec![first.clone()];
        if let Some(path) = &files.chain {
            intermediates.extend(certificates(path)?);
        }
        // Istio's cert-chain.pem begins with the signer's certificate and may end with the root.
        let mut seen = Vec::new();
        intermediates.retain(|cert| {
            let new = !roots.contains(cert) && !seen.contains(cert);
            seen.push(cert.clone());
            new
        });
        let issuer = Issuer::from_ca_cert_der(&first, key)
            .map_err(|error| content(format!("cannot be used to sign: {error}")))?;
        Ok(Self { issuer, intermediates, roots })
    }

    /// A workload's certificate for `key`.
    pub(super) fn sign(
        &self,
        identity: &SpiffeId,
        key: &impl PublicKeyData,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<SignedChain, CaError> {
        let error = |source| CaError::Sign { identity: identity.to_string(), source };
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
        Ok(self.chain(leaf.into()))
    }

    /// A certificate for serving under `names` (DNS names and addresses), and its key.
    pub(super) fn sign_server(
        &self,
        names: &[String],
        ttl: Duration,
    ) -> Result<(SignedChain, KeyPair), CaError> {
        let error = |source| CaError::Sign { identity: names.join(", "), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(error)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Culvert CA");
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(error)?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let now = SystemTime::now();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + ttl).into();
        let leaf = params.signed_by(&key, &self.issuer).map_err(error)?;
        Ok((self.chain(leaf.into()), key))
    }

    fn chain(&self, leaf: CertificateDer<'static>) -> SignedChain {
        let chain = std::iter::once(leaf).chain(self.intermediates.iter().cloned()).collect();
        SignedChain { chain, roots: self.roots.clone() }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let content = |problem: String| CaError::Content { path: path.to_owned(), problem };
    let pem =
        fs::read(path).map_err(|source| CaError::File { action: "read", path: path.to_owned(), source })?;
    let certs = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(format!("not a PEM certificate: {error}")))?;
    if certs.is_empty() {
        return Err(content("holds no PEM certificate".to_owned()));
    }
    Ok(certs)
}

fn check(signer: &CertificateDer<'_>, key: &KeyPair, key_path: &Path) -> Result<(), String> {
    let (_, cert) = x509_parser::parse_x509_certificate(signer)
        .map_err(|error| format!("the first certificate cannot be read: {error}"))?;
    if !cert.is_ca() {
        return Err("the first certificate is not a CA's (basicConstraints CA is missing)".to_owned());
    }
    if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(format!("does not belong to the key in {}: bring the matching pair", key_path.display()));
    }
    if !cert.validity().is_valid() {
        return Err(format!(
            "is not valid now (valid until {}): replace it and its key, on every node that has them",
            cert.validity().not_after
        ));
    }
    Ok(())
}

pub(super) fn read_key(path: &Path) -> Result<KeyPair, CaError> {
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
