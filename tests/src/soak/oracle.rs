//! Knows at each moment what is allowed, and judges what happened by it.
//!
//! A change takes effect within [`SETTLE`]. Until then each agent may know either state, and not both the same: a connection
//! is judged by what the client's agent knew (its identity, the path, the policy at the source) and by what the server's
//! agent knew (the policy at the destination), so every pair of states that was possible then is asked.

use super::pod::{Attempt, Style};
use super::state::{Pod, State, allowed};

/// Microseconds within which a change takes effect.
pub(crate) const SETTLE: u64 = 2_000_000;
/// Microseconds after an agent is ready within which tunnels work again.
pub(crate) const COME_BACK: u64 = 1_000_000;

/// A state, and since when it was possible.
struct Change {
    from: u64,
    /// When every agent must know it.
    settled: u64,
    state: State,
}

/// An agent that was away.
struct Outage {
    node: &'static str,
    from: u64,
    until: u64,
}

/// What was when.
pub(crate) struct Timeline {
    changes: Vec<Change>,
    outages: Vec<Outage>,
}

/// Where a flow leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) from: Pod,
    /// The pod, or the endpoints of the service.
    pub(crate) to: Vec<Pod>,
    pub(crate) style: Style,
}

/// What an attempt amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// As it must be: it got through.
    Passed,
    /// As it must be: it was refused.
    Refused,
    /// It failed, or got through, while either was right. How many microseconds after the change it still was as before;
    /// 0 where it was as the new state says.
    Tolerated(u64),
    /// An agent was away.
    Away,
    /// A connection older than a change of who is in the mesh: it goes on as it began, or ends.
    Older,
    /// Wrong.
    Wrong(String),
}

impl Timeline {
    pub(crate) fn new(state: State, now: u64) -> Self {
        Self { changes: vec![Change { from: now, settled: now, state }], outages: Vec::new() }
    }

    pub(crate) fn current(&self) -> State {
        self.changes.last().map_or_else(State::base, |change| change.state.clone())
    }

    /// From now on `state` is possible; what it replaces stays so until [`Timeline::applied`] and [`SETTLE`] more.
    pub(crate) fn change(&mut self, state: State, now: u64) {
        self.changes.push(Change { from: now, settled: u64::MAX, state });
    }

    /// The last change has been made. While an agent is away it cannot hear of it.
    pub(crate) fn applied(&mut self, now: u64) {
        let away = self.outages.iter().any(|outage| outage.until == u64::MAX);
        if let Some(change) = self.changes.last_mut() {
            change.settled = if away { u64::MAX } else { now + SETTLE };
        }
    }

    /// The agent of `node` goes.
    pub(crate) fn gone(&mut self, node: &'static str, now: u64) {
        self.outages.push(Outage { node, from: now, until: u64::MAX });
    }

    /// Agents that were away are ready again: they have heard what the others had.
    pub(crate) fn back(&mut self, now: u64) {
        let Some(outage) = self.outages.last_mut() else { return };
        outage.until = now + COME_BACK;
        let unheard = outage.from;
        for change in self.changes.iter_mut().filter(|change| change.settled > unheard) {
            change.settled = now + SETTLE;
        }
    }

    /// The states that were possible at some moment of this time.
    fn states(&self, from: u64, to: u64) -> Vec<&State> {
        let ends = self.changes.iter().skip(1).map(|next| next.settled).chain([u64::MAX]);
        let possible =
            self.changes.iter().zip(ends).filter(|(change, end)| change.from <= to && *end >= from);
        possible.map(|(change, _)| &change.state).collect()
    }

    /// Whether one of the pods joined or left the mesh after `since`, or was still about to.
    fn moved(&self, route: &Route, since: u64) -> bool {
        let pods = || route.to.iter().chain([&route.from]);
        let mut pairs = self.changes.iter().zip(self.changes.iter().skip(1));
        pairs.any(|(old, new)| {
            new.settled >= since && pods().any(|pod| old.state.in_mesh(pod) != new.state.in_mesh(pod))
        })
    }

    /// Whether it may have gone through a tunnel while an agent at one of its ends was away.
    fn cut(&self, route: &Route, states: &[&State], from: u64, to: u64) -> bool {
        let away =
            |node: &str| self.outages.iter().any(|o| o.node == node && o.from <= to && o.until >= from);
        route.to.iter().filter(|server| server.node != route.from.node).any(|server| {
            let tunnel =
                states.iter().any(|s| s.in_mesh(&route.from)) && states.iter().any(|s| s.in_mesh(server));
            tunnel && (away(route.from.node) || away(server.node))
        })
    }

    /// How long after the last change an attempt that contradicts it ended.
    fn lag(&self, route: &Route, attempt: &Attempt) -> u64 {
        let Some(last) = self.changes.iter().rev().find(|change| change.from <= attempt.ended) else {
            return 0;
        };
        let servers = || route.to.iter().filter(|server| last.state.has(server));
        let right =
            |server: &Pod| allowed(&route.from, server, &last.state, &last.state) == attempt.error.is_empty();
        let made = last.settled.saturating_sub(SETTLE);
        if servers().any(right) { 0 } else { attempt.ended.saturating_sub(made) }
    }

    /// Milliseconds since the last change was made, for the reader.
    pub(crate) fn since_change(&self, moment: u64) -> u64 {
        let made = self.changes.last().map_or(0, |change| change.settled.saturating_sub(SETTLE));
        moment.saturating_sub(made) / 1000
    }

    /// Judges an attempt. Everything that was done until it ended must have been told.
    pub(crate) fn judge(&self, route: &Route, attempt: &Attempt) -> Judgement {
        let states = self.states(attempt.since, attempt.ended);
        let (mut may_pass, mut may_fail) = (false, false);
        for here in &states {
            // A guest that is not there yet, or no longer, is no endpoint.
            let servers = route.to.iter().filter(|server| states.iter().any(|s| s.has(server)));
            for (server, there) in servers.flat_map(|server| states.iter().map(move |there| (server, there)))
            {
                let allowed = allowed(&route.from, server, here, there);
                may_pass |= allowed;
                may_fail |= !allowed;
            }
        }
        let failed = !attempt.error.is_empty();
        if attempt.style != Style::New && self.moved(route, attempt.opened) {
            return Judgement::Older;
        }
        if failed && self.cut(route, &states, attempt.since, attempt.ended) {
            return Judgement::Away;
        }
        match (failed, may_pass, may_fail) {
            (true, _, _) if attempt.error == "timeout" => {
                Judgement::Wrong("it hung: neither an answer nor a refusal".to_owned())
            }
            (_, true, true) => Judgement::Tolerated(self.lag(route, attempt)),
            (false, true, false) => Judgement::Passed,
            (true, false, true) => Judgement::Refused,
            (true, _, false) => Judgement::Wrong(format!("allowed, and failed: {}", attempt.error)),
            (false, false, _) => Judgement::Wrong("DENIED, AND IT GOT THROUGH".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn pod(name: &'static str, node: &'static str) -> Pod {
        Pod { name, node, guest: false, serves: false }
    }
    const WEB: Pod = pod("web/a", "n1");
    const EVIL: Pod = pod("evil/e", "n1");
    const OUT: Pod = pod("out/o", "n1");
    const NEAR: Pod = pod("shop/s1", "n1");
    const FAR: Pod = pod("shop/s2", "n2");

    fn route(from: Pod, to: Pod) -> Route {
        Route { from, to: vec![to], style: Style::New }
    }

    fn at(moment: u64, error: &str) -> Attempt {
        let error = error.to_owned();
        Attempt {
            since: moment,
            ended: moment,
            opened: moment,
            error,
            style: Style::New,
            ..Attempt::default()
        }
    }

    #[test]
    fn the_base_state_is_judged() {
        let base = Timeline::new(State::base(), 0);
        for to in [NEAR, FAR] {
            assert_eq!(base.judge(&route(WEB, to), &at(9, "")), Judgement::Passed);
            for from in [EVIL, OUT] {
                assert_eq!(base.judge(&route(from, to), &at(9, "refused")), Judgement::Refused);
                let through = base.judge(&route(from, to), &at(9, ""));
                assert_eq!(through, Judgement::Wrong("DENIED, AND IT GOT THROUGH".to_owned()));
            }
            let failed = base.judge(&route(WEB, to), &at(9, "reset"));
            assert_eq!(failed, Judgement::Wrong("allowed, and failed: reset".to_owned()));
            assert!(matches!(base.judge(&route(EVIL, to), &at(9, "timeout")), Judgement::Wrong(_)));
        }
    }

    #[test]
    fn a_change_is_tolerated_until_it_has_settled() {
        let mut time = Timeline::new(State::base(), 0);
        time.change(State { deny_web: true, ..State::base() }, 100);
        time.applied(200);
        let web = route(WEB, FAR);
        assert_eq!(time.judge(&web, &at(99, "")), Judgement::Passed);
        for moment in [100, 150, 200 + SETTLE] {
            let late = Judgement::Tolerated(moment.saturating_sub(200));
            assert_eq!(time.judge(&web, &at(moment, "")), late, "{moment}");
            assert_eq!(time.judge(&web, &at(moment, "refused")), Judgement::Tolerated(0), "{moment}");
        }
        assert_eq!(time.judge(&web, &at(201 + SETTLE, "refused")), Judgement::Refused);
        assert!(matches!(time.judge(&web, &at(201 + SETTLE, "")), Judgement::Wrong(_)));
        assert!(matches!(time.judge(&route(EVIL, FAR), &at(150, "")), Judgement::Wrong(_)), "never allowed");
    }

    #[test]
    fn agents_that_know_different_states_are_thought_of() {
        let mut left = State::base();
        left.enrolled.remove("shop");
        let (base, permissive) = (State::base(), State { strict: false, ..State::base() });
        assert!(allowed(&WEB, &FAR, &base, &base) && allowed(&WEB, &FAR, &left, &left));
        // Plaintext, because this node has not heard that the other one is in the mesh.
        assert!(!allowed(&WEB, &FAR, &left, &base));
        assert!(allowed(&WEB, &FAR, &left, &permissive));
    }

    #[test]
    fn only_tunnels_fail_while_an_agent_is_away() {
        let mut time = Timeline::new(State::base(), 0);
        time.gone("n2", 100);
        let (near, far) = (route(WEB, NEAR), route(WEB, FAR));
        assert_eq!(time.judge(&far, &at(150, "refused")), Judgement::Away);
        assert!(matches!(time.judge(&near, &at(150, "refused")), Judgement::Wrong(_)));
        assert!(matches!(time.judge(&route(OUT, FAR), &at(150, "")), Judgement::Wrong(_)));
        time.change(State { strict: false, ..State::base() }, 160);
        time.applied(170);
        time.back(500);
        assert_eq!(
            time.judge(&route(OUT, FAR), &at(400 + SETTLE, "refused")),
            Judgement::Tolerated(SETTLE - 100)
        );
        assert_eq!(time.judge(&route(OUT, FAR), &at(501 + SETTLE, "")), Judgement::Passed);
        assert_eq!(time.judge(&far, &at(500 + COME_BACK, "reset")), Judgement::Away);
        assert!(matches!(time.judge(&far, &at(501 + COME_BACK, "reset")), Judgement::Wrong(_)));
    }

    #[test]
    fn an_older_connection_goes_on_as_it_began() {
        let mut time = Timeline::new(State { strict: false, ..State::base() }, 0);
        let mut left = State::base();
        left.enrolled.remove("shop");
        time.change(left, 100);
        time.applied(110);
        time.change(State::base(), 9_000_000);
        time.applied(9_000_000);
        let kept = |opened| Attempt { opened, style: Style::Kept, ..at(20_000_000, "") };
        assert_eq!(time.judge(&route(OUT, FAR), &kept(5_000_000)), Judgement::Older);
        assert!(matches!(time.judge(&route(OUT, FAR), &kept(12_000_000)), Judgement::Wrong(_)));
    }
}
