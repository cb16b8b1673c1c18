//! sockops: the moments of a socket's life that matter to the mesh.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT,
    BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK, BPF_TCP_SYN_SENT,
};
use aya_ebpf::programs::SockOpsContext;
use culvert_common::*;

use crate::ctx;
use crate::events::{count, emit, now};
use crate::maps::{ADMITTED, CONNECTIONS, ORIGINAL_DST, ORIGINAL_SRC, PODS, copied};

const REPLACE: u64 = 0; // BPF_ANY

/// Dispatches one callback.
#[inline(always)]
pub fn on_event(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => on_connect(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => on_established(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => on_accept(ctx),
        BPF_SOCK_OPS_STATE_CB => on_state(ctx),
        _ => {}
    }
}

/// The 4-tuple is known and the SYN has not left.
#[inline(always)]
fn on_connect(ctx: &SockOpsContext) {
    let Some(state) = ctx::ops_state(ctx) else { return };
    let state = *state;
    let (local, remote) = ctx::ops_ends(ctx);
    let netns = ctx::netns_cookie(ctx);
    if is_diverted(&state, remote) {
        return diverted(ctx, &state, netns, Tuple::new(local, remote));
    }
    let written = match state.kind {
        k if k == SocketKind::Direct as u32
            || k == SocketKind::Host as u32
            || k == SocketKind::Own as u32 =>
        {
            ADMITTED.insert(Tuple::new(local, remote), Admission::new(netns, state.source), REPLACE)
        }
        k if k == SocketKind::Tunnel as u32 => {
            let destination = OriginalDst { requested: state.peer, target: state.target };
            ctx::has_no_network(ctx);
            ORIGINAL_DST.insert(LocalKey::new(netns, local), destination, REPLACE)
        }
        k if k == SocketKind::Passthrough as u32 => Ok(()),
        _ => return,
    };
    if written.is_err() {
        return without_entry(ctx, &state, netns, local);
    }
    // Without the callback an entry of a connection that never opens would stay until its tuple is used again.
    watch(ctx);
    opened(&state, netns, Tuple::new(local, remote));
}

/// Whether a program that ran after Culvert's at connect() has led the socket elsewhere. What Culvert let out of the mesh
/// others may translate as they do without it.
#[inline(always)]
fn is_diverted(state: &SocketState, remote: Endpoint) -> bool {
    match state.kind {
        k if k == SocketKind::Direct as u32 || k == SocketKind::Own as u32 => remote != state.target,
        k if k == SocketKind::Tunnel as u32 => remote.port() != OUTBOUND_PORT || !remote.ip().is_loopback(),
        _ => false,
    }
}

/// No hook of Culvert's can stop the socket any more. Nothing vouches for it: where it goes it is a stranger.
#[inline(always)]
fn diverted(ctx: &SockOpsContext, state: &SocketState, netns: u64, tuple: Tuple) {
    count(Counter::Diverted);
    let mut event = flow(state, netns, tuple, Path::Passthrough, Hook::Sockops);
    event.reason = Reason::Diverted as u32;
    event.policy = 0;
    emit(event);
    if let Some(state) = ctx::ops_state(ctx) {
        state.kind = SocketKind::None as u32;
    }
}

/// Asks for the callback at the socket's end. All sockops programs share the flags of a socket: what others asked for stays.
#[inline(always)]
fn watch(ctx: &SockOpsContext) {
    let flags = ctx::ops_callbacks(ctx);
    if flags & BPF_SOCK_OPS_STATE_CB_FLAG == 0 {
        let _ = ctx.set_cb_flags((flags | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    }
}

/// Another program may have replaced the flags since connect().
#[inline(always)]
fn on_established(ctx: &SockOpsContext) {
    let still_asked_for = ctx::ops_callbacks(ctx) & BPF_SOCK_OPS_STATE_CB_FLAG != 0;
    if !still_asked_for && ctx::ops_state(ctx).is_some_and(|state| state.kind != SocketKind::None as u32) {
        watch(ctx);
    }
}

/// There is no room for what the other end must know: the connection ends here.
#[inline(always)]
fn without_entry(ctx: &SockOpsContext, state: &SocketState, netns: u64, local: Endpoint) {
    count(Counter::MapFull);
    let path = match state.kind {
        // The other end would take it for plaintext, and may let that in.
        k if k == SocketKind::Direct as u32 => {
            ctx::cut_off(ctx);
            Path::Direct
        }
        // The agent's listener would not know where to.
        k if k == SocketKind::Tunnel as u32 => Path::Tunnel,
        _ => return,
    };
    let mut event = flow(state, netns, Tuple::new(local, state.target), path, Hook::Sockops);
    event.verdict = Verdict::Refused as u32;
    event.reason = Reason::KernelState as u32;
    event.policy = 0;
    event.socket = ctx::socket_cookie(ctx);
    emit(event);
}

#[inline(always)]
fn opened(state: &SocketState, netns: u64, tuple: Tuple) {
    let (counter, path) = match state.kind {
        k if k == SocketKind::Direct as u32 => (Counter::Direct, Path::Direct),
        k if k == SocketKind::Passthrough as u32 => (Counter::Passthrough, Path::Passthrough),
        // The agent reports tunnels, when it knows how they ended up.
        k if k == SocketKind::Tunnel as u32 => return count(Counter::Tunnel),
        _ => return,
    };
    count(counter);
    emit(flow(state, netns, tuple, path, Hook::Sockops));
}

#[inline(always)]
fn flow(state: &SocketState, netns: u64, tuple: Tuple, path: Path, hook: Hook) -> FlowEvent {
    FlowEvent {
        time_ns: now(),
        netns,
        bytes_sent: 0,
        bytes_received: 0,
        duration_ns: 0,
        socket: 0,
        tuple,
        requested: state.peer,
        verdict: Verdict::Allowed as u32,
        reason: state.reason,
        policy: state.policy,
        path: path as u32,
        hook: hook as u32,
        source: state.source,
        destination: state.destination,
        note: 0, // the destination's verdict tells
        reserved: 0,
    }
}

/// A connection is about to be accepted. accept() cannot return it before this callback is done: the kernel holds the
/// new socket's lock.
#[inline(always)]
fn on_accept(ctx: &SockOpsContext) {
    let (local, remote) = ctx::ops_ends(ctx);
    let tuple = Tuple::new(remote, local);
    let netns = ctx::netns_cookie(ctx);
    let admission: Option<Admission> = copied!(ADMITTED, &tuple);
    // Later segments find the socket itself: the admission has served.
    let _ = ADMITTED.remove(tuple);
    let key = LocalKey::new(netns, remote);
    let Some(client) = copied!(ORIGINAL_SRC, &key) else {
        return note_inbound(ctx, tuple, netns, &admission.unwrap_or(Admission::new(0, UNKNOWN_IDENTITY)));
    };
    let _ = ORIGINAL_SRC.remove(key);
    ctx::has_no_network(ctx);
    if let Some(state) = ctx::ops_state_or_new(ctx) {
        state.peer = client;
        state.kind = SocketKind::Accepted as u32;
    }
}

/// Keeps a connection into an enrolled pod in sight while it is open, for the day when policy changes.
#[inline(always)]
fn note_inbound(ctx: &SockOpsContext, tuple: Tuple, netns: u64, admission: &Admission) {
    let identity = admission.identity;
    let port = tuple.destination().port();
    let judged_elsewhere = port == HBONE_PORT || port == OUTBOUND_PORT; // by the agent
    if judged_elsewhere || identity == OWN_IDENTITY || tuple.destination().ip().is_loopback() {
        return;
    }
    let pod: Option<Pod> = copied!(PODS, &netns);
    if pod.is_none() {
        return;
    }
    if identity == HOST_IDENTITY {
        // Never refused, so not kept in sight. The mark tells it from connections that no hook has seen begin.
        if let Some(state) = ctx::ops_state_or_new(ctx) {
            state.kind = SocketKind::Host as u32;
        }
        return;
    }
    let socket = ctx::socket_cookie(ctx);
    let connection = Connection { opened_ns: now(), netns, socket, identity, reserved: 0 };
    // The socket's own storage says the same: that is how the agent finds a connection that has no entry.
    let Some(state) = ctx::ops_state_or_new(ctx) else { return untracked(tuple, connection) };
    state.opened_ns = connection.opened_ns;
    state.kind = SocketKind::Inbound as u32;
    state.source = identity;
    if CONNECTIONS.insert(tuple, connection, REPLACE).is_err() {
        return untracked(tuple, connection);
    }
    watch(ctx);
    let mut event = inbound(tuple, &connection, Hook::Accepted);
    if admission.reason != Reason::NoPolicyState as u32 {
        event.reason = admission.reason;
        event.policy = admission.policy;
        event.note = admission.note;
        event.destination = admission.destination;
    }
    emit(event);
}

/// A change of policy would not find this connection. The program cannot end it: the agent does.
#[inline(always)]
fn untracked(tuple: Tuple, connection: Connection) {
    count(Counter::Untracked);
    let mut event = inbound(tuple, &connection, Hook::Untracked);
    event.verdict = Verdict::Refused as u32;
    event.reason = Reason::KernelState as u32;
    event.socket = connection.socket;
    emit(event);
}

/// The event of a connection that was accepted, as its destination sees it.
#[inline(always)]
fn inbound(tuple: Tuple, connection: &Connection, hook: Hook) -> FlowEvent {
    let path = if connection.identity == UNKNOWN_IDENTITY { Path::Passthrough } else { Path::Direct };
    FlowEvent {
        time_ns: connection.opened_ns,
        netns: connection.netns,
        bytes_sent: 0,
        bytes_received: 0,
        duration_ns: 0,
        socket: 0,
        tuple,
        requested: tuple.destination(),
        verdict: Verdict::Allowed as u32,
        reason: Reason::Judged as u32,
        policy: 0,
        path: path as u32,
        hook: hook as u32,
        source: connection.identity,
        destination: UNKNOWN_IDENTITY,
        note: 0,
        reserved: 0,
    }
}

#[inline(always)]
fn on_state(ctx: &SockOpsContext) {
    let (old, new) = ctx::ops_state_change(ctx);
    if new != BPF_TCP_CLOSE && new != BPF_TCP_FIN_WAIT2 {
        return;
    }
    let Some(state) = ctx::ops_state(ctx) else { return };
    if new == BPF_TCP_FIN_WAIT2 {
        state.heard = ctx::ops_progress(ctx).receive_next;
        return;
    }
    let state = *state;
    let (local, remote) = ctx::ops_ends(ctx);
    let netns = ctx::netns_cookie(ctx);
    match state.kind {
        k if k == SocketKind::Direct as u32 => {
            let _ = ADMITTED.remove(Tuple::new(local, remote));
            closed(ctx, &state, netns, Tuple::new(local, remote), Path::Direct, old);
        }
        k if k == SocketKind::Host as u32 || k == SocketKind::Own as u32 => {
            let _ = ADMITTED.remove(Tuple::new(local, remote));
        }
        k if k == SocketKind::Inbound as u32 => {
            let tuple = Tuple::new(remote, local);
            let _ = CONNECTIONS.remove(tuple);
            closed_inbound(ctx, &state, netns, tuple, old);
        }
        // Once established the entry is the agent's to take, even if the app has already gone.
        k if k == SocketKind::Tunnel as u32 && old == BPF_TCP_SYN_SENT => {
            let _ = ORIGINAL_DST.remove(LocalKey::new(netns, local));
        }
        k if k == SocketKind::Passthrough as u32 => {
            closed(ctx, &state, netns, Tuple::new(local, remote), Path::Passthrough, old);
        }
        _ => {}
    }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext, state: &SocketState, netns: u64, tuple: Tuple, path: Path, old: u32) {
    let hook = if old == BPF_TCP_SYN_SENT { Hook::Failed } else { Hook::Close };
    let mut event = flow(state, netns, tuple, path, hook);
    if old != BPF_TCP_SYN_SENT {
        let (own, of_peer) = payload(ctx, state, old);
        event.bytes_sent = own.saturating_sub(1); // its SYN
        event.bytes_received = of_peer;
    }
    event.duration_ns = event.time_ns.wrapping_sub(state.opened_ns);
    emit(event);
}

#[inline(always)]
fn closed_inbound(ctx: &SockOpsContext, state: &SocketState, netns: u64, tuple: Tuple, old: u32) {
    let connection = Connection { opened_ns: now(), netns, socket: 0, identity: state.source, reserved: 0 };
    let mut event = inbound(tuple, &connection, Hook::CloseAccepted);
    let (own, of_peer) = payload(ctx, state, old);
    event.bytes_sent = of_peer;
    event.bytes_received = own;
    event.duration_ns = event.time_ns.wrapping_sub(state.opened_ns);
    emit(event);
}

/// What the apps at both ends have said: the socket's own bytes that were acknowledged (a client's SYN is among them), and its
/// peer's. FINs are taken out, as far as the state that the socket leaves tells that there was one.
#[inline(always)]
fn payload(ctx: &SockOpsContext, state: &SocketState, old: u32) -> (u64, u64) {
    let progress = ctx::ops_progress(ctx);
    let own_end = match old {
        BPF_TCP_FIN_WAIT2 => true,
        BPF_TCP_CLOSING | BPF_TCP_LAST_ACK => progress.all_acknowledged,
        _ => false,
    };
    let peers_end = match old {
        BPF_TCP_CLOSE_WAIT | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK => true,
        // The app has closed its end. When nothing came since, the FIN is yet to come, and a socket without app takes it.
        BPF_TCP_FIN_WAIT2 => progress.receive_next != state.heard,
        _ => false,
    };
    let own = progress.acknowledged.saturating_sub(own_end as u64);
    (own, progress.received.saturating_sub(peers_end as u64))
}
