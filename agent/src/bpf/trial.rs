//! The loaded program on a made-up SYN: what tests and benches hold against the reference, and measure.
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper for this command")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use culvert_common::{Admission, Ip, Tuple};
use nix::libc;

use super::load::{ADMIT, Kernel, fd, lock};

const BPF_PROG_TEST_RUN: libc::c_long = 10;
const SK_PASS: u32 = 1;

/// `struct bpf_sk_lookup` (include/uapi/linux/bpf.h), Linux 5.17.
#[repr(C)]
#[derive(Default)]
struct Context {
    socket: u64,
    family: u32,
    protocol: u32,
    remote_ip4: u32,
    remote_ip6: [u32; 4],
    remote_port: u16,
    _pad: u16,
    local_ip4: u32,
    local_ip6: [u32; 4],
    local_port: u32,
    ingress_ifindex: u32,
    _tail: u32,
}

/// `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    program: u32,
    verdict: u32,
    data: [u32; 2],
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_bytes: u32,
    context_out_bytes: u32,
    context_in: u64,
    context_out: u64,
    rest: [u32; 4],
}

/// What the destination's program did with a SYN.
#[derive(Clone, Copy)]
pub struct Trial {
    /// Whether it lets it in.
    pub let_in: bool,
    /// The time of one run.
    pub time: Duration,
    /// The admission with the verdict in it, when somebody vouched for the SYN. Else an event told the verdict, as with a refusal.
    pub admission: Option<Admission>,
}

impl Kernel {
    /// Runs the destination's program on the SYN of `tuple`, `repeat` times, by BPF_PROG_TEST_RUN (Linux 5.14): whether it
    /// lets it in. `identity` is admitted for the tuple first, as the source's hooks would have done;
    /// `None`: nobody vouches for it. Counters and events are those of a real SYN.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn try_syn(&self, tuple: &Tuple, identity: Option<u32>, repeat: u32) -> io::Result<Trial> {
        if let Some(identity) = identity {
            self.maps.put_admission(tuple, Admission::new(0, identity))?;
        }
        let programs = lock(&self.programs);
        let result = run(fd(&programs, ADMIT).map_err(io::Error::other)?, &Context::of(tuple), repeat);
        let admission = self.maps.take_admission(tuple)?;
        let (let_in, time) = result?;
        Ok(Trial { let_in, time, admission })
    }
}

impl Context {
    fn of(tuple: &Tuple) -> Self {
        let (remote, local) = (tuple.source(), tuple.destination());
        let mut context = Self {
            protocol: libc::IPPROTO_TCP as u32,
            remote_port: remote.port().to_be(),
            local_port: u32::from(local.port()),
            ..Self::default()
        };
        match (remote.ip().v4_word(), local.ip().v4_word()) {
            (Some(from), Some(to)) => {
                context.family = libc::AF_INET as u32;
                (context.remote_ip4, context.local_ip4) = (from, to);
            }
            _ => {
                context.family = libc::AF_INET6 as u32;
                (context.remote_ip6, context.local_ip6) = (Ip::words(remote.ip()), Ip::words(local.ip()));
            }
        }
        context
    }
}

fn run(program: BorrowedFd<'_>, context: &Context, repeat: u32) -> io::Result<(bool, Duration)> {
    let mut attr = Attr {
        program: program.as_raw_fd() as u32,
        repeat,
        context_in: std::ptr::from_ref(context) as u64,
        context_in_bytes: size_of::<Context>() as u32,
        ..Attr::default()
    };
    // SAFETY: attr is a zero-extended bpf_attr of the stated size; the descriptor and the context outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<Attr>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((attr.verdict == SK_PASS, Duration::from_nanos(u64::from(attr.duration))))
}
