//! The scenario format: a contract with files from elsewhere. Unknown keys are errors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer};

use crate::lab::Placement;

/// A scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows, as a sentence.
    pub name: String,
    /// For readers.
    #[serde(default)]
    pub description: String,
    /// Node names.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Settings of all agents.
    #[serde(default)]
    pub agent: AgentSettings,
    /// Objects that are there from the start.
    #[serde(default)]
    pub manifests: Vec<Manifest>,
    /// Where pods run, and what runs in them.
    #[serde(default)]
    pub pods: Vec<PodPlacement>,
    /// What happens.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// The file it came from.
    #[serde(skip)]
    pub file: PathBuf,
}

/// `agent:` at the top.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    /// Extra arguments.
    #[serde(default)]
    pub args: Vec<String>,
}

/// One of `manifests`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// A file, relative to the scenario.
    pub file: Option<PathBuf>,
    /// YAML, one document or several.
    pub inline: Option<String>,
}

/// One of `pods`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodPlacement {
    /// `namespace/name`.
    pub pod: String,
    /// Node; else spec.nodeName, else any.
    #[serde(default)]
    pub node: Option<String>,
    /// Servers.
    #[serde(default)]
    pub serve: Vec<Serve>,
}

/// A server of a pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serve {
    /// HTTP on this port.
    pub http: Option<u16>,
    /// A TCP echo on this port.
    pub tcp: Option<u16>,
}

/// A step: one action, and what is expected of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the actions, as the format names them")]
pub struct Step {
    /// A title for the reader.
    #[serde(default)]
    pub name: Option<String>,
    pub probe: Option<Probe>,
    pub apply: Option<String>,
    pub delete: Option<String>,
    pub exec: Option<Exec>,
    pub run: Option<RunOn>,
    pub load: Option<Load>,
    pub stop: Option<String>,
    pub agent: Option<AgentAction>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub sleep: Option<Duration>,
    #[serde(default)]
    pub expect: Option<Expect>,
    /// How long the expectation may take to hold (default 5 s).
    #[serde(default, deserialize_with = "optional_duration")]
    pub within: Option<Duration>,
    /// How long it must then hold.
    #[serde(default, deserialize_with = "optional_duration")]
    pub stays: Option<Duration>,
}

/// A request from a pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys of the format")]
pub struct Probe {
    pub from: String,
    pub url: Option<String>,
    #[serde(default = "get")]
    pub method: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    pub tcp: Option<String>,
    #[serde(default, alias = "body")]
    pub send: String,
    #[serde(default, rename = "sendBytes")]
    pub send_bytes: u64,
    #[serde(default = "one")]
    pub count: u32,
    #[serde(default, deserialize_with = "optional_duration")]
    pub timeout: Option<Duration>,
}

/// A program in a pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The pod.
    #[serde(rename = "in")]
    pub pod: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// A program on a node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunOn {
    /// The node.
    pub on: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// Requests in the background.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys of the format")]
pub struct Load {
    pub id: String,
    pub from: String,
    pub url: Option<String>,
    pub tcp: Option<String>,
    #[serde(default)]
    pub send: String,
    #[serde(default = "one")]
    pub connections: u32,
    /// Requests a second, of all connections together.
    #[serde(default = "hundred")]
    pub rate: f64,
    #[serde(default)]
    pub new_connection_each: bool,
}

/// What happens to an agent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentAction {
    /// The node.
    pub on: String,
    /// `kill`, `stop`, `start`, `restart`.
    #[serde(rename = "do")]
    pub action: String,
}

/// What is expected of a step.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys of the format")]
pub struct Expect {
    #[serde(default)]
    pub status: Option<OneOrMany<u16>>,
    pub error: Option<String>,
    pub reason: Option<String>,
    pub policy: Option<String>,
    pub body: Option<Text>,
    #[serde(default)]
    pub bodies: BTreeMap<String, String>,
    pub reply: Option<String>,
    pub path: Option<String>,
    pub peer: Option<String>,
    pub source: Option<String>,
    pub exit: Option<i32>,
    pub stdout: Option<Text>,
    pub stderr: Option<Text>,
    pub failed: Option<Count>,
    pub requests: Option<Count>,
    /// As the step's own `within`.
    #[serde(default, deserialize_with = "optional_duration")]
    pub within: Option<Duration>,
    /// As the step's own `stays`.
    #[serde(default, deserialize_with = "optional_duration")]
    pub stays: Option<Duration>,
}

/// One value or several of which one must fit.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

/// A text that must be contained, or lists of what must and must not.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// Must be contained.
    Plain(String),
    /// More than that.
    Full(TextMatch),
}

/// `{contains: …, not: …}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextMatch {
    /// All must be contained.
    #[serde(default)]
    pub contains: Option<OneOrMany<String>>,
    /// None may be.
    #[serde(default)]
    pub not: Option<OneOrMany<String>>,
}

/// A number, or a bound such as `">100"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Count {
    /// Exactly.
    Number(u64),
    /// `>`, `>=`, `<`, `<=` and a number.
    Bound(String),
}

impl Text {
    /// Replaces each of its texts.
    pub(crate) fn try_map(&mut self, change: impl Fn(&str) -> Result<String>) -> Result<()> {
        let parts = match self {
            Self::Plain(text) => vec![text],
            Self::Full(full) => [&mut full.contains, &mut full.not]
                .into_iter()
                .flatten()
                .flat_map(|texts| match texts {
                    OneOrMany::One(text) => vec![text],
                    OneOrMany::Many(texts) => texts.iter_mut().collect(),
                })
                .collect(),
        };
        parts.into_iter().try_for_each(|part| {
            *part = change(part)?;
            Ok(())
        })
    }
}

fn get() -> String {
    "GET".to_owned()
}

fn one() -> u32 {
    1
}

fn hundred() -> f64 {
    100.0
}

fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    duration(&text).map(Some).map_err(serde::de::Error::custom)
}

/// `500ms`, `5s`, `1m`, or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let number: f64 =
        number.trim().parse().with_context(|| format!("{text:?} is no duration: write 500ms or 5s"))?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" | "" => number,
        "m" => number * 60.0,
        _ => bail!("{text:?} is no duration: the unit is ms, s or m"),
    };
    Duration::try_from_secs_f64(seconds).with_context(|| format!("{text:?} is no duration"))
}

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    ///
    /// Names the file, the line and the key.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&text, file)
    }

    /// Parses a scenario.
    ///
    /// # Errors
    ///
    /// As [`Scenario::read`].
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let mut scenario: Self =
            serde_saphyr::from_str(text).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
        scenario.file = file.to_owned();
        for (number, step) in scenario.steps.iter().enumerate() {
            step.check().with_context(|| format!("{}: step {}", file.display(), number + 1))?;
        }
        Ok(scenario)
    }

    /// The texts of all manifests, in order.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn manifest_texts(&self) -> Result<Vec<String>> {
        let base = self.file.parent().unwrap_or(Path::new("."));
        let mut texts = Vec::new();
        for manifest in &self.manifests {
            match (&manifest.file, &manifest.inline) {
                (Some(file), None) => {
                    let path = base.join(file);
                    let text = std::fs::read_to_string(&path);
                    texts.push(
                        text.with_context(|| {
                            format!("{}: manifest {}", self.file.display(), path.display())
                        })?,
                    );
                }
                (None, Some(inline)) => texts.push(inline.clone()),
                _ => bail!("{}: a manifest is either file or inline", self.file.display()),
            }
        }
        Ok(texts)
    }

    /// Placements by pod.
    pub fn placements(&self) -> BTreeMap<String, Placement> {
        let mut placements: BTreeMap<String, Placement> = BTreeMap::new();
        for pod in &self.pods {
            let placement = placements.entry(pod.pod.clone()).or_default();
            placement.node = pod.node.clone().unwrap_or_default();
            placement.http.extend(pod.serve.iter().filter_map(|s| s.http));
            placement.tcp.extend(pod.serve.iter().filter_map(|s| s.tcp));
        }
        placements
    }
}

impl Step {
    fn check(&self) -> Result<()> {
        let actions = [
            self.probe.is_some(),
            self.apply.is_some(),
            self.delete.is_some(),
            self.exec.is_some(),
            self.run.is_some(),
            self.load.is_some(),
            self.stop.is_some(),
            self.agent.is_some(),
            self.sleep.is_some(),
        ];
        if actions.iter().filter(|a| **a).count() != 1 {
            bail!("a step has exactly one of probe, apply, delete, exec, run, load, stop, agent, sleep");
        }
        let expecting =
            self.probe.is_some() || self.exec.is_some() || self.run.is_some() || self.stop.is_some();
        if self.expect.is_some() && !expecting {
            bail!("expect belongs to probe, exec, run and stop");
        }
        if let Some(probe) = &self.probe
            && probe.url.is_some() == probe.tcp.is_some()
        {
            bail!("a probe has either url or tcp");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_sample_is_read() {
        let text = r#"
name: strict mTLS keeps plaintext out
nodes: [n1, n2]
agent: {args: ["--same-node=direct"]}
manifests:
  - inline: |
      apiVersion: v1
      kind: Namespace
      metadata: {name: test}
pods:
  - {pod: hello/helloworld-v1, node: n1, serve: [{http: 5000}]}
  - {pod: hello/db, node: n2, serve: [{tcp: 9000}]}
  - {pod: test/curl, node: n2}
steps:
  - probe: {from: test/curl, url: "http://helloworld.hello.svc.cluster.local:5000/hello"}
    expect: {error: refused}
  - apply: |
      apiVersion: v1
      kind: Namespace
      metadata: {name: test, labels: {istio.io/dataplane-mode: ambient}}
  - probe: {from: test/curl, url: "http://helloworld.hello:5000/hello", method: GET, headers: {x-a: b}, count: 20}
    expect: {status: 200, path: tunnel, peer: "spiffe://cluster.local/ns/test/sa/default"}
  - probe: {from: test/curl, url: "http://reviews.hello:9080/", count: 100}
    expect: {bodies: {"v1": "70-90%", "v2": "10-30%"}}
  - probe: {from: test/curl, tcp: "${pod:hello/db}:9000", send: ping}
    expect: {reply: ping, source: "${pod:test/curl}"}
  - exec: {in: test/curl, command: [curl, -s, "http://helloworld.hello:5000/"]}
    expect: {exit: 0, stdout: {contains: [v1], not: [denied]}}
  - run: {on: n1, command: [culvert, workloads, -o, json]}
    expect: {exit: 0, stdout: {contains: ["helloworld-v1"]}}
  - load: {id: l1, from: test/curl, url: "http://helloworld.hello:5000/", connections: 8, rate: 200, new_connection_each: true}
  - agent: {on: n1, do: kill}
  - sleep: 500ms
  - stop: l1
    expect: {failed: 0, requests: ">100"}
    within: 10s
    stays: 2s
"#;
        let scenario = Scenario::parse(text, Path::new("sample.yaml")).unwrap();
        assert_eq!(scenario.steps.len(), 11);
        assert_eq!(scenario.placements()["hello/db"].tcp, [9000]);
        assert_eq!(scenario.steps[9].sleep, Some(Duration::from_millis(500)));
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| format!("{:#}", Scenario::parse(text, Path::new("x.yaml")).unwrap_err());
        assert!(error("name: a\nstep: []\n").contains("step"));
        let text = error("name: a\nsteps:\n- probe: {from: a/b, url: u}\n  expect: {stauts: 200}\n");
        assert!(text.contains("stauts") && text.contains("x.yaml"), "{text}");
        assert!(error("name: a\nsteps:\n- {expect: {exit: 0}}\n").contains("step 1"));
        assert!(error("name: a\nsteps:\n- {sleep: 5 apples}\n").contains("5 apples"));
    }
}
