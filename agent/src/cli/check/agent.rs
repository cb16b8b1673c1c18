//! What an agent says of itself, in `culvert dump`.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::finding::Finding;
use crate::identity::VERSION;

/// A certificate whose end is this near should have been renewed, unless it is a short-lived one.
const SOON: SignedDuration = SignedDuration::from_mins(10);

/// All that can be judged from a dump.
pub(super) fn of_dump(dump: &Value) -> Vec<Finding> {
    let checks: [fn(&Value) -> Vec<Finding>; 8] =
        [version, ready, pods, certificates, input, maps, events, neighbours];
    checks.iter().flat_map(|check| check(dump)).collect()
}

fn rows<'a>(dump: &'a Value, field: &str) -> &'a [Value] {
    dump[field].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or("")
}

fn version(dump: &Value) -> Vec<Finding> {
    let (theirs, node) = (text(dump, "version"), text(dump, "node"));
    let ours = env!("CARGO_PKG_VERSION");
    let detail = format!("version {theirs} on node {node}");
    vec![if theirs == ours {
        Finding::ok("agent", detail)
    } else {
        Finding::warning(
            "agent",
            format!("{detail}, and this is {VERSION}"),
            "use the culvert of the agent's own image",
        )
    }]
}

fn ready(dump: &Value) -> Vec<Finding> {
    let pending = rows(dump, "pending");
    if pending.is_empty() {
        return vec![Finding::ok("ready", "its state is in force")];
    }
    let wait = |what: &Value| {
        let what = what.as_str().unwrap_or("");
        Finding::error("ready", format!("waits for {what}"), "the agent's log says more: `culvert log debug`")
    };
    pending.iter().map(wait).collect()
}

fn pods(dump: &Value) -> Vec<Finding> {
    let pods = rows(dump, "pods");
    let enrolled = pods.iter().filter(|pod| text(pod, "state") == "enrolled");
    let mut findings = vec![Finding::ok("pods", format!("{} of {} enrolled", enrolled.count(), pods.len()))];
    for pod in pods.iter().filter(|pod| !text(pod, "reason").is_empty()) {
        let (name, reason) = (text(pod, "name"), text(pod, "reason"));
        if text(pod, "state") == "enrolled" {
            findings.push(Finding::warning("pods", format!("{name}: {reason}"), "docs/kernel.md"));
        } else {
            let remedy = "the agent tries again by itself; when the reason stays, mend it or set istio.io/dataplane-mode=none";
            findings.push(Finding::error("pods", format!("{name} is not in the mesh yet: {reason}"), remedy));
        }
    }
    findings
}

fn certificates(dump: &Value) -> Vec<Finding> {
    let certificates = rows(dump, "certificates");
    let findings: Vec<Finding> = certificates.iter().filter_map(certificate).collect();
    if findings.is_empty() {
        return vec![Finding::ok(
            "certificates",
            match certificates.len() {
                1 => "1 identity, valid".to_owned(),
                many => format!("{many} identities, all valid"),
            },
        )];
    }
    findings
}

fn certificate(row: &Value) -> Option<Finding> {
    let (identity, problem) = (text(row, "identity"), text(row, "error"));
    let remedy =
        "tunnels of this identity need it; the CA must be reachable: --ca-address, --ca-token, or --ca-dir";
    let because = if problem.is_empty() { String::new() } else { format!(": {problem}") };
    if row["valid"].as_bool() != Some(true) {
        return Some(Finding::error("certificates", format!("{identity} has no valid one{because}"), remedy));
    }
    let left = text(row, "not_after").parse::<Timestamp>().ok()?.duration_since(Timestamp::now());
    if problem.is_empty() && (left > SOON || fresh(row)) {
        return None;
    }
    let end = text(row, "not_after");
    Some(Finding::warning(
        "certificates",
        format!("{identity} ends at {end} and has not been renewed{because}"),
        remedy,
    ))
}

/// Its renewal is hardly due: that is begun before two thirds of its life are over.
fn fresh(row: &Value) -> bool {
    let moment = |field| text(row, field).parse::<Timestamp>().ok();
    let (Some(begin), Some(end)) = (moment("not_before"), moment("not_after")) else { return false };
    let (life, age) = (end.duration_since(begin), Timestamp::now().duration_since(begin));
    age.as_secs_f64() < life.as_secs_f64() * 0.7
}

fn input(dump: &Value) -> Vec<Finding> {
    let source = &dump["source"];
    let problems = rows(source, "problems");
    if problems.is_empty() {
        return vec![Finding::ok("input", "every object is in force")];
    }
    let tell = |problem: &Value| {
        let place = [text(problem, "file"), text(problem, "object"), text(problem, "field")];
        let place: Vec<&str> = place.into_iter().filter(|part| !part.is_empty()).collect();
        let detail = format!("{}: {}", place.join(" "), text(problem, "message"));
        Finding::error("input", detail, text(problem, "remedy"))
    };
    problems.iter().map(tell).collect()
}

fn maps(dump: &Value) -> Vec<Finding> {
    let maps = rows(dump, "maps");
    let high = maps.iter().filter(|map| map["high"].as_bool() == Some(true));
    let findings: Vec<Finding> = high
        .map(|map| {
            let name = text(map, "map");
            let detail = format!("{name} holds {} of {} entries", map["entries"], map["capacity"]);
            Finding::warning("maps", detail, format!("make room before it is full: --map-entries {name}=N"))
        })
        .collect();
    if findings.is_empty() {
        vec![Finding::ok("maps", format!("room in all {}", maps.len()))]
    } else {
        findings
    }
}

fn events(dump: &Value) -> Vec<Finding> {
    match dump["events_lost"].as_u64() {
        Some(0) => vec![Finding::ok("events", "none lost")],
        Some(lost) => vec![Finding::warning(
            "events",
            format!(
                "{lost} lost since the programs were first loaded: flow records, access log and istio_tcp_* metrics lack them"
            ),
            "give the agent more CPU: it reads them too slowly",
        )],
        None => Vec::new(),
    }
}

fn neighbours(dump: &Value) -> Vec<Finding> {
    let conflicts = rows(dump, "neighbours").iter().filter(|row| text(row, "level") == "conflict");
    let findings: Vec<Finding> = conflicts
        .map(|row| {
            let detail = format!(
                "{} ({} at {}): {}",
                text(row, "owner"),
                text(row, "program"),
                text(row, "hook"),
                text(row, "meaning")
            );
            Finding::warning("neighbours", detail, text(row, "remedy"))
        })
        .collect();
    let harmless = rows(dump, "neighbours").len();
    match (findings.is_empty(), harmless) {
        (true, 0) => vec![Finding::ok("neighbours", "nobody else is on the hooks that Culvert uses")],
        (true, _) => vec![Finding::ok("neighbours", format!("{harmless} beside Culvert, none in its way"))],
        (false, _) => findings,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    fn at(minutes: i64) -> String {
        (Timestamp::now() + SignedDuration::from_mins(minutes)).to_string()
    }

    fn healthy() -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"), "node": "n1", "pending": [], "events_lost": 0,
            "pods": [{"name": "shop/web", "state": "enrolled", "reason": ""}],
            "certificates": [{"identity": "spiffe://td/ns/shop/sa/web", "valid": true, "error": "", "not_before": at(-60), "not_after": at(60)}],
            "source": {"problems": []},
            "maps": [{"map": "pods", "entries": 1, "capacity": 10, "high": false}],
            "neighbours": [],
        })
    }

    fn worst(dump: &Value) -> (Level, String, String) {
        let finding = of_dump(dump).into_iter().max_by_key(|finding| finding.level).unwrap();
        (finding.level, finding.detail, finding.remedy)
    }

    #[test]
    fn a_healthy_agent_has_nothing_to_mend() {
        let findings = of_dump(&healthy());
        assert!(
            findings.iter().all(|finding| finding.level == Level::Ok && finding.remedy.is_empty()),
            "{findings:?}"
        );
        assert_eq!(findings.len(), 8);
    }

    #[test]
    fn each_fault_is_found_with_what_to_do() {
        let cases: [(&str, Value, Level, &str); 10] = [
            ("/version", json!("0.0.1"), Level::Warning, "version 0.0.1"),
            ("/pending", json!(["first state"]), Level::Error, "waits for first state"),
            (
                "/pods/0",
                json!({"name": "a/b", "state": "pending", "reason": "no process"}),
                Level::Error,
                "a/b is not in the mesh yet: no process",
            ),
            ("/pods/0/reason", json!("no source guard"), Level::Warning, "shop/web: no source guard"),
            ("/certificates/0/valid", json!(false), Level::Error, "sa/web has no valid one"),
            ("/certificates/0/error", json!("CA away"), Level::Warning, "has not been renewed: CA away"),
            ("/certificates/0/not_after", json!(at(5)), Level::Warning, "has not been renewed"),
            (
                "/source/problems",
                json!([{"file": "a.yaml", "object": "Pod a/b", "field": "spec", "message": "bad", "remedy": "mend it"}]),
                Level::Error,
                "a.yaml Pod a/b spec: bad",
            ),
            ("/maps/0/high", json!(true), Level::Warning, "pods holds 1 of 10 entries"),
            ("/events_lost", json!(7), Level::Warning, "7 lost"),
        ];
        for (field, value, level, words) in cases {
            let mut dump = healthy();
            *dump.pointer_mut(field).unwrap() = value;
            let (found, detail, remedy) = worst(&dump);
            assert_eq!(found, level, "{field}");
            assert!(detail.contains(words) && !remedy.is_empty(), "{field}: {detail}");
        }
    }

    #[test]
    fn a_conflict_with_others_is_told_and_harmless_ones_are_counted() {
        let mut dump = healthy();
        dump["neighbours"] = json!([{"level": "harmless"}]);
        assert_eq!(worst(&dump).0, Level::Ok);
        dump["neighbours"] = json!([{"level": "conflict", "owner": "Kmesh", "program": "cgroup_connect4", "hook": "connect4", "meaning": "two meshes", "remedy": "choose one"}]);
        let told = (
            Level::Warning,
            "Kmesh (cgroup_connect4 at connect4): two meshes".to_owned(),
            "choose one".to_owned(),
        );
        assert_eq!(worst(&dump), told);
    }
}
