//! cgroup/connect4 and connect6: a process of this node calls connect().

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use culvert_common::*;

use crate::balance::choose;
use crate::ctx::{self, Family};
use crate::events::{count, emit, note, now};
use crate::maps::{KernelPolicy, PODS, SERVICES, UNLISTED, WORKLOADS, config, copied};

/// What becomes of a connect().
pub enum Outcome {
    /// Culvert has no say.
    Untouched,
    /// It goes on; the socket's storage says how.
    Allowed,
    /// It fails; an event said why.
    Refused,
}

/// Decides one connect().
#[inline(always)]
pub fn try_connect<F: Family>(ctx: &SockAddrContext) -> Outcome {
    if ctx::protocol(ctx) != ctx::TCP {
        return Outcome::Untouched;
    }
    let Some(config) = config() else { return Outcome::Untouched };
    let agent = ctx::current_cgroup() == config.agent_cgroup;
    let netns = ctx::netns_cookie(ctx);
    let requested = ctx::address::<F>(ctx);
    match copied!(PODS, &netns) {
        Some(pod) if agent => from_agent(ctx, &pod, requested),
        Some(pod) => from_pod::<F>(ctx, config, netns, &pod, requested),
        None if netns == config.host_netns => from_host(ctx, requested),
        None => Outcome::Untouched,
    }
}

/// The agent inside a pod's namespace: its deliveries to the pod itself were judged by their certificate.
#[inline(always)]
fn from_agent(ctx: &SockAddrContext, pod: &Pod, requested: Endpoint) -> Outcome {
    if requested.ip() == pod.ip4 || requested.ip() == pod.ip6 {
        // Without the record the pod's own namespace refuses the delivery: closed.
        remember(ctx, vouched(requested, SocketKind::Own, OWN_IDENTITY, Reason::OwnPod));
    }
    Outcome::Untouched
}

/// A process of the node itself: only proof that it is one is recorded, for pods of this node.
#[inline(always)]
fn from_host(ctx: &SockAddrContext, requested: Endpoint) -> Outcome {
    const SERVING: u32 = flags::LOCAL | flags::ENROLLED;
    let local = copied!(WORKLOADS, requested.ip()).is_some_and(|w: Workload| w.flags & SERVING == SERVING);
    if !local {
        forget(ctx);
        return Outcome::Untouched;
    }
    // A failure leaves the probe without proof: it is then judged like any plaintext.
    remember(ctx, vouched(requested, SocketKind::Host, HOST_IDENTITY, Reason::NodeProcess));
    Outcome::Untouched
}

/// The state of a socket whose origin alone admits it.
#[inline(always)]
fn vouched(requested: Endpoint, kind: SocketKind, source: u32, reason: Reason) -> SocketState {
    SocketState {
        opened_ns: now(),
        peer: requested,
        target: requested,
        kind: kind as u32,
        source,
        destination: UNKNOWN_IDENTITY,
        policy: 0,
        reason: reason as u32,
        heard: 0,
    }
}

/// A process of an enrolled pod.
#[inline(always)]
fn from_pod<F: Family>(
    ctx: &SockAddrContext,
    config: &Config,
    netns: u64,
    pod: &Pod,
    requested: Endpoint,
) -> Outcome {
    if requested.ip().is_loopback() || requested.ip().is_unspecified() {
        forget(ctx);
        return Outcome::Untouched;
    }
    let mut flow = FlowEvent {
        note: 0,
        reserved: 0,
        time_ns: 0,
        netns,
        bytes_sent: 0,
        bytes_received: 0,
        duration_ns: 0,
        socket: 0,
        tuple: Tuple::new(Endpoint::new(own_address(pod, requested.ip()), 0), requested),
        requested,
        verdict: Verdict::Refused as u32,
        reason: Reason::OutsideMesh as u32,
        policy: 0,
        path: Path::Passthrough as u32,
        hook: Hook::Connect as u32,
        source: pod.identity,
        destination: UNKNOWN_IDENTITY,
    };
    let target = match resolve(netns, requested) {
        Next::Target(target) => target,
        Next::Waypoint => return to_waypoint::<F>(ctx, flow),
        Next::Nowhere(reason) => return refuse(&mut flow, Decision::refuse(reason)),
    };
    flow.tuple = Tuple::new(flow.tuple.source(), target);
    if target.ip() == pod.ip4 || target.ip() == pod.ip6 {
        // To itself, by its address or as the chosen backend of a service.
        flow.source = OWN_IDENTITY;
        return go::<F>(ctx, flow, SocketKind::Own, target, Decision::allow(Reason::OwnPod));
    }
    let workload: Option<Workload> = copied!(WORKLOADS, target.ip());
    // A service's backends are not asked: the service said that it has no waypoint.
    if target == requested && workload.is_some_and(|w| w.flags & flags::WAYPOINT != 0) {
        return to_waypoint::<F>(ctx, flow);
    }
    if workload.is_none() && unlisted(target.ip()) {
        count(Counter::MapFull);
        return refuse(&mut flow, Decision::refuse(Reason::KernelState));
    }
    let Some(workload) = workload.filter(|w| w.flags & flags::ENROLLED != 0) else {
        return leave::<F>(ctx, flow, Decision::allow(Reason::OutsideMesh));
    };
    flow.destination = workload.identity;
    let direct = workload.flags & flags::LOCAL != 0 && config.flags & flags::SAME_NODE_TUNNEL == 0;
    flow.path = if direct { Path::Direct as u32 } else { Path::Tunnel as u32 };
    if target.port() == HBONE_PORT || target.port() == OUTBOUND_PORT {
        return refuse(&mut flow, Decision::refuse(Reason::MeshPort));
    }
    let decision =
        decide(&KernelPolicy, workload.class, pod.identity, flow.tuple.source().ip(), target.port());
    if !decision.allowed() {
        return refuse(&mut flow, decision);
    }
    if direct {
        go::<F>(ctx, flow, SocketKind::Direct, target, decision)
    } else {
        let agent = Endpoint::new(F::loopback(target.ip()), OUTBOUND_PORT);
        go::<F>(ctx, flow, SocketKind::Tunnel, agent, decision)
    }
}

/// What an address stands for.
enum Next {
    /// This one: the address itself, or the chosen backend of a service.
    Target(Endpoint),
    /// A service with a waypoint, which chooses.
    Waypoint,
    /// A service without endpoints.
    Nowhere(Reason),
}

#[inline(always)]
fn resolve(netns: u64, requested: Endpoint) -> Next {
    let service: Option<Service> = copied!(SERVICES, ServiceKey { vip: requested });
    let Some(service) = service else { return Next::Target(requested) };
    if service.flags & flags::WAYPOINT != 0 {
        return Next::Waypoint;
    }
    match choose(netns, &service) {
        Some(backend) => Next::Target(backend),
        None if service.flags & flags::NODE_ONLY != 0 => Next::Nowhere(Reason::NoLocalEndpoint),
        None => Next::Nowhere(Reason::NoEndpoint),
    }
}

/// Leads the connection to the agent, which takes it to the waypoint of what was asked for.
#[inline(always)]
fn to_waypoint<F: Family>(ctx: &SockAddrContext, mut flow: FlowEvent) -> Outcome {
    flow.path = Path::Tunnel as u32;
    flow.tuple = Tuple::new(flow.tuple.source(), flow.requested);
    let agent = Endpoint::new(F::loopback(flow.requested.ip()), OUTBOUND_PORT);
    go::<F>(ctx, flow, SocketKind::Tunnel, agent, Decision::allow(Reason::Waypoint))
}

/// Whether the agent knows something at or near `ip` that its tables have no room for: what is missing is not outside.
#[inline(always)]
fn unlisted(ip: Ip) -> bool {
    UNLISTED.get(&Key::new(SourceKey::BITS, SourceKey::new(0, ip))).is_some()
}

/// Lets the connection out of the mesh, to the backend that was chosen.
#[inline(always)]
fn leave<F: Family>(ctx: &SockAddrContext, flow: FlowEvent, decision: Decision) -> Outcome {
    go::<F>(ctx, flow, SocketKind::Passthrough, flow.tuple.destination(), decision)
}

/// Records the decision with the socket and leads it to `next`.
#[inline(always)]
fn go<F: Family>(
    ctx: &SockAddrContext,
    mut flow: FlowEvent,
    kind: SocketKind,
    next: Endpoint,
    decision: Decision,
) -> Outcome {
    let state = SocketState {
        opened_ns: now(),
        peer: flow.requested,
        target: flow.tuple.destination(),
        kind: kind as u32,
        source: flow.source,
        destination: flow.destination,
        policy: decision.policy,
        reason: decision.reason as u32,
        heard: 0,
    };
    if !remember(ctx, state) || (next != flow.requested && !ctx::set_address::<F>(ctx, next)) {
        count(Counter::MapFull);
        return refuse(&mut flow, Decision::refuse(Reason::KernelState));
    }
    Outcome::Allowed
}

/// Reports a refusal.
#[inline(always)]
fn refuse(flow: &mut FlowEvent, decision: Decision) -> Outcome {
    flow.time_ns = now();
    flow.reason = decision.reason as u32;
    flow.policy = decision.policy;
    flow.note = decision.note;
    note(decision.note);
    emit(*flow);
    count(Counter::RefusedAtSource);
    Outcome::Refused
}

/// The pod's address of the family of `like`.
#[inline(always)]
fn own_address(pod: &Pod, like: Ip) -> Ip {
    if like.v4_word().is_some() { pod.ip4 } else { pod.ip6 }
}

#[inline(always)]
fn remember(ctx: &SockAddrContext, state: SocketState) -> bool {
    match ctx::socket_state_or_new(ctx) {
        Some(slot) => {
            *slot = state;
            true
        }
        None => false,
    }
}

/// A socket may connect again after a failure: what an earlier connect() left must not speak for this one.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    if let Some(state) = ctx::socket_state(ctx) {
        state.kind = SocketKind::None as u32;
    }
}
