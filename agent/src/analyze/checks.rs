//! The checks, a file for each subject.

use super::{Index, Message};

mod canaries;
mod choice;
mod conditions;
mod enforced;
mod enrolment;
mod entries;
mod hosts;
mod mtls;
mod overlap;
mod peers;
mod ports;
mod reach;
mod rules;
mod strict;
mod targets;
mod waypoints;

/// Looks at the input and adds what it finds.
pub(super) type Check = fn(&Index<'_>, &mut Vec<Message>);

pub(super) const ALL: &[Check] = &[
    canaries::check,
    choice::check,
    conditions::check,
    enforced::check,
    enrolment::check,
    entries::check,
    hosts::check,
    mtls::check,
    overlap::check,
    peers::check,
    ports::check,
    reach::check,
    rules::check,
    strict::check,
    targets::check,
    waypoints::check,
];

/// `1 workload`, `2 workloads`.
fn count(number: usize, thing: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{s}")
}

/// The first few of `names`, and how many more there are.
fn few<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const FEW: usize = 3;
    let more = names.len().saturating_sub(FEW);
    let first: Vec<&str> = names.take(FEW).collect();
    match more {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
