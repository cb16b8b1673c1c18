use std::fs;
use std::path::Path;

use super::*;

const SHOP: &str = "# the shop\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop # sells\n  labels: {istio.io/dataplane-mode: ambient}\n---\n\
                    apiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n";

/// The Service and a pod of waypoint `w`.
fn served(ready: bool) -> String {
    let status = if ready { "True" } else { "False" };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: w, namespace: shop, labels: {{gateway.networking.k8s.io/gateway-name: w}}}}\n\
         spec: {{clusterIP: 10.96.0.9, selector: {{gateway.networking.k8s.io/gateway-name: w}}, ports: [{{port: 15008}}]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: w-0, namespace: shop, labels: {{gateway.networking.k8s.io/gateway-name: w}}}}\n\
         status: {{podIP: 10.0.0.9, conditions: [{{type: Ready, status: \"{status}\"}}]}}\n"
    )
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn with(files: &[(&str, &str)]) -> Self {
        let dir = Self(tempfile::tempdir().expect("a folder"));
        files.iter().for_each(|(name, text)| dir.write(name, text));
        dir
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).expect("written");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).expect("a file")
    }

    fn folder(&self) -> Folder {
        Folder::read(self.path(), "cluster.local").expect("a folder")
    }

    fn apply(&self, wanted: &Wanted, enroll: bool) -> anyhow::Result<()> {
        let folder = self.folder();
        let mut staged = Staged::new(&folder);
        staged.apply(wanted, "shop")?;
        if enroll {
            staged.enroll("shop", &wanted.name)?;
        }
        staged.write()
    }

    fn state(&self) -> State {
        self.folder().states(Some("shop")).remove(0)
    }
}

fn wanted() -> Wanted {
    Wanted { namespace: None, name: "w".to_owned(), traffic: None, revision: None }
}

#[test]
fn a_manifest_is_istioctls() {
    let all = Wanted {
        namespace: Some("shop".to_owned()),
        traffic: Some(TrafficType::All),
        revision: Some("canary".to_owned()),
        ..wanted()
    };
    assert_eq!(
        all.manifest(),
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  labels:\n    istio.io/rev: canary\n    \
         istio.io/waypoint-for: all\n  name: w\n  namespace: shop\nspec:\n  gatewayClassName: istio-waypoint\n  listeners:\n  \
         - name: mesh\n    port: 15008\n    protocol: HBONE\n"
    );
    assert!(!wanted().manifest().contains("labels") && !wanted().manifest().contains("namespace:"));
}

#[test]
fn a_waypoint_gets_its_address_once_somebody_serves_it() {
    let dir = Dir::with(&[("shop.yaml", SHOP)]);
    dir.apply(&wanted(), false).expect("applied");
    let state = dir.state();
    assert_eq!((state.programmed, state.reason.as_str()), (false, "AddressNotAssigned"));
    assert!(state.message.contains("has no Service shop/w; add it"), "{}", state.message);

    dir.write("w.yaml", &served(false));
    dir.apply(&wanted(), false).expect("applied");
    assert!(dir.state().message.contains("none of the 1 pods"), "{}", dir.state().message);
    assert!(!dir.read("gateway_shop_w.yaml").contains("status"));

    dir.write("w.yaml", &served(true));
    assert!(dir.state().message.contains("write them with: culvert waypoint apply -n shop"));
    dir.apply(&wanted(), false).expect("applied");
    assert!(
        dir.read("gateway_shop_w.yaml")
            .ends_with("status:\n  addresses:\n  - type: Hostname\n    value: w.shop.svc.cluster.local\n")
    );
    let state = dir.state();
    assert!(state.programmed, "{state:?}");
    assert!(
        state.message.ends_with("service(s) w.shop.svc.cluster.local:15008 with 1 ready endpoint"),
        "{state:?}"
    );

    // It keeps the address, as in a cluster, and says that nobody is there.
    dir.write("w.yaml", &served(false));
    dir.apply(&wanted(), false).expect("applied");
    let state = dir.state();
    assert_eq!((state.programmed, state.reason.as_str()), (false, "NoEndpoints"));
    assert!(state.message.contains("none of the 1 pods of Service shop/w is ready"), "{}", state.message);
}

#[test]
fn what_is_applied_twice_is_not_written_twice() {
    let dir = Dir::with(&[("shop.yaml", SHOP), ("w.yaml", &served(true))]);
    dir.apply(&wanted(), true).expect("applied");
    let stamp =
        |name: &str| fs::metadata(dir.path().join(name)).and_then(|meta| meta.modified()).expect("a file");
    let (before, files) = (stamp("gateway_shop_w.yaml"), ["gateway_shop_w.yaml", "shop.yaml"]);
    let texts = files.map(|name| dir.read(name));
    dir.apply(&wanted(), true).expect("applied");
    assert_eq!((stamp("gateway_shop_w.yaml"), files.map(|name| dir.read(name))), (before, texts));
    assert_eq!(dir.read("shop.yaml"), SHOP.replace("{istio", "{istio.io/use-waypoint: w, istio"));
}

#[test]
fn a_gateway_that_is_there_keeps_what_else_it_has() {
    let own = "# ours\nkind: Gateway\napiVersion: gateway.networking.k8s.io/v1\nmetadata: {name: w, namespace: shop}\nspec:\n  \
               gatewayClassName: istio-waypoint\n  listeners: [{name: mesh, port: 15008, protocol: HBONE}] # HBONE\n";
    let dir = Dir::with(&[("all.yaml", &format!("{SHOP}---\n{own}---\n# tail\n"))]);
    dir.write("w.yaml", &served(true));
    let all = Wanted { traffic: Some(TrafficType::All), ..wanted() };
    dir.apply(&all, true).expect("applied");
    let shop = SHOP.replace("{istio", "{istio.io/use-waypoint: w, istio");
    let own = own.replace("{name: w", "{labels: {istio.io/waypoint-for: all}, name: w");
    let status = "status:\n  addresses:\n  - type: Hostname\n    value: w.shop.svc.cluster.local\n";
    assert_eq!(dir.read("all.yaml"), format!("{shop}---\n{own}{status}---\n# tail\n"));
    // Without the flag the traffic type stays.
    dir.apply(&wanted(), false).expect("applied");
    assert_eq!(dir.state().traffic_type, "all");
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    let edge = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: shop}\n\
                spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}\n";
    let elsewhere = SHOP.replace("{istio", "{istio.io/use-waypoint-namespace: infra, istio");
    let aliased = "apiVersion: v1\nkind: List\nitems:\n\
                   - {apiVersion: v1, kind: Namespace, metadata: {name: web, labels: &l {a: b}}}\n\
                   - {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: *l}}\n";
    for (text, part) in [
        (edge, "is there and no waypoint"),
        (&elsewhere, "would mean infra/w"),
        (aliased, "write by hand:\n  metadata:\n    labels:\n      istio.io/use-waypoint: w\n"),
        ("a: [1\n", "correct the file first"),
    ] {
        let dir = Dir::with(&[("x.yaml", text)]);
        let error = dir.apply(&wanted(), true).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(dir.read("x.yaml"), text);
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1, "{part}");
    }
}

#[test]
fn a_namespace_that_is_not_there_is_added() {
    let dir = Dir::with(&[]);
    dir.apply(&wanted(), true).expect("applied");
    assert_eq!(
        dir.read("namespace_shop.yaml"),
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  labels:\n    istio.io/use-waypoint: w\n  name: shop\n"
    );
    assert_eq!(dir.folder().users("shop", "w"), ["Namespace shop"]);
}

#[test]
fn the_status_of_a_cluster_counts_where_it_denies() {
    let dir = Dir::with(&[("w.yaml", &served(true))]);
    dir.apply(&wanted(), false).expect("applied");
    let condition =
        "  conditions: [{type: Programmed, status: \"False\", reason: Invalid, message: not so}]\n";
    dir.write("gateway_shop_w.yaml", &(dir.read("gateway_shop_w.yaml") + condition));
    let state = dir.state();
    assert_eq!(
        (state.programmed, state.reason.as_str(), state.message.as_str()),
        (false, "Invalid", "not so")
    );
    // What it affirms has to be true.
    dir.write("gateway_shop_w.yaml", &dir.read("gateway_shop_w.yaml").replace("False", "True"));
    assert!(dir.state().programmed);
    fs::remove_file(dir.path().join("w.yaml")).expect("removed");
    assert_eq!(dir.state().reason, "NoEndpoints");
}

#[test]
fn the_younger_of_two_files_counts() {
    let old = Wanted { namespace: Some("shop".to_owned()), traffic: Some(TrafficType::All), ..wanted() };
    let new = Wanted { traffic: Some(TrafficType::Workload), ..old.clone() };
    let dir = Dir::with(&[("a.yaml", &new.manifest()), ("b.yaml", &old.manifest())]);
    let file = fs::File::open(dir.path().join("b.yaml")).expect("a file");
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("dated");
    assert_eq!(dir.state().traffic_type, "workload");
    dir.apply(&Wanted { revision: Some("r".to_owned()), ..wanted() }, false).expect("applied");
    assert!(dir.read("a.yaml").contains("istio.io/rev: r") && dir.read("b.yaml") == old.manifest());
}
