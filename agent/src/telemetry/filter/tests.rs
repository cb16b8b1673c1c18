use super::*;
use crate::telemetry::flows::Requested;

fn end(address: &str, workload: &str, identity: &str) -> End {
    End {
        address: address.parse().unwrap(),
        port: 80,
        workload: workload.to_owned(),
        identity: identity.to_owned(),
        owner: workload.to_owned(),
    }
}

fn record() -> FlowRecord {
    FlowRecord {
        seq: 1,
        time: "2026-01-02T03:04:05.5Z".to_owned(),
        node: "n1".to_owned(),
        stage: "refused",
        verdict: "refused",
        path: "direct",
        side: "source",
        reason: "denied by policy",
        policy: "shop/no-test".to_owned(),
        note: "audit: shop/watch; dry run: would be allowed [shop/next]".to_owned(),
        error: String::new(),
        source: end("10.244.1.2", "test/curl", "spiffe://cluster.local/ns/test/sa/curl"),
        destination: end("fd00:10:244:1::3", "shop/web-0", "spiffe://cluster.local/ns/shop/sa/web"),
        requested: Requested {
            address: "10.96.0.7".parse().unwrap(),
            port: 80,
            service: "front/web".to_owned(),
        },
        bytes_sent: 0,
        bytes_received: 0,
        duration_ms: 0,
    }
}

fn who(text: &str) -> Option<Who> {
    Some(text.parse().unwrap())
}

#[test]
fn an_end_is_named_by_pod_namespace_address_or_identity() {
    let from = |text| FlowFilter { from: who(text), ..FlowFilter::default() }.wants(&record());
    for text in [
        "test/curl",
        "test",
        "test/",
        "10.244.1.2",
        "10.244.1.0/24",
        "spiffe://cluster.local/ns/test/sa/curl",
    ] {
        assert!(from(text), "{text}");
    }
    for text in [
        "test/cur",
        "test/curl-2",
        "tes",
        "shop/",
        "10.244.1.3",
        "10.244.2.0/24",
        "spiffe://cluster.local/ns/test/sa/cur",
    ] {
        assert!(!from(text), "{text}");
    }
}

#[test]
fn the_destination_is_also_what_was_asked_for() {
    let to = |text| FlowFilter { to: who(text), ..FlowFilter::default() }.wants(&record());
    for text in
        ["shop/web-0", "shop", "front/web", "front/", "10.96.0.7", "[fd00:10:244:1::3]", "fd00:10:244:1::/64"]
    {
        assert!(to(text), "{text}");
    }
    for text in ["shop/web", "test", "10.96.0.8", "spiffe://cluster.local/ns/test/sa/curl"] {
        assert!(!to(text), "{text}");
    }
}

#[test]
fn verdicts_are_the_words_that_flows_prints() {
    let verdict = |words| FlowFilter::default().with_verdicts(words).map(|filter| filter.wants(&record()));
    assert_eq!(verdict("refused"), Ok(true));
    assert_eq!(verdict("ended,REFUSED"), Ok(true));
    assert_eq!(verdict("allowed,opened,closed"), Ok(false));
    assert!(verdict("denied").unwrap_err().contains("write allowed, refused, opened, closed, ended"));
    let ended = FlowRecord { stage: "ended", ..record() };
    assert!(FlowFilter::default().with_verdicts("ended").unwrap().wants(&ended));
}

#[test]
fn a_policy_is_the_one_that_decided_or_that_is_noted() {
    let policy =
        |name: &str| FlowFilter { policy: Some(name.to_owned()), ..FlowFilter::default() }.wants(&record());
    assert!(policy("shop/no-test") && policy("shop/watch") && policy("shop/next"));
    assert!(!policy("shop/no") && !policy("shop/wat") && !policy(""));
}

#[test]
fn time_is_from_then_on() {
    let after = |text: &str| {
        FlowFilter { after: Some(text.parse().unwrap()), ..FlowFilter::default() }.wants(&record())
    };
    assert!(after("2026-01-02T03:04:05.5Z") && after("2026-01-02T03:04:05Z"));
    assert!(!after("2026-01-02T03:04:06Z"));
}

#[test]
fn who_is_nobody_is_told_what_to_write() {
    for text in ["", "/", "/web", "shop/web/x", "a b", "shop/we b", "10.0.0.0/64", "spiffe://x"] {
        let error = text.parse::<Who>().unwrap_err();
        assert!(error.contains("write namespace/pod") || error.contains("spiffe://x"), "{text}: {error}");
    }
}
