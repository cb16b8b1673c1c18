//! A peer with a bad certificate, by the agents' own words: the log and `culvert flows` say why it was refused, at the end that
//! refuses. The peer is `openssl`. `agent/tests/identity.rs` has every kind of certificate. Needs root.

#![expect(clippy::unwrap_used, reason = "a test's helpers say what they expect by panicking")]

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use culvert_lab::lab::{Lab, Options, Placement};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

const LAB: &str = env!("CARGO_BIN_EXE_culvert-lab");
const LIMIT: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

/// In the mesh.
const APP: &str = "shop/app";
const CLIENT: &str = "shop/client";
/// Outside the mesh: a client that speaks HBONE.
const EDGE: &str = "edge/peer";
/// Said to speak HBONE by itself: a server.
const NATIVE: &str = "native/server";

const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: native, labels: {networking.istio.io/tunnel: http}}
spec: {serviceAccountName: server}
"#;

/// A certificate, and what is said of it at the other end of a client and of a server that show it.
struct Case {
    names: &'static [&'static str],
    /// Hours from now.
    valid: (i64, i64),
    by_itself: bool,
    of_client: &'static str,
    of_server: &'static str,
}

const SERVER: &str = "spiffe://cluster.local/ns/native/sa/server";

const CASES: &[Case] = &[
    Case {
        names: &["spiffe://elsewhere.example/ns/native/sa/server"],
        valid: (-1, 1),
        by_itself: false,
        of_client: "expected the trust domain cluster.local, got spiffe://elsewhere.example/ns/native/sa/server",
        of_server: "expected the identity spiffe://cluster.local/ns/native/sa/server, got spiffe://elsewhere.example/",
    },
    Case {
        names: &[SERVER],
        valid: (-5, -3),
        by_itself: false,
        of_client: ", 3 h ago: its node does not renew it, or a clock is wrong",
        of_server: ", 3 h ago: its node does not renew it, or a clock is wrong",
    },
    Case {
        names: &[SERVER],
        valid: (4, 5),
        by_itself: false,
        of_client: "is not valid yet, only from ",
        of_server: "is not valid yet, only from ",
    },
    Case {
        names: &[SERVER],
        valid: (-1, 1),
        by_itself: true,
        of_client: "has an unknown issuer: it is self-signed",
        of_server: "has an unknown issuer: it is self-signed",
    },
    Case {
        names: &[],
        valid: (-1, 1),
        by_itself: false,
        of_client: "carries no SPIFFE id: it has no subjectAltName",
        of_server: "carries no SPIFFE id: it has no subjectAltName",
    },
    Case {
        names: &[SERVER, "spiffe://cluster.local/ns/native/sa/other"],
        valid: (-1, 1),
        by_itself: false,
        of_client: "proves no identity, because it has more than one URI name",
        of_server: "proves no identity, because it has more than one URI name",
    },
];

fn lab() -> Lab {
    let options = Options::built(LAB, &["n1"], &[]).unwrap();
    let place = |http| Placement { node: "n1".to_owned(), http, tcp: Vec::new() };
    let pods =
        [(APP, place(vec![5000])), (CLIENT, place(vec![])), (EDGE, place(vec![])), (NATIVE, place(vec![]))];
    let mut lab = Lab::new(options, pods.map(|(name, place)| (name.to_owned(), place)).into()).unwrap();
    lab.apply(OBJECTS).unwrap();
    lab.declare_missing_pods().unwrap();
    lab.start_agents().unwrap();
    lab
}

/// Writes the certificate and its key into the lab's folder; `openssl`'s options for them.
fn show(lab: &Lab, case: &Case) -> String {
    let hours = |count: i64| {
        let span = HOUR * u32::try_from(count.unsigned_abs()).unwrap();
        if count < 0 { SystemTime::now() - span } else { SystemTime::now() + span }
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names =
        case.names.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (hours(case.valid.0).into(), hours(case.valid.1).into());
    let ca = |name: &str| fs::read_to_string(lab.dir().join("ca").join(name)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&ca("ca.crt"), KeyPair::from_pem(&ca("ca.key")).unwrap()).unwrap();
    let cert = if case.by_itself { params.self_signed(&key) } else { params.signed_by(&key, &issuer) };
    let path = |name: &str| lab.dir().join(name).display().to_string();
    fs::write(path("cert.pem"), cert.unwrap().pem()).unwrap();
    fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    format!("-cert {} -key {} -alpn h2", path("cert.pem"), path("key.pem"))
}

fn sh(lab: &Lab, pod: &str, script: &str) -> String {
    let output = lab.exec(pod, &["sh".to_owned(), "-c".to_owned(), script.to_owned()], LIMIT).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `culvert flows` and the log both have a refusal at this end that says so.
fn expect_said(lab: &Lab, end: &str, says: &str) {
    let begun = Instant::now();
    loop {
        let command = ["culvert", "flows", "--verdict", "refused"].map(str::to_owned);
        let flows = lab.run_on("n1", &command, LIMIT).unwrap();
        let flows = String::from_utf8_lossy(&flows.stdout).into_owned();
        let log = lab.agent_logs(200);
        let said = |text: &str, at: &str| text.lines().any(|line| line.contains(says) && line.contains(at));
        let direction = if end == "source" { "direction=\"outbound\"" } else { "direction=\"inbound\"" };
        if said(&flows, &format!(" at {end}")) && said(&log, direction) {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "no refusal at the {end} that says {says:?}:\n{flows}\n{log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_client_with_a_bad_certificate_is_refused_in_so_many_words() {
    let lab = lab();
    let app = lab.pod_addresses(APP).unwrap();
    for case in CASES {
        let shown = show(&lab, case);
        sh(&lab, EDGE, &format!("timeout 5 openssl s_client -connect {}:15008 {shown} </dev/null", app.v4));
        expect_said(&lab, "destination", case.of_client);
    }
    sh(&lab, EDGE, &format!("timeout 5 openssl s_client -connect {}:15008 -alpn h2 </dev/null", app.v4));
    expect_said(&lab, "destination", "the peer presented no certificate");
    lab.stop().unwrap();
}

#[test]
fn a_server_with_a_bad_certificate_is_refused_in_so_many_words() {
    let lab = lab();
    let native = lab.pod_addresses(NATIVE).unwrap();
    for case in CASES {
        let shown = show(&lab, case);
        // It serves one connection, and would end with its input.
        sh(
            &lab,
            NATIVE,
            &format!(
                "(sleep 5 | openssl s_server -accept 15008 -naccept 1 -tls1_3 {shown}) >/dev/null 2>&1 &"
            ),
        );
        sh(&lab, CLIENT, &format!("curl -sS -m 5 http://{}:5000/ 2>&1", native.v4));
        expect_said(&lab, "source", case.of_server);
    }
    lab.stop().unwrap();
}
