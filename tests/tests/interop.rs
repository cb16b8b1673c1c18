//! Culvert and Envoy, which is what Istio's waypoints are: HBONE from one to the other, both ways, and through an Envoy that is a
//! waypoint. Needs root, and Envoy, which `cargo xtask test` installs.

#![expect(clippy::unwrap_used, reason = "a test's helpers say what they expect by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use culvert::identity::{EmbeddedCa, SpiffeId};
use culvert_lab::lab::{Lab, Options, Placement};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

const LAB: &str = env!("CARGO_BIN_EXE_culvert-lab");
const LIMIT: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

/// The app behind Culvert, in a STRICT namespace.
const APP: &str = "shop/app";
/// In the mesh, on another node.
const CLIENT: &str = "shop/client";
/// As the client, by another service account, which the waypoint turns away.
const STRANGER: &str = "shop/stranger";
/// Outside the mesh: an Envoy that opens HBONE.
const EDGE: &str = "edge/envoy";
/// An Envoy that takes HBONE in by itself, in front of an app.
const NATIVE: &str = "native/server";
/// An Envoy that is a waypoint.
const WAYPOINT: &str = "infra/waypoint";

const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Pod
metadata: {name: app, namespace: shop, labels: {app: app}}
spec: {serviceAccountName: app}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: shop}
spec: {serviceAccountName: stranger}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: waypoint, istio.io/use-waypoint-namespace: infra}}
spec: {selector: {app: app}, ports: [{port: 80, targetPort: 5000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: native, labels: {networking.istio.io/tunnel: http}}
spec: {serviceAccountName: server}
---
apiVersion: v1
kind: Pod
metadata: {name: waypoint, namespace: infra, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {serviceAccountName: waypoint}
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: infra, labels: {gateway.istio.io/managed: istio.io-mesh-controller}}
spec: {selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{name: mesh, port: 15008}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: infra}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]
status: {addresses: [{type: Hostname, value: waypoint.infra.svc.cluster.local}]}
"#;

fn lab(agent_args: &[&str]) -> Lab {
    let options = Options::built(LAB, &["n1", "n2"], agent_args).unwrap();
    let place = |node: &str, http| Placement { node: node.to_owned(), http, tcp: Vec::new() };
    let pods = [
        (APP, place("n1", vec![5000])),
        (CLIENT, place("n2", Vec::new())),
        (STRANGER, place("n2", Vec::new())),
        (EDGE, place("n2", Vec::new())),
        (NATIVE, place("n1", vec![5000])),
        (WAYPOINT, place("n1", Vec::new())),
    ];
    let mut lab = Lab::new(options, pods.map(|(name, place)| (name.to_owned(), place)).into()).unwrap();
    lab.apply(OBJECTS).unwrap();
    lab.declare_missing_pods().unwrap();
    lab.start_agents().unwrap();
    lab
}

/// Envoy: what xtask installs, or the environment names.
fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("CULVERT_ENVOY").map(PathBuf::from);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/envoy/envoy/_bin/envoy");
    named.or_else(|| own.exists().then_some(own))
}

fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", namespace, account)
}

/// Envoy in a pod, with a certificate of the mesh's CA.
struct Envoy<'a> {
    lab: &'a Lab,
    pod: &'static str,
    config: &'static str,
    own: SpiffeId,
    /// `@NAME@` in the configuration, and what stands there.
    values: Vec<(&'static str, String)>,
}

impl Envoy<'_> {
    fn start(&self, program: &Path) {
        let dir = self.lab.dir().join(self.pod.replace('/', "-"));
        fs::create_dir_all(&dir).unwrap();
        let ca_dir = self.lab.dir().join("ca");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let ca = EmbeddedCa::open(&ca_dir, HOUR).unwrap();
        let now = SystemTime::now();
        let signed = ca.sign_for_period(&self.own, &key, now - HOUR, now + HOUR).unwrap();
        let pem = |der: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE", der));
        let chain: String = signed.chain.iter().map(|der| pem(der.as_ref())).collect();
        let path = |name: &str| dir.join(name).display().to_string();
        fs::write(path("cert.pem"), chain).unwrap();
        fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        let files = [
            ("@CERT@", path("cert.pem")),
            ("@KEY@", path("key.pem")),
            ("@ROOT@", ca_dir.join("ca.crt").display().to_string()),
        ];
        let text = files
            .iter()
            .chain(&self.values)
            .fold(self.config.to_owned(), |text, (name, value)| text.replace(name, value));
        fs::write(path("envoy.yaml"), text).unwrap();
        let run = format!(
            "{} -c {} --concurrency 1 --use-dynamic-base-id -l info >{} 2>&1 &",
            program.display(),
            path("envoy.yaml"),
            path("envoy.log")
        );
        sh(self.lab, self.pod, &run);
        let begun = Instant::now();
        while !fs::read_to_string(path("envoy.log"))
            .unwrap_or_default()
            .contains("starting main dispatch loop")
        {
            let log = || fs::read_to_string(path("envoy.log")).unwrap_or_default();
            assert!(begun.elapsed() < LIMIT, "Envoy does not start:\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn sh(lab: &Lab, pod: &str, script: &str) -> String {
    let output = lab.exec(pod, &["sh".to_owned(), "-c".to_owned(), script.to_owned()], LIMIT).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `curl`'s body and status, or its error.
fn curl(lab: &Lab, pod: &str, url: &str) -> String {
    sh(lab, pod, &format!("curl -sS -m 5 -w ' status=%{{http_code}}' '{url}' 2>&1"))
}

fn envoy_logs(lab: &Lab) -> String {
    let logs = [EDGE, NATIVE, WAYPOINT].map(|pod| lab.dir().join(pod.replace('/', "-")).join("envoy.log"));
    let tail = |log: PathBuf| {
        let text = fs::read_to_string(&log).ok()?;
        let lines: Vec<&str> = text.lines().collect();
        Some(format!("-- {} --\n{}\n", log.display(), lines[lines.len().saturating_sub(40)..].join("\n")))
    };
    logs.into_iter().filter_map(tail).collect()
}

/// Asks until the answer has all of `wanted`.
fn expect(lab: &Lab, pod: &str, url: &str, wanted: &[&str]) {
    let begun = Instant::now();
    loop {
        let answer = curl(lab, pod, url);
        if wanted.iter().all(|part| answer.contains(part)) {
            return;
        }
        assert!(
            begun.elapsed() < LIMIT,
            "{pod} -> {url}: {answer:?} lacks one of {wanted:?}\n{}{}",
            lab.agent_logs(20),
            envoy_logs(lab)
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn envoy_opens_hbone_to_culvert_and_takes_it_in_from_culvert() {
    let Some(program) = envoy() else {
        eprintln!("skipped: there is no Envoy; `cargo xtask test` installs it");
        return;
    };
    let lab = lab(&[]);
    let app = lab.pod_addresses(APP).unwrap();
    let edge = lab.pod_addresses(EDGE).unwrap();
    let open = |identity: SpiffeId| Envoy {
        lab: &lab,
        pod: EDGE,
        config: include_str!("interop/client.yaml"),
        own: id("edge", "default"),
        values: vec![
            ("@TARGET@", format!("{}:5000", app.v4)),
            ("@PEER@", app.v4.to_string()),
            ("@IDENTITY@", identity.to_string()),
        ],
    };
    open(id("shop", "app")).start(&program);
    // Plaintext is refused; by Envoy's tunnel the app is reached, and sees the client's address.
    expect(&lab, EDGE, &format!("http://{}:5000/", app.v4), &["curl: (7)"]);
    expect(&lab, EDGE, "http://127.0.0.1:10001/echo", &[&format!("\"peer\":\"{}:", edge.v4), "status=200"]);

    let native = lab.pod_addresses(NATIVE).unwrap();
    let take = Envoy {
        lab: &lab,
        pod: NATIVE,
        config: include_str!("interop/server.yaml"),
        own: id("native", "server"),
        values: vec![("@IDENTITY@", id("shop", "default").to_string())],
    };
    take.start(&program);
    for address in [native.v4.to_string(), format!("[{}]", native.v6)] {
        expect(&lab, CLIENT, &format!("http://{address}:5000/"), &["server", "status=200"]);
    }
    let flows = lab.flows();
    let tunnelled = |flow: &culvert_lab::lab::FlowRecord| {
        flow.path == "tunnel" && flow.destination.workload == NATIVE && flow.stage == "opened"
    };
    assert!(flows.iter().any(tunnelled), "{flows:#?}");
    lab.stop().unwrap();
}

/// The waypoint of `shop/web`.
fn waypoint(lab: &Lab) -> Envoy<'_> {
    let app = lab.pod_addresses(APP).unwrap();
    let vip = lab.substitute("${vip:shop/web}").unwrap();
    let vip6 = lab.substitute("${vip6:shop/web}").unwrap();
    Envoy {
        lab,
        pod: WAYPOINT,
        config: include_str!("interop/waypoint.yaml"),
        own: id("infra", "waypoint"),
        values: vec![
            ("@VIP@", format!("{vip}:80\", \"[{vip6}]:80")),
            ("@TARGET@", format!("{}:5000", app.v4)),
            ("@PEER@", app.v4.to_string()),
            ("@IDENTITY@", id("shop", "app").to_string()),
        ],
    }
}

/// What `culvert` prints on the client's node.
fn culvert(lab: &Lab, args: &[&str]) -> String {
    let command: Vec<String> = [&["culvert"], args].concat().into_iter().map(str::to_owned).collect();
    String::from_utf8_lossy(&lab.run_on("n2", &command, LIMIT).unwrap().stdout).into_owned()
}

/// An ALLOW policy that names the client, and so neither the waypoint nor the other client.
const ALLOW_CLIENT: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-client, namespace: shop}
spec: {selector: {matchLabels: {app: app}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/default]}}]}]}
"#;

#[test]
fn a_policy_that_forgets_the_waypoint_is_503_unless_waypoints_are_allowed_by_themselves() {
    let Some(program) = envoy() else {
        eprintln!("skipped: there is no Envoy; `cargo xtask test` installs it");
        return;
    };
    const NAME: &str = "infra/istio_allow_waypoint_infra_waypoint";
    for (args, status) in [(&[][..], "status=503"), (&["--auto-allow-waypoint"], "status=200")] {
        let mut lab = lab(args);
        let app = lab.pod_addresses(APP).unwrap();
        let direct = format!("http://{}:5000/", app.v4);
        waypoint(&lab).start(&program);
        let named = culvert(&lab, &["policies"]).contains(NAME.split_once('/').unwrap().1);
        assert_eq!(named, !args.is_empty());
        if !args.is_empty() {
            // Before there is any other policy: whoever does not come through the waypoint is refused.
            expect(&lab, CLIENT, &direct, &["curl: (7)"]);
            let explained = culvert(&lab, &["explain", CLIENT, &format!("{}:5000", app.v4)]);
            assert!(explained.contains("REFUSED") && explained.contains(&format!("[{NAME}]")), "{explained}");
        }
        expect(&lab, CLIENT, "http://web.shop/echo", &["x-waypoint", "status=200"]);
        lab.apply(ALLOW_CLIENT).unwrap();
        // Past the waypoint the client may have the app, and through it only if the waypoint may.
        expect(&lab, CLIENT, &direct, &["status=200"]);
        expect(&lab, CLIENT, "http://web.shop/echo", &[status]);
        // The waypoint's own rules come first: it knows who asks.
        expect(&lab, STRANGER, "http://web.shop/echo", &["RBAC: access denied", "status=403"]);
        expect(&lab, STRANGER, &direct, &["curl: (7)"]);
        let identity = id("infra", "waypoint").to_string();
        let explained = culvert(&lab, &["explain", &identity, &format!("{}:5000", app.v4)]);
        assert_eq!(explained.contains("ALLOWED"), !args.is_empty(), "{explained}");
        assert_eq!(explained.contains(NAME), !args.is_empty(), "{explained}");
        lab.stop().unwrap();
    }
}

#[test]
fn traffic_for_a_service_goes_through_its_envoy_waypoint() {
    let Some(program) = envoy() else {
        eprintln!("skipped: there is no Envoy; `cargo xtask test` installs it");
        return;
    };
    let mut lab = lab(&[]);
    let app = lab.pod_addresses(APP).unwrap();
    let vip = lab.substitute("${vip:shop/web}").unwrap();
    let vip6 = lab.substitute("${vip6:shop/web}").unwrap();
    // Without an instance that answers nothing gets past the waypoint.
    let direct = format!("http://{}:5000/", app.v4);
    expect(&lab, CLIENT, &direct, &["status=200"]);
    assert!(curl(&lab, CLIENT, &format!("http://{vip}/")).contains("status=000"));
    waypoint(&lab).start(&program);
    // By both families, for both nodes: the client's is another than the app's.
    for host in [vip.clone(), format!("[{vip6}]"), "web.shop".to_owned()] {
        expect(&lab, CLIENT, &format!("http://{host}/echo"), &["x-waypoint", "status=200"]);
        expect(&lab, CLIENT, &format!("http://{host}/admin"), &["RBAC: access denied", "status=403"]);
    }
    // By the pod's own address no waypoint is in the way: it is for services.
    expect(&lab, CLIENT, &format!("{direct}admin"), &["status=200"]);

    // Only the waypoint may have the app: its identity is what the app's node sees.
    lab.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only-waypoint, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: app}}, rules: [{from: [{source: {principals: [cluster.local/ns/infra/sa/waypoint]}}]}]}",
    )
    .unwrap();
    expect(&lab, CLIENT, &direct, &["curl: (7)"]);
    expect(&lab, CLIENT, "http://web.shop/echo", &["x-waypoint", "status=200"]);
    let seen = lab.flows();
    let through =
        |flow: &culvert_lab::lab::FlowRecord| flow.reason.contains("waypoint") && flow.path == "tunnel";
    assert!(seen.iter().any(through), "{seen:#?}");
    let services = culvert(&lab, &["services"]);
    assert!(services.contains("infra/waypoint"), "{services}");
    let explained = culvert(&lab, &["explain", CLIENT, "shop/web:80"]);
    assert!(
        explained.contains("tunnel: through waypoint infra/waypoint; its policies decide"),
        "{explained}"
    );
    assert_eq!(explained.matches("verdict").count(), 1, "{explained}");
    lab.stop().unwrap();
}
