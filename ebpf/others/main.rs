//! Programs as other tools have them on the hooks that Culvert uses, for tests/tests/neighbours.rs: a socket load balancer, a
//! tracer of sockets, a dispatcher of listeners, a packet filter. Each counts its runs in `RUNS`, under the number of its program.
#![no_std]
#![no_main]

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::{cgroup_sock_addr, classifier, map, sk_lookup, sock_ops};
use aya_ebpf::maps::{Array, HashMap, SockMap};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext, TcContext};

/// Runs: connect, callbacks at the end of a socket, lookups, packets. Besides, the callbacks that had been asked for on the last
/// socket that connected.
#[map]
static RUNS: Array<u64> = Array::with_max_entries(5, 0);
const CONNECT: u32 = 0;
const CLOSED: u32 = 1;
const LOOKUP: u32 = 2;
const PACKET: u32 = 3;
const FLAGS: u32 = 4;

/// Port asked for → address and port to connect to instead, all in network order.
#[map]
static BACKENDS: HashMap<u32, [u32; 5]> = HashMap::with_max_entries(16, 0);

/// Index 0: callbacks to ask for on each socket, in the place of all others. Index 1: what a lookup is answered
/// ([`SK_PASS`] and so on; 2: the socket in `LISTENERS`). Index 2: the port that this is for, 0: none. Index 3: what is done with a packet.
#[map]
static ORDERS: Array<u32> = Array::with_max_entries(4, 0);

#[map]
static LISTENERS: SockMap = SockMap::with_max_entries(1, 0);

const PROCEED: i32 = 1;
const SK_PASS: u32 = 1;
const STEER: u32 = 2;
const TCP_CONNECT: u32 = 3;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE: u32 = 10;
const TCP_CLOSE: u32 = 7;

#[inline(always)]
fn ran(program: u32) {
    if let Some(runs) = RUNS.get_ptr_mut(program) {
        // SAFETY: a value of the map; a lost count does not matter.
        unsafe { *runs += 1 };
    }
}

#[inline(always)]
fn order(index: u32) -> u32 {
    ORDERS.get(index).copied().unwrap_or(0)
}

#[cgroup_sock_addr(connect4)]
pub fn other_connect4(ctx: SockAddrContext) -> i32 {
    if let Some(backend) = backend(ctx.sock_addr) {
        // SAFETY: the kernel's context; fields that the hook may write.
        unsafe {
            (*ctx.sock_addr).user_ip4 = backend[3];
            (*ctx.sock_addr).user_port = backend[4];
        }
    }
    PROCEED
}

#[cgroup_sock_addr(connect6)]
pub fn other_connect6(ctx: SockAddrContext) -> i32 {
    if let Some(backend) = backend(ctx.sock_addr) {
        // SAFETY: as above, word by word: the verifier accepts nothing wider.
        unsafe {
            for (n, word) in backend[..4].iter().enumerate() {
                core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[n], *word);
            }
            (*ctx.sock_addr).user_port = backend[4];
        }
    }
    PROCEED
}

#[inline(always)]
fn backend(ctx: *mut bpf_sock_addr) -> Option<[u32; 5]> {
    ran(CONNECT);
    // SAFETY: the kernel's context; the value is copied out at once.
    unsafe { BACKENDS.get((*ctx).user_port).copied() }
}

#[sock_ops]
pub fn other_sockets(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        TCP_CONNECT | ACTIVE_ESTABLISHED | PASSIVE_ESTABLISHED => {
            if ctx.op() == ACTIVE_ESTABLISHED
                && let Some(found) = RUNS.get_ptr_mut(FLAGS)
            {
                // SAFETY: a value of the map, and the kernel's context.
                unsafe { *found = u64::from((*ctx.ops).bpf_sock_ops_cb_flags) };
            }
            let _ = ctx.set_cb_flags(order(0) as i32);
        }
        STATE if ctx.arg(1) == TCP_CLOSE => ran(CLOSED),
        _ => {}
    }
    1
}

#[sk_lookup]
pub fn other_lookup(ctx: SkLookupContext) -> u32 {
    // SAFETY: the kernel's context.
    let port = unsafe { (*ctx.lookup).local_port };
    if port != order(2) {
        return SK_PASS;
    }
    ran(LOOKUP);
    match order(1) {
        STEER => {
            let _ = LISTENERS.redirect_sk_lookup(&ctx, 0, 0);
            SK_PASS
        }
        verdict => verdict & SK_PASS,
    }
}

#[classifier]
pub fn other_filter(_ctx: TcContext) -> i32 {
    ran(PACKET);
    order(3) as i32
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
