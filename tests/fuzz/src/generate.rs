//! Policies of every shape, from the fuzzer's bytes: mostly words that meet each other, sometimes any text.

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use serde_json::{Value, json};

/// Two policies of each kind or more, and the namespaces and pods that they may select.
#[derive(Arbitrary, Debug)]
pub struct Mesh {
    policies: Vec<Authorization>,
    authentications: Vec<Authentication>,
    /// An account or a label that the fixed pods do not have.
    stranger: Option<Pod>,
}

impl Mesh {
    /// Each object as the text of a file of its own. Six pods are always there.
    pub fn documents(&self) -> Vec<String> {
        let spots = [Space::A, Space::B, Space::Root].into_iter().flat_map(|ns| [(ns, "x"), (ns, "y")]);
        let pods = spots.enumerate().map(|(n, (space, app))| pod(space.text(), app, app, n));
        let stranger =
            self.stranger.iter().map(|p| pod(p.space.text(), &p.account.text(), &p.app.text(), 99));
        let policies = self.policies.iter().take(4).enumerate().map(|(n, p)| p.object(n));
        let authentications = self.authentications.iter().take(4).enumerate().map(|(n, p)| p.object(n));
        pods.chain(stranger).chain(policies).chain(authentications).map(|object| text(&object)).collect()
    }
}

/// JSON that is YAML as well, which wants these characters escaped.
fn text(object: &Value) -> String {
    let mut text = String::new();
    for c in object.to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                text += &format!("\\u{:04x}", u32::from(c));
            }
            _ => text.push(c),
        }
    }
    text
}

fn pod(namespace: &str, account: &str, app: &str, n: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("pod-{n}"), "namespace": namespace,
            "labels": {"app": app, "istio.io/dataplane-mode": "ambient"},
        },
        "spec": {"serviceAccountName": account},
        "status": {"podIPs": [{"ip": format!("10.0.0.{n}")}, {"ip": format!("fd00::{n}")}]},
    })
}

#[derive(Arbitrary, Debug)]
struct Pod {
    space: Space,
    account: Word,
    app: Word,
}

#[derive(Arbitrary, Debug)]
struct Authorization {
    space: Space,
    action: Option<Action>,
    selector: Option<Word>,
    waypoint: bool,
    dry_run: Option<Flag>,
    rules: Option<Vec<Rule>>,
}

#[derive(Arbitrary, Debug)]
struct Rule {
    from: Option<Vec<Source>>,
    to: Option<Vec<Operation>>,
    when: Option<Vec<Condition>>,
}

#[derive(Arbitrary, Debug)]
struct Source {
    principals: Vec<Principal>,
    not_principals: Vec<Principal>,
    namespaces: Vec<Word>,
    not_namespaces: Vec<Word>,
    service_accounts: Vec<Account>,
    not_service_accounts: Vec<Account>,
    ip_blocks: Vec<Block>,
    not_ip_blocks: Vec<Block>,
    other: Option<(Unseen, Word)>,
}

#[derive(Arbitrary, Debug)]
struct Operation {
    ports: Vec<Port>,
    not_ports: Vec<Port>,
    methods: Vec<Word>,
}

#[derive(Arbitrary, Debug)]
struct Condition {
    key: Key,
    values: Vec<Word>,
    not_values: Vec<Word>,
}

#[derive(Arbitrary, Debug)]
struct Authentication {
    space: Space,
    created: Option<u8>,
    selector: Option<Word>,
    mode: Option<Mode>,
    ports: Vec<(Port, Mode)>,
}

/// A type whose values are these texts, or any.
macro_rules! texts {
    ($name:ident { $($variant:ident = $text:expr,)* }) => {
        #[derive(Arbitrary, Debug, Clone)]
        enum $name { $($variant,)* Any(String) }

        impl $name {
            fn text(&self) -> String {
                match self {
                    $(Self::$variant => $text.to_owned(),)*
                    Self::Any(text) => text.clone(),
                }
            }
        }
    };
}

texts!(Word {
    A = "a",
    Address = "10.0.0.1",
    B = "b",
    Block = "10.0.0.0/31",
    Middle = "a*b",
    Port = "80",
    Prefix = "ro*",
    Principal = "td/ns/a/sa/x",
    Root = "root",
    Star = "*",
    Suffix = "*t",
    X = "x",
    Y = "y",
});
texts!(Principal {
    Account = "*/sa/y",
    Exact = "td/ns/a/sa/x",
    Namespace = "td/ns/b/*",
    Other = "other/*",
    Root = "td/ns/root/sa/x",
    Scheme = "spiffe://td/ns/a/sa/x",
    Star = "*",
});
texts!(Account { Here = "x", InA = "a/x", InB = "b/y", None = "b/none", });
texts!(Block { All = "0.0.0.0/0", One = "10.0.0.1", Ten = "10.0.0.0/8", V6 = "fd00::/8", });
texts!(Port { Eighty = "80", EightyOne = "81", Last = "65535", Low = "1", Web = "8080", });
texts!(Action { Allow = "ALLOW", Audit = "AUDIT", Custom = "CUSTOM", Deny = "DENY", });
texts!(Mode { Disable = "DISABLE", Permissive = "PERMISSIVE", Strict = "STRICT", Unset = "UNSET", });
texts!(Flag { No = "false", Yes = "true", });
texts!(Key {
    DestinationIp = "destination.ip",
    DestinationPort = "destination.port",
    Header = "request.headers[x]",
    SourceIp = "source.ip",
    SourceNamespace = "source.namespace",
    SourcePrincipal = "source.principal",
});
texts!(Unseen { Domains = "trustDomains", NotRemote = "notRemoteIpBlocks", Principals = "requestPrincipals", });

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Space {
    A,
    B,
    Root,
}

impl Space {
    fn text(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::Root => "root",
        }
    }
}

/// `map[name] = values`, unless there are none.
macro_rules! fill {
    ($map:ident, $($name:literal = $list:expr),* $(,)?) => {
        $(if !$list.is_empty() {
            $map.insert($name.to_owned(), $list.iter().map(|item| item.text()).collect());
        })*
    };
}

fn selector(app: &Word) -> Value {
    json!({"matchLabels": {"app": app.text()}})
}

impl Authorization {
    fn object(&self, n: usize) -> Value {
        let mut spec = serde_json::Map::new();
        if let Some(action) = &self.action {
            spec.insert("action".to_owned(), action.text().into());
        }
        if let Some(app) = &self.selector {
            spec.insert("selector".to_owned(), selector(app));
        }
        if self.waypoint {
            spec.insert("targetRefs".to_owned(), json!([{"kind": "Service", "name": "s"}]));
        }
        if let Some(rules) = &self.rules {
            spec.insert("rules".to_owned(), rules.iter().take(3).map(Rule::value).collect());
        }
        let annotations: Value = self.dry_run.iter().map(|f| ("istio.io/dry-run", f.text())).collect();
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": format!("p{n}"), "namespace": self.space.text(), "annotations": annotations},
            "spec": spec,
        })
    }
}

impl Rule {
    fn value(&self) -> Value {
        let mut rule = serde_json::Map::new();
        if let Some(from) = &self.from {
            rule.insert("from".to_owned(), from.iter().map(|s| json!({"source": s.value()})).collect());
        }
        if let Some(to) = &self.to {
            rule.insert("to".to_owned(), to.iter().map(|o| json!({"operation": o.value()})).collect());
        }
        if let Some(when) = &self.when {
            rule.insert("when".to_owned(), when.iter().map(Condition::value).collect());
        }
        rule.into()
    }
}

impl Source {
    fn value(&self) -> Value {
        let mut source = serde_json::Map::new();
        fill!(
            source,
            "principals" = self.principals,
            "notPrincipals" = self.not_principals,
            "namespaces" = self.namespaces,
            "notNamespaces" = self.not_namespaces,
            "serviceAccounts" = self.service_accounts,
            "notServiceAccounts" = self.not_service_accounts,
            "ipBlocks" = self.ip_blocks,
            "notIpBlocks" = self.not_ip_blocks,
        );
        if let Some((field, value)) = &self.other {
            source.insert(field.text(), json!([value.text()]));
        }
        source.into()
    }
}

impl Operation {
    fn value(&self) -> Value {
        let mut operation = serde_json::Map::new();
        fill!(operation, "ports" = self.ports, "notPorts" = self.not_ports, "methods" = self.methods);
        operation.into()
    }
}

impl Condition {
    fn value(&self) -> Value {
        let mut condition = serde_json::Map::new();
        condition.insert("key".to_owned(), self.key.text().into());
        fill!(condition, "values" = self.values, "notValues" = self.not_values);
        condition.into()
    }
}

impl Authentication {
    fn object(&self, n: usize) -> Value {
        let mut spec = serde_json::Map::new();
        if let Some(app) = &self.selector {
            spec.insert("selector".to_owned(), selector(app));
        }
        if let Some(mode) = &self.mode {
            spec.insert("mtls".to_owned(), json!({"mode": mode.text()}));
        }
        let ports: serde_json::Map<String, Value> =
            self.ports.iter().map(|(port, mode)| (port.text(), json!({"mode": mode.text()}))).collect();
        if !ports.is_empty() {
            spec.insert("portLevelMtls".to_owned(), ports.into());
        }
        let created = self.created.map(|day| format!("2026-01-{:02}T00:00:00Z", day % 31 + 1));
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": format!("m{n}"), "namespace": self.space.text(), "creationTimestamp": created},
            "spec": spec,
        })
    }
}
