//! `culvert analyze`, as a user runs it.

#![expect(clippy::expect_used, reason = "a test's helpers say what they expect by panicking")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Deserialize;

fn culvert(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.current_dir(dir).arg("analyze").args(args);
    command
}

fn run(args: &[&str]) -> Output {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/analyze");
    culvert(&dir, args).output().expect("culvert runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn a_folder_with_mistakes_gets_a_line_for_each() {
    let out = run(&["shop"]);
    assert_eq!(text(&out.stdout), include_str!("analyze/shop.txt"));
    assert_eq!(
        text(&out.stderr),
        "culvert: Analyzers found issues when analyzing shop.\n\
         `culvert analyze --list-codes` says what the codes mean.\n"
    );
    assert_eq!(out.status.code(), Some(1));
}

#[test]
fn waypoints_and_what_needs_them_are_judged() {
    let out = run(&["waypoints"]);
    assert_eq!(text(&out.stdout), include_str!("analyze/waypoints.txt"));
    assert_eq!(out.status.code(), Some(1));
}

#[test]
fn the_threshold_and_the_namespace_decide_the_exit_status() {
    let apps = "shop/apps.yaml";
    assert_eq!(run(&[apps]).status.code(), Some(0));
    assert_eq!(run(&[apps, "--failure-threshold", "Warning"]).status.code(), Some(1));
    assert_eq!(run(&[apps, "--failure-threshold", "warning", "-n", "web"]).status.code(), Some(0));
    assert_eq!(run(&["shop", "-n", "web"]).status.code(), Some(1));
    assert_eq!(run(&["no-such-file"]).status.code(), Some(1));
}

#[test]
fn json_has_the_fields_of_istioctl() {
    let out = run(&["shop", "-o", "json", "-n", "web"]);
    let messages: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(messages[0]["code"], "IST0101");
    assert_eq!(messages[0]["level"], "Error");
    assert_eq!(messages[0]["origin"], "Namespace web");
    assert_eq!(messages[0]["reference"], "shop/mesh.yaml:11");
    assert!(messages[0]["message"].as_str().expect("a text").starts_with("Referenced Gateway not found"));
}

#[test]
fn standard_input_without_mistakes_is_clean() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut command = culvert(dir.path(), &["-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("culvert runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n").expect("written");
    drop(stdin);
    let out = child.wait_with_output().expect("culvert ends");
    assert_eq!(text(&out.stdout), "");
    assert_eq!(text(&out.stderr), "✔ No validation issues found when analyzing -.\n");
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn codes_are_listed() {
    let out = run(&["--list-codes"]);
    assert!(text(&out.stdout).contains("IST0127   Warning   NoMatchingWorkloadsFound"));
    assert_eq!(out.status.code(), Some(0));
}

/// Of a scenario, what is a manifest.
#[derive(Deserialize)]
struct Scenario {
    #[serde(default)]
    manifests: Vec<Manifest>,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Manifest {
    file: Option<PathBuf>,
    inline: Option<String>,
}

#[derive(Deserialize)]
struct Step {
    apply: Option<String>,
}

/// The state of a scenario after each of its steps that apply something: later objects replace earlier ones, and the
/// lab's own pods are not in it.
#[test]
fn no_scenario_has_an_error() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let mut states = 0;
    for entry in fs::read_dir(&dir).expect("scenarios") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let scenario = fs::read_to_string(&path).expect("a scenario");
        let scenario: Scenario = serde_saphyr::from_str(&scenario).expect("a scenario's fields");
        let mut manifests: Vec<String> = scenario
            .manifests
            .iter()
            .map(|manifest| match &manifest.file {
                Some(file) => fs::read_to_string(dir.join(file)).expect("a manifest"),
                None => manifest.inline.clone().unwrap_or_default(),
            })
            .collect();
        for step in scenario.steps.iter().filter_map(|step| step.apply.as_ref()) {
            states += 1;
            manifests.push(step.clone());
            assert_without_errors(&path, &manifests);
        }
        assert_without_errors(&path, &manifests);
    }
    assert!(states > 0, "no scenario applies anything");
}

fn assert_without_errors(scenario: &Path, manifests: &[String]) {
    let dir = tempfile::tempdir().expect("a folder");
    // The youngest comes first, because of doubles the first counts.
    for (n, text) in manifests.iter().rev().enumerate() {
        fs::write(dir.path().join(format!("{n:03}.yaml")), with_addresses(text)).expect("written");
    }
    let out = culvert(dir.path(), &["."]).output().expect("culvert runs");
    assert_eq!(out.status.code(), Some(0), "{}:\n{}", scenario.display(), text(&out.stdout));
}

/// `${pod:...}` and the like stand for addresses, which only a lab gives out.
fn with_addresses(text: &str) -> String {
    let mut parts = text.split("${");
    let mut written = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').expect("a closing brace");
        written += if name.split(':').next().is_some_and(|kind| kind.ends_with('6')) {
            "fd00::1"
        } else {
            "10.0.0.1"
        };
        written += rest;
    }
    written
}
