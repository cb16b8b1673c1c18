//! More than an entry's half in one system call, which aya does not offer.
//!
//! Whole maps by BPF_MAP_LOOKUP_BATCH and BPF_MAP_UPDATE_BATCH (Linux 5.6): entry by entry a map of 100,000 takes 200,000 calls, and
//! one that changes meanwhile may start over at any of them. An entry that is taken out of a map by
//! BPF_MAP_LOOKUP_AND_DELETE_ELEM (hash maps: Linux 5.14). `unsafe` is fenced here.
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper for these commands")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use bytemuck::Pod;
use nix::libc;

const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
/// Entries a call: more than a bucket of any of our hash tables holds.
const AT_ONCE: u32 = 4096;

/// `batch` of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Attr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// The same for a command on one element.
#[repr(C)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Keys and values of a map, back to back.
#[derive(Default)]
pub(super) struct Entries {
    pub(super) keys: Vec<u8>,
    pub(super) values: Vec<u8>,
    pub(super) count: usize,
}

/// Every entry of a hash map or LPM trie that is there for the whole of the call; sizes in bytes.
///
/// # Errors
///
/// What the kernel said.
pub(super) fn read(map: BorrowedFd<'_>, key_size: usize, value_size: usize) -> io::Result<Entries> {
    let mut all = Entries::default();
    // A place in the map: a bucket number, or the last key.
    let (mut from, mut to) = (vec![0_u8; key_size.max(8)], vec![0_u8; key_size.max(8)]);
    let mut first = true;
    let mut at_once = AT_ONCE;
    loop {
        let mut keys = vec![0_u8; key_size * at_once as usize];
        let mut values = vec![0_u8; value_size * at_once as usize];
        let mut attr = Attr {
            in_batch: if first { 0 } else { from.as_ptr() as u64 },
            out_batch: to.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: at_once,
            map: map.as_raw_fd() as u32,
            ..Attr::default()
        };
        let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
        let error = result.err();
        match error.as_ref().and_then(io::Error::raw_os_error) {
            // A bucket is larger than that.
            Some(libc::ENOSPC) if attr.count == 0 && at_once < 1 << 20 => {
                at_once *= 2;
                continue;
            }
            None | Some(libc::ENOENT) => {}
            Some(_) => return Err(error.unwrap_or_else(io::Error::last_os_error)),
        }
        let count = (attr.count as usize).min(at_once as usize);
        all.keys.extend(keys.iter().take(count * key_size));
        all.values.extend(values.iter().take(count * value_size));
        all.count += count;
        if error.is_some() {
            return Ok(all);
        }
        std::mem::swap(&mut from, &mut to);
        first = false;
    }
}

/// [`read`] with types.
///
/// # Errors
///
/// As [`read`].
pub(super) fn read_as<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let entries = read(map, size_of::<K>(), size_of::<V>())?;
    let keys = entries.keys.chunks_exact(size_of::<K>()).map(bytemuck::pod_read_unaligned);
    let values = entries.values.chunks_exact(size_of::<V>()).map(bytemuck::pod_read_unaligned);
    Ok(keys.zip(values).collect())
}

/// Writes entries, as many as [`read`] returned of another map.
///
/// # Errors
///
/// What the kernel said of the first that it did not take.
pub(super) fn write(map: BorrowedFd<'_>, entries: &Entries) -> io::Result<()> {
    if entries.count == 0 {
        return Ok(());
    }
    let mut attr = Attr {
        keys: entries.keys.as_ptr() as u64,
        values: entries.values.as_ptr() as u64,
        count: u32::try_from(entries.count).map_err(io::Error::other)?,
        map: map.as_raw_fd() as u32,
        ..Attr::default()
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attr)
}

/// The value under `key` of a hash map, which then no longer has it; `None` when there is none. The types must be the map's.
///
/// # Errors
///
/// What the kernel said.
pub(super) fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::zeroed();
    let mut attr = ElementAttr {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `A`: [`Attr`] or [`ElementAttr`], as `command` takes it.
fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<()> {
    // SAFETY: attr is a bpf_attr of the stated size; its pointers are to buffers that outlive the call and have room for
    // as many keys and values of the map's sizes as it says, and for a place in the map.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
