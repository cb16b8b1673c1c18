//! `culvert waypoint`, as a user runs it.

#![expect(clippy::expect_used, reason = "a test's helpers say what they expect by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

const SHOP: &str = "# The shop.\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    # in the mesh\n    \
                    istio.io/dataplane-mode: ambient\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: web}   # not yet\n";

const SERVED: &str = "\
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {clusterIP: 10.96.0.9, selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{name: mesh, port: 15008}]}
---
apiVersion: v1
kind: Pod
metadata: {name: waypoint-0, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
status: {podIP: 10.244.1.9}
";

/// Runs it beside a folder `m` of manifests: standard output, standard error and exit status.
fn run(dir: &Path, args: &str) -> (String, String, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.current_dir(dir).arg("waypoint").args(args.split(' '));
    let out = command.output().expect("culvert runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (text(&out.stdout), text(&out.stderr), out.status.code().expect("it ends by itself"))
}

#[track_caller]
fn prints(dir: &Path, args: &str, stdout: &str, stderr: &str, code: i32) {
    assert_eq!(run(dir, args), (stdout.to_owned(), stderr.to_owned(), code), "{args}");
}

fn shop() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir(dir.path().join("m")).expect("a folder");
    fs::write(dir.path().join("m/shop.yaml"), SHOP).expect("written");
    dir
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join("m").join(name)).expect("a manifest")
}

#[test]
fn generate_prints_what_istioctl_does() {
    let dir = shop();
    let spec = "spec:\n  gatewayClassName: istio-waypoint\n  listeners:\n  - name: mesh\n    port: 15008\n    protocol: HBONE\n";
    let head = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n";
    prints(dir.path(), "generate", &format!("{head}  name: waypoint\n{spec}"), "", 0);
    prints(
        dir.path(),
        "generate --name l7 --for workload --revision canary -n shop",
        &format!(
            "{head}  labels:\n    istio.io/rev: canary\n    istio.io/waypoint-for: workload\n  name: l7\n  namespace: shop\n{spec}"
        ),
        "",
        0,
    );
    for (args, part) in [
        ("generate --for http", "invalid traffic type: http. Valid options are: [all none service workload]"),
        ("generate --name none", "a waypoint cannot be called none"),
        ("generate --name ../x", "write lower-case letters"),
        ("apply -n ../x", "write lower-case letters"),
    ] {
        let (stdout, stderr, code) = run(dir.path(), args);
        assert!(stdout.is_empty() && stderr.contains(part) && code == 2, "{args}: {stderr}");
    }
}

#[test]
fn a_waypoint_comes_is_served_and_goes() {
    let dir = shop();
    let dir = dir.path();
    prints(dir, "list -A --manifests m", "No waypoints found.\n", "", 0);
    prints(
        dir,
        "apply -n shop --enroll-namespace --manifests m",
        "✅ waypoint shop/waypoint applied\n✅ namespace shop labeled with \"istio.io/use-waypoint: waypoint\"\n",
        "No agent uses it yet: m has no Service shop/waypoint; add it, with port 15008, and its pods. Then write its address into the \
         Gateway with culvert waypoint apply (--wait waits for it).\n",
        0,
    );
    let enrolled = SHOP.replace("  labels:\n", "  labels:\n    istio.io/use-waypoint: waypoint\n");
    assert_eq!(read(dir, "shop.yaml"), enrolled);
    prints(
        dir,
        "list -A --manifests m",
        "NAMESPACE     NAME         REVISION     TRAFFIC TYPE     PROGRAMMED\n\
         shop          waypoint     default      none             False\n",
        "",
        0,
    );
    let (stdout, stderr, code) = run(dir, "apply -n shop --wait --waypoint-timeout 1s --manifests m");
    assert_eq!((stdout.as_str(), code), ("✅ waypoint shop/waypoint applied\n", 1));
    assert!(
        stderr
            .starts_with("culvert: timed out while waiting for waypoint shop/waypoint: AddressNotAssigned: "),
        "{stderr}"
    );

    fs::write(dir.join("m/waypoint.yaml"), SERVED).expect("written");
    prints(
        dir,
        "apply -n shop --wait --manifests m",
        "✅ waypoint shop/waypoint applied\n✅ waypoint shop/waypoint is ready!\n",
        "",
        0,
    );
    let gateway = read(dir, "gateway_shop_waypoint.yaml");
    prints(dir, "apply -n shop --manifests m", "✅ waypoint shop/waypoint applied\n", "", 0);
    assert_eq!(read(dir, "gateway_shop_waypoint.yaml"), gateway);
    prints(
        dir,
        "status waypoint -n shop --manifests m",
        "NAME         STATUS     TYPE           REASON         MESSAGE\n\
         waypoint     True       Programmed     Programmed     Resource programmed, assigned to service(s) \
         waypoint.shop.svc.cluster.local:15008 with 1 ready endpoint\n",
        "",
        0,
    );
    let json: serde_json::Value =
        serde_json::from_str(&run(dir, "list -A -o json --manifests m").0).expect("JSON");
    assert_eq!((&json[0]["name"], &json[0]["programmed"]), (&"waypoint".into(), &true.into()));

    prints(
        dir,
        "delete waypoint -n shop --manifests m",
        "waypoint shop/waypoint deleted\n",
        "Its name is still in the labels of Namespace shop: they have no waypoint now.\n",
        0,
    );
    let mut left: Vec<_> = fs::read_dir(dir.join("m"))
        .expect("a folder")
        .map(|entry| entry.expect("a file").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["shop.yaml", "waypoint.yaml"]);
}

#[test]
fn a_namespace_that_has_a_waypoint_keeps_it_unless_told_otherwise() {
    let dir = shop();
    let dir = dir.path();
    let not_ambient = "⚠️ Warning: namespace is not enrolled in ambient. Consider running\t`kubectl label namespace web \
                       istio.io/dataplane-mode=ambient`\n";
    let (stdout, _, code) = run(dir, "apply -n web --enroll-namespace --manifests m");
    assert!(stdout.starts_with(not_ambient) && code == 0, "{stdout}");
    let before = read(dir, "shop.yaml");
    prints(
        dir,
        "apply -n web --name other --enroll-namespace --manifests m",
        "⚠️ Warning: namespace (web) already has an enrolled Waypoint. Consider adding the `--overwrite` flag to your apply command.\n",
        "",
        0,
    );
    assert_eq!(read(dir, "shop.yaml"), before);
    assert!(!dir.join("m/gateway_web_other.yaml").exists(), "nothing is applied");
    let (stdout, _, code) =
        run(dir, "apply -n web --name other --enroll-namespace --overwrite --manifests m");
    assert!(
        stdout.contains("✅ namespace web labeled with \"istio.io/use-waypoint: other\"\n") && code == 0,
        "{stdout}"
    );
    let other = SHOP.replace("{name: web}", "{labels: {istio.io/use-waypoint: other}, name: web}");
    assert_eq!(read(dir, "shop.yaml"), other);
}

#[test]
fn delete_takes_what_is_meant() {
    let dir = shop();
    let dir = dir.path();
    for name in ["a", "b", "c"] {
        let revision = if name == "a" { "default" } else { "canary" };
        run(dir, &format!("apply -n shop --name {name} -r {revision} --manifests m"));
    }
    // Two in one file, with something between them.
    let [b, c] = ["b", "c"].map(|name| read(dir, &format!("gateway_shop_{name}.yaml")));
    for name in ["b", "c"] {
        fs::remove_file(dir.join(format!("m/gateway_shop_{name}.yaml"))).expect("removed");
    }
    fs::write(
        dir.join("m/both.yaml"),
        format!("{b}---\n# stays\n{{apiVersion: v1,   kind: Namespace, metadata: {{name: x}}}}\n---\n{c}"),
    )
    .expect("written");
    prints(dir, "delete -n shop x --manifests m", "", "culvert: waypoint shop/x not found\n", 1);
    prints(
        dir,
        "delete -n shop -r canary --manifests m",
        "waypoint shop/b deleted\nwaypoint shop/c deleted\n",
        "",
        0,
    );
    assert_eq!(
        read(dir, "both.yaml"),
        "---\n# stays\n{apiVersion: v1,   kind: Namespace, metadata: {name: x}}\n"
    );
    prints(dir, "delete --all -n shop --manifests m", "waypoint shop/a deleted\n", "", 0);
    let (_, stderr, code) = run(dir, "delete --manifests m");
    assert!(stderr.starts_with("culvert: which waypoints?") && code == 1, "{stderr}");
}

#[test]
fn the_folder_has_to_be_named() {
    let dir = shop();
    for verb in ["apply", "list", "status", "delete x"] {
        let (stdout, stderr, code) = run(dir.path(), verb);
        assert!(stdout.is_empty() && code == 1, "{verb}");
        assert!(stderr.starts_with("culvert: --manifests DIR is missing: name the folder"), "{stderr}");
    }
}
