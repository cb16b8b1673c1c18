//! What a CA may answer: each mistake is refused by the agent, with its reason, and the certificate before stays in use.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use culvert::identity::{Ca, CertStore, Compliance, EmbeddedCa, RemoteCa, RemoteConfig, SpiffeId};
use rcgen::{CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, SanType};

use crate::{HOUR, ca_of, grpc, issuer_in};

fn asked() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "app")
}

/// What an answer is like; everything else about it is good.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Good,
    /// So many seconds from now until it ends; it has begun an hour before that.
    Ends(i64),
    Begins(u64),
    AnotherIdentity,
    TwoIdentities,
    NoIdentity,
    AnotherKey,
    AnotherRoot,
    ForServersOnly,
    NoRoot,
    Nothing,
    NotPem,
}

/// The chain for a CSR, by the CA in `dir`.
fn chain(dir: &Path, csr: &str, answer: Answer) -> Vec<String> {
    let request = CertificateSigningRequestParams::from_pem(csr).unwrap();
    let now = SystemTime::now();
    let mut params: CertificateParams = request.params;
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = ((now - HOUR).into(), (now + HOUR).into());
    let uri = |account: &str| {
        let id = SpiffeId::new("cluster.local", "shop", account).to_string();
        SanType::URI(id.as_str().try_into().unwrap())
    };
    let mut root = std::fs::read_to_string(dir.join("ca.crt")).unwrap();
    let another = crate::key();
    match answer {
        Answer::Ends(seconds) => {
            let end = if seconds < 0 {
                now - Duration::from_secs(seconds.unsigned_abs())
            } else {
                now + Duration::from_secs(seconds.unsigned_abs())
            };
            params.not_after = end.into();
        }
        Answer::Begins(seconds) => params.not_before = (now + Duration::from_secs(seconds)).into(),
        Answer::AnotherIdentity => params.subject_alt_names = vec![uri("other")],
        Answer::TwoIdentities => params.subject_alt_names = vec![uri("app"), uri("other")],
        Answer::NoIdentity => params.subject_alt_names.clear(),
        Answer::ForServersOnly => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        Answer::AnotherRoot => {
            EmbeddedCa::open(&dir.join("other"), HOUR).unwrap();
            root = std::fs::read_to_string(dir.join("other/ca.crt")).unwrap();
        }
        Answer::Good | Answer::AnotherKey | Answer::NoRoot | Answer::Nothing | Answer::NotPem => {}
    }
    let issuer = issuer_in(dir);
    let leaf = match answer {
        Answer::AnotherKey => params.signed_by(&another, &issuer).unwrap(),
        _ => params.signed_by(&request.public_key, &issuer).unwrap(),
    };
    match answer {
        Answer::Nothing => Vec::new(),
        Answer::NoRoot => vec![leaf.pem()],
        Answer::NotPem => {
            vec!["-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".to_owned(), root]
        }
        _ => vec![leaf.pem(), root],
    }
}

fn client(dir: &Path, address: String) -> Ca {
    std::fs::write(dir.join("token"), "right").unwrap();
    let config = RemoteConfig {
        address,
        root: dir.join("ca.crt"),
        token: dir.join("token"),
        cluster: "Kubernetes".to_owned(),
        ttl: HOUR,
        compliance: Compliance::None,
    };
    Ca::Remote(RemoteCa::new(config).unwrap())
}

#[tokio::test]
async fn each_mistake_of_a_ca_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    ca_of(dir.path());
    let next = Arc::new(Mutex::new(Answer::Good));
    let (told, path) = (next.clone(), dir.path().to_owned());
    let address = grpc::serve(dir.path(), move |_, csr| chain(&path, csr, *told.lock().unwrap())).await;
    let ca = client(dir.path(), address.clone());
    let cases = [
        (
            Answer::AnotherIdentity,
            "it is for spiffe://cluster.local/ns/shop/sa/other, and spiffe://cluster.local/ns/shop/sa/app was asked for",
        ),
        (Answer::TwoIdentities, "more than one URI name"),
        (Answer::NoIdentity, "carries no SPIFFE id"),
        (Answer::AnotherKey, "it is for another key than the request's"),
        (Answer::Ends(-60), "it is not valid now, only from "),
        (Answer::Begins(600), "compare the CA's clock with this node's"),
        (Answer::AnotherRoot, "not vouched for by the root that came with it"),
        (Answer::ForServersOnly, "not vouched for by the root that came with it"),
        (Answer::NoRoot, "it holds no root after the leaf"),
        (Answer::Nothing, "it holds no certificate"),
        (Answer::NotPem, "not PEM"),
    ];
    for (answer, says) in cases {
        *next.lock().unwrap() = answer;
        let error = ca.sign(&asked(), &crate::key()).await.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("its answer is not used"), "{answer:?}: {error}");
        assert!(error.starts_with(&format!("the CA at {address}")), "{error}");
    }
    *next.lock().unwrap() = Answer::Good;
    ca.sign(&asked(), &crate::key()).await.unwrap();
}

/// The first certificate is good for some seconds; every later answer is a mistake, until the CA is mended.
#[tokio::test]
async fn the_certificate_before_stays_in_use_while_the_answers_are_bad() {
    let dir = tempfile::tempdir().unwrap();
    ca_of(dir.path());
    let mended = Arc::new(AtomicUsize::new(usize::MAX));
    let (from, path) = (mended.clone(), dir.path().to_owned());
    let address = grpc::serve(dir.path(), move |n, csr| {
        let bad = [Answer::AnotherIdentity, Answer::AnotherKey, Answer::Ends(-60), Answer::AnotherRoot];
        let answer = match n {
            0 => Answer::Ends(6),
            n if n >= from.load(Ordering::Relaxed) => Answer::Good,
            n => bad[n % bad.len()],
        };
        chain(&path, csr, answer)
    })
    .await;
    let store = CertStore::new(client(dir.path(), address));
    let _lease = store.lease(&asked());
    let first = store.get(&asked()).await.unwrap().serial().to_owned();
    let mut seen = std::collections::BTreeSet::new();
    let begun = std::time::Instant::now();
    while seen.len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(6), "{seen:?}");
        let error = store.list()[0].error.clone();
        if !error.is_empty() {
            assert!(error.contains("its answer is not used"), "{error}");
            seen.insert(error);
        }
        assert_eq!(store.get(&asked()).await.unwrap().serial(), first);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    mended.store(0, Ordering::Relaxed);
    while store.get(&asked()).await.is_ok_and(|cert| cert.serial() == first)
        || !store.list()[0].error.is_empty()
    {
        assert!(begun.elapsed() < Duration::from_secs(20), "not renewed: {}", store.list()[0].error);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
