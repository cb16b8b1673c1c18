//! bpf(2) calls on links that aya does not offer: create, pin and atomic program replacement for cgroup and netns
//! links alike. `unsafe` is fenced here.
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper for these commands")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;

/// `enum bpf_attach_type` (include/uapi/linux/bpf.h).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachType {
    PacketIngress = 0,
    PacketEgress = 1,
    SockCreate = 2,
    SockOps = 3,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    SendMsg4 = 14,
    SendMsg6 = 15,
    RecvMsg4 = 19,
    RecvMsg6 = 20,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    SkLookup = 36,
    TcxIngress = 46,
}

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
/// Where among the programs of a hook a new one goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Where the kernel puts it by itself: behind all that are there.
    Last,
    /// Before all that are there (`BPF_F_BEFORE` without a relative).
    First,
}
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
/// `enum bpf_link_type`.
const BPF_LINK_TYPE_CGROUP: u32 = 3;
/// Programs that one hook may have (`BPF_CGROUP_MAX_PROGS`, `BPF_MPROG_MAX`).
const MOST_PROGRAMS: usize = 64;

/// The head of `union bpf_attr` as the four commands use it, zeroed behind.
#[repr(C, align(8))]
struct Attr {
    words: [u32; 32],
}

/// A link that survives the agent: it lives as long as its pin.
#[derive(Debug)]
pub(super) struct PinnedLink {
    path: PathBuf,
    _fd: OwnedFd,
}

impl PinnedLink {
    /// Attaches `program` to `target` (a cgroup directory or a network namespace) under the pin `path`. When the pin
    /// exists already, the program behind it is replaced atomically instead.
    pub(super) fn attach(
        path: &Path,
        program: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        kind: AttachType,
    ) -> io::Result<Self> {
        Self::attach_to(path, program, target.as_raw_fd() as u32, kind, Place::Last)
    }

    /// Attaches `program` to what arrives by the interface with this index (tcx, Linux 6.6), before the programs that are there:
    /// a program may have the last word on a packet, and those behind it never see it. Else as [`PinnedLink::attach`].
    pub(super) fn attach_interface(path: &Path, program: BorrowedFd<'_>, index: u32) -> io::Result<Self> {
        Self::attach_to(path, program, index, AttachType::TcxIngress, Place::First)
    }

    fn attach_to(
        path: &Path,
        program: BorrowedFd<'_>,
        target: u32,
        kind: AttachType,
        place: Place,
    ) -> io::Result<Self> {
        if let Some(fd) = get(path)? {
            match update(fd.as_fd(), program) {
                Ok(()) => return Ok(Self { path: path.to_owned(), _fd: fd }),
                // The target is gone (a recycled name): what is pinned there attaches to nothing.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => std::fs::remove_file(path)?,
                Err(error) => return Err(error),
            }
        }
        let fd = create(program, target, kind, place)?;
        pin(fd.as_fd(), path)?;
        Ok(Self { path: path.to_owned(), _fd: fd })
    }

    /// Detaches: removes the pin and closes the last descriptor.
    pub(super) fn detach(self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Puts `program` behind the link pinned at `path`. A link whose target is gone is left as it is.
pub(super) fn replace_program(path: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let Some(link) = get(path)? else { return Ok(()) };
    match update(link.as_fd(), program) {
        Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(error),
        _ => Ok(()),
    }
}

/// A link that lives as long as its descriptor, or its pin. `target`: a descriptor, or the index of an interface.
pub(super) fn create(
    program: BorrowedFd<'_>,
    target: u32,
    kind: AttachType,
    place: Place,
) -> io::Result<OwnedFd> {
    let mut words = [0; 32];
    words[0] = program.as_raw_fd() as u32;
    words[1] = target;
    words[2] = kind as u32;
    words[3] = match place {
        Place::Last => 0,
        Place::First => 1 << 3,
    };
    bpf(BPF_LINK_CREATE, words).map(own)
}

fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut words = [0; 32];
    words[0] = link.as_raw_fd() as u32;
    words[1] = program.as_raw_fd() as u32;
    bpf(BPF_LINK_UPDATE, words).map(drop)
}

fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    with_path(path, |mut words| {
        words[2] = fd.as_raw_fd() as u32;
        bpf(BPF_OBJ_PIN, words).map(drop)
    })
}

fn get(path: &Path) -> io::Result<Option<OwnedFd>> {
    match with_path(path, |words| bpf(BPF_OBJ_GET, words)) {
        Ok(fd) => Ok(Some(own(fd))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the link pinned at `path` is at its cgroup, network namespace or interface, or that is gone; `None` without a pin
/// (Linux 5.8).
pub(super) fn is_attached(path: &Path) -> io::Result<Option<bool>> {
    let Some(link) = get(path)? else { return Ok(None) };
    // `struct bpf_link_info`: type, id, program, and at 16 the target's id (u64) or index (u32), which is 0 when it is gone.
    let mut info = [0_u32; 32];
    let address = info.as_mut_ptr() as u64;
    let mut words = [0; 32];
    words[0] = link.as_raw_fd() as u32;
    words[1] = size_of_val(&info) as u32;
    words[2] = address as u32;
    words[3] = (address >> 32) as u32;
    bpf(BPF_OBJ_GET_INFO_BY_FD, words)?;
    let of_cgroup = info[0] == BPF_LINK_TYPE_CGROUP;
    Ok(Some(info[4] != 0 || (of_cgroup && info[5] != 0)))
}

/// The ids of the programs that run at a hook of `target`: of a cgroup with those of its ancestors when `effective`, of a network
/// namespace, or of an interface by its index; in the order in which they run (Linux 4.15, sk_lookup 5.9, tcx 6.6).
pub(super) fn programs_at(target: u32, kind: AttachType, effective: bool) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MOST_PROGRAMS];
    let address = ids.as_mut_ptr() as u64;
    let mut words = [0; 32];
    words[0] = target;
    words[1] = kind as u32;
    words[2] = if effective { BPF_F_QUERY_EFFECTIVE } else { 0 };
    words[4] = address as u32;
    words[5] = (address >> 32) as u32;
    words[6] = MOST_PROGRAMS as u32;
    let mut attr = Attr { words };
    call(BPF_PROG_QUERY, &mut attr)?;
    let count = (attr.words[6] as usize).min(MOST_PROGRAMS);
    Ok(ids.iter().take(count).copied().collect())
}

/// Whether the kernel has tcx links (Linux 6.6); index 1 is `lo`, in every network namespace.
pub(crate) fn has_tcx() -> bool {
    !matches!(programs_at(1, AttachType::TcxIngress, false), Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}

/// Whether the kernel has cgroup links and can replace the program behind one (Linux 5.7): it looks at the descriptors then, where
/// others know no such command.
pub(super) fn has_link_update() -> bool {
    let mut words = [0; 32];
    words[0] = u32::MAX;
    words[1] = u32::MAX;
    !matches!(bpf(BPF_LINK_UPDATE, words), Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}

fn with_path<T>(path: &Path, f: impl FnOnce([u32; 32]) -> io::Result<T>) -> io::Result<T> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let address = path.as_ptr() as u64;
    let mut words = [0; 32];
    words[0] = address as u32;
    words[1] = (address >> 32) as u32;
    f(words)
}

fn bpf(command: libc::c_long, words: [u32; 32]) -> io::Result<libc::c_int> {
    call(command, &mut Attr { words })
}

fn call(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_int> {
    // SAFETY: attr is a zero-extended bpf_attr of the stated size; descriptors, the path and the ids outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

fn own(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel just returned this descriptor and nobody else holds its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
