//! What a CA elsewhere answers is checked before it is used: a mistake of the CA must not become everybody's refusal.

use rcgen::KeyPair;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::super::{SpiffeId, spiffe_id};
use super::wire::CertificateResponse;
use super::{SignedChain, is_self_issued};

/// The chain and the roots of an answer for `identity` and `key`.
///
/// # Errors
///
/// It is for somebody else, for another key, not valid now, or does not lead to the roots that came with it.
pub(super) fn check(
    answer: &CertificateResponse,
    identity: &SpiffeId,
    key: &KeyPair,
) -> Result<SignedChain, String> {
    let signed = parts(answer)?;
    let Some(leaf) = signed.chain.first() else { return Err("it holds no certificate".to_owned()) };
    let got = spiffe_id(leaf).map_err(|error| error.to_string())?;
    if got != *identity {
        return Err(format!("it is for {got}, and {identity} was asked for"));
    }
    let (_, cert) = x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
    if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err("it is for another key than the request's".to_owned());
    }
    let validity = cert.validity();
    if !validity.is_valid() {
        return Err(format!(
            "it is not valid now, only from {} to {}: compare the CA's clock with this node's",
            validity.not_before, validity.not_after
        ));
    }
    lead_to_roots(&signed)?;
    Ok(signed)
}

/// The leaf and what leads to the root, which comes last; all that issue themselves are roots.
fn parts(answer: &CertificateResponse) -> Result<SignedChain, String> {
    let mut certs = Vec::new();
    for pem in &answer.cert_chain {
        for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            certs.push(cert.map_err(|error| format!("not PEM: {error}"))?);
        }
    }
    let last = certs.len().saturating_sub(1);
    let (mut chain, mut roots) = (Vec::new(), Vec::new());
    for (n, cert) in certs.into_iter().enumerate() {
        if n > 0 && (n == last || is_self_issued(&cert)) {
            roots.push(cert);
        } else {
            chain.push(cert);
        }
    }
    if roots.is_empty() && !chain.is_empty() {
        return Err("it holds no root after the leaf".to_owned());
    }
    Ok(SignedChain { chain, roots })
}

/// As peers will look at it, whichever end they are.
fn lead_to_roots(signed: &SignedChain) -> Result<(), String> {
    let anchors = signed.roots.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>();
    let anchors = anchors.map_err(|error| format!("a root in it cannot be used: {error}"))?;
    let [leaf, intermediates @ ..] = &signed.chain[..] else { return Ok(()) };
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| error.to_string())?;
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        leaf.verify_for_usage(algorithms, &anchors, intermediates, UnixTime::now(), usage, None, None)
            .map_err(|error| {
                format!("its certificate is not vouched for by the root that came with it: {error}")
            })?;
    }
    Ok(())
}
