//! The source guard where the kernel has no tcx links (before Linux 6.6): a classic tc filter at the ingress of the interface's
//! clsact qdisc (Linux 4.5). It lives as long as the interface, whatever becomes of the agent. Its name, `culvert:<instance>`,
//! says whose it is. The qdisc and the filters of others are left alone, also when ours goes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};
use nix::libc;
use nix::net::if_::if_nameindex;

use crate::sys::rtnetlink::{change, list};

/// What arrives by the interface.
const INGRESS: TcHandle = TcHandle { major: TcHandle::CLSACT.major, minor: TcHandle::MIN_INGRESS };
/// A clsact qdisc has this handle.
const QDISC: TcHandle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
/// The filters with the lowest number run first, and of one number those that came last. A number belongs to one kind of filter and
/// one protocol, so where others have other filters there the next is tried.
const PRIORITIES: std::ops::RangeInclusive<u16> = 1..=8;
/// `culv`: not the handles 1, 2, … that others choose or get by default.
const HANDLE: u32 = 0x6375_6c76;
/// ETH_P_ALL, network order.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();

/// A BPF filter at the ingress of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    header: TcHeader,
    /// Its name: with most tools `<object>:[<section>]`.
    pub(super) name: String,
    /// The id of its program.
    pub(super) program: u32,
}

fn name(instance: &str) -> String {
    format!("culvert:{instance}")
}

/// Puts `program` on the interface, or in the place of the one that the instance has there: at no moment is there none or two.
pub(super) fn put(index: u32, instance: &str, program: BorrowedFd<'_>) -> io::Result<()> {
    let qdisc = message(header(index, TcHandle::CLSACT, QDISC.into(), 0), "clsact", None);
    match change(RouteNetlinkMessage::NewQueueDiscipline(qdisc), NLM_F_CREATE | NLM_F_EXCL) {
        // Also an `ingress` qdisc, whose filters are the same.
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    let own = filters(index)?.into_iter().find(|filter| filter.name == name(instance));
    let places = match own {
        Some(filter) => vec![filter.header],
        None => PRIORITIES.map(|priority| header(index, INGRESS, HANDLE, priority)).collect(),
    };
    let mut failed = io::Error::other("no place for a filter");
    for place in places {
        let options = vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().unsigned_abs())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name(instance))),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ];
        let filter = message(place, "bpf", Some(options));
        match change(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE) {
            Ok(()) => return Ok(()),
            // Others have another kind of filter, or protocol, at this priority.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => failed = error,
            Err(error) => return Err(error),
        }
    }
    Err(failed)
}

/// Takes the instance's filter off the interface; returns whether there was one. A missing interface has none.
pub(super) fn remove(index: u32, instance: &str) -> io::Result<bool> {
    let own = filters(index)?.into_iter().filter(|filter| filter.name == name(instance));
    let mut removed = false;
    for filter in own {
        let order = RouteNetlinkMessage::DelTrafficFilter(message(filter.header, "bpf", None));
        match change(order, 0) {
            // It went with its interface.
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {
                return Err(error);
            }
            _ => removed = true,
        }
    }
    Ok(removed)
}

/// Takes the instance's filters off all interfaces of this network namespace that `keep` does not name; returns how many.
pub(super) fn sweep(instance: &str, keep: impl Fn(u32) -> bool) -> io::Result<usize> {
    let mut removed = 0;
    for index in interfaces()?.into_iter().filter(|index| !keep(*index)) {
        removed += usize::from(remove(index, instance)?);
    }
    Ok(removed)
}

/// How many interfaces of this network namespace have a filter of the instance.
pub(super) fn count(instance: &str) -> io::Result<usize> {
    let mut count = 0;
    for index in interfaces()? {
        count += usize::from(filters(index)?.iter().any(|filter| filter.name == name(instance)));
    }
    Ok(count)
}

/// The BPF filters of an interface, in the order in which they run.
pub(super) fn filters(index: u32) -> io::Result<Vec<Filter>> {
    let question = message(header(index, INGRESS, 0, 0), "", None);
    let answers = list(RouteNetlinkMessage::GetTrafficFilter(question));
    match answers {
        Ok(answers) => Ok(answers.into_iter().filter_map(filter).collect()),
        // No interface, or no qdisc that could have filters.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn interfaces() -> io::Result<Vec<u32>> {
    Ok(if_nameindex()?.iter().map(|interface| interface.index()).collect())
}

fn filter(answer: RouteNetlinkMessage) -> Option<Filter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { return None };
    let (mut name, mut program) = (None, None);
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(text)) => name = Some(text.clone()),
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
                _ => {}
            }
        }
    }
    // Classic BPF has no id, and each priority is announced by a message without a filter.
    Some(Filter { header: message.header, name: name?, program: program? })
}

fn header(index: u32, parent: TcHandle, handle: u32, priority: u16) -> TcHeader {
    let mut header = TcMessage::with_index(index as i32).header;
    header.parent = parent;
    header.handle = handle.into();
    if priority != 0 {
        header.info = u32::from(priority) << 16 | u32::from(ALL_PROTOCOLS);
    }
    header
}

fn message(header: TcHeader, kind: &str, options: Option<Vec<TcOption>>) -> TcMessage {
    let mut attributes = Vec::new();
    if !kind.is_empty() {
        attributes.push(TcAttribute::Kind(kind.to_owned()));
    }
    attributes.extend(options.map(TcAttribute::Options));
    TcMessage::from_parts(header, attributes)
}
