//! What happens next: follows from the seed and from what was before.

use std::fmt;

use super::cluster::{MAY_LEAVE, MAY_OPT_OUT, NODES};
use super::state::State;
use crate::dice::Dice;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The cluster is told to be like this; the words say what that is.
    Change(State, String),
    /// A pod comes.
    Come(&'static str),
    /// A pod goes, the service first.
    Go(&'static str),
    /// SIGKILL, a while, start; a change meanwhile or none.
    Kill(&'static str, Option<Box<Action>>),
    /// SIGTERM and start.
    Restart(&'static str),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change(_, words) => f.write_str(words),
            Self::Come(pod) => write!(f, "pod {pod} comes"),
            Self::Go(pod) => write!(f, "pod {pod} goes"),
            Self::Kill(node, None) => write!(f, "the agent of {node} is killed and started"),
            Self::Kill(node, Some(meanwhile)) => {
                write!(f, "the agent of {node} is killed and started; meanwhile {meanwhile}")
            }
            Self::Restart(node) => write!(f, "the agent of {node} is restarted"),
        }
    }
}

/// How often each is offered: a policy, who is in the mesh, and what leads back to the beginning, where most is allowed.
const POLICY: usize = 2;
const MEMBER: usize = 1;
const HOMEWARD: usize = 4;

/// The next step from `state`.
pub(crate) fn next(dice: &mut Dice, state: &State) -> Action {
    match dice.below(12) {
        0 | 1 => {
            let node = *dice.pick(&NODES).unwrap_or(&"n1");
            let meanwhile = dice.chance(1, 2).then(|| Box::new(change(dice, state)));
            Action::Kill(node, meanwhile)
        }
        2 => Action::Restart(dice.pick(&NODES).unwrap_or(&"n1")),
        3 | 4 => {
            let guest = *dice.pick(&["web/guest", "shop/guest"]).unwrap_or(&"web/guest");
            if state.present.contains(guest) { Action::Go(guest) } else { Action::Come(guest) }
        }
        _ => change(dice, state),
    }
}

fn change(dice: &mut Dice, state: &State) -> Action {
    let base = State::base();
    let mut choices = Vec::new();
    let mut offer = |new: State, weight: usize, words: String| {
        choices.extend(vec![Action::Change(new, words); weight]);
    };
    let weight = |away: bool, outward: usize| if away { HOMEWARD } else { outward };
    for name in MAY_LEAVE {
        let (mut new, inside) = (state.clone(), state.enrolled.contains(name));
        if inside {
            new.enrolled.remove(name)
        } else {
            new.enrolled.insert(name)
        };
        let verb = if inside { "leaves" } else { "joins" };
        offer(
            new,
            weight(inside != base.enrolled.contains(name), MEMBER),
            format!("namespace {name} {verb} the mesh"),
        );
    }
    for pod in MAY_OPT_OUT {
        let (mut new, out) = (state.clone(), state.opted_out.contains(pod));
        if out {
            new.opted_out.remove(pod)
        } else {
            new.opted_out.insert(pod)
        };
        let verb = if out { "is no longer" } else { "is" };
        offer(new, weight(out, MEMBER), format!("pod {pod} {verb} labelled out of the mesh"));
    }
    let verb = |there: bool| if there { "goes" } else { "comes" };
    let deny = State { deny_web: !state.deny_web, ..state.clone() };
    offer(deny, weight(state.deny_web, POLICY), format!("policy shop/deny-web {}", verb(state.deny_web)));
    let allow = State { allow_web: !state.allow_web, ..state.clone() };
    offer(allow, weight(state.allow_web, POLICY), format!("policy shop/allow-web {}", verb(state.allow_web)));
    let mode = if state.strict { "PERMISSIVE" } else { "STRICT" };
    let strict = State { strict: !state.strict, ..state.clone() };
    offer(strict, weight(!state.strict, POLICY), format!("shop becomes {mode}"));
    dice.pick(&choices).cloned().unwrap_or(Action::Restart("n1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seed: u64) -> Vec<String> {
        let (mut dice, mut state, mut said) = (Dice::new(seed, 0), State::base(), Vec::new());
        for _ in 0..200 {
            let action = next(&mut dice, &state);
            said.push(action.to_string());
            match action {
                Action::Change(new, _) => state = new,
                Action::Kill(_, Some(meanwhile)) => {
                    if let Action::Change(new, _) = *meanwhile {
                        state = new;
                    }
                }
                Action::Come(pod) => drop(state.present.insert(pod)),
                Action::Go(pod) => drop(state.present.remove(pod)),
                _ => {}
            }
        }
        said
    }

    #[test]
    fn a_seed_is_a_schedule_and_everything_happens() {
        let said = run(1);
        assert_eq!(said, run(1));
        assert_ne!(said, run(2));
        for what in [
            "namespace web leaves the mesh",
            "namespace shop joins the mesh",
            "pod shop/s2 is labelled out of the mesh",
            "policy shop/deny-web comes",
            "policy shop/allow-web goes",
            "shop becomes PERMISSIVE",
            "shop becomes STRICT",
            "pod shop/guest comes",
            "pod web/guest goes",
            "the agent of n1 is killed and started",
            "the agent of n2 is restarted",
        ] {
            assert!(said.iter().any(|s| s == what), "{what}");
        }
        assert!(said.iter().any(|s| s.contains("; meanwhile ")));
    }
}
