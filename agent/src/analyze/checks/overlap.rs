//! ALLOW policies that decide nothing because of others.

use std::collections::HashMap;

use super::super::index::{Policy, Reach};
use super::super::{Code, Index, Message};
use crate::policy::{Action, Rule};

pub(super) fn check(index: &Index<'_>, out: &mut Vec<Message>) {
    let root = index.settings.root_namespace.as_str();
    let allows = index.policies.iter().filter(|p| p.object.action == Action::Allow && p.is_enforced());
    let allows: Vec<_> = allows.filter_map(|p| Some((p, Reach::of_policy(p.object, root)?))).collect();
    let scopes = Scopes::new(&allows);
    for (policy, reach) in &allows {
        out.extend(allows_all(policy, reach, &scopes));
        out.extend(allows_nothing(policy, reach, &scopes));
    }
}

/// How many of the others a message names. A list of all in each message would cost the square of their number.
const SHOWN: usize = 3;

/// ALLOW policies by how far they reach.
struct Scopes<'a> {
    all: Group<'a>,
    by_namespace: HashMap<&'a str, Group<'a>>,
    by_reach: HashMap<Reach<'a>, Group<'a>>,
}

#[derive(Default)]
struct Group<'a> {
    policies: Vec<&'a Policy<'a>>,
    with_rules: usize,
}

impl<'a> Group<'a> {
    fn add(&mut self, policy: &'a Policy<'a>) {
        self.policies.push(policy);
        self.with_rules += usize::from(!policy.object.rules.is_empty());
    }

    /// Those that are not `policy`, in words.
    fn others(&self, policy: &Policy<'_>) -> String {
        let others = self.policies.iter().filter(|p| !std::ptr::eq(**p, policy));
        let shown: Vec<&str> = others.take(SHOWN).map(|p| p.origin.name).collect();
        match self.policies.len().saturating_sub(SHOWN + 1) {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }
}

impl<'a> Scopes<'a> {
    fn new(allows: &[(&'a Policy<'a>, Reach<'a>)]) -> Self {
        let mut scopes =
            Self { all: Group::default(), by_namespace: HashMap::new(), by_reach: HashMap::new() };
        for (policy, reach) in allows {
            scopes.all.add(policy);
            scopes.by_namespace.entry(reach.namespace).or_default().add(policy);
            scopes.by_reach.entry(*reach).or_default().add(policy);
        }
        scopes
    }

    /// The policies that reach nothing beyond what `reach` does.
    fn within<'s>(&'s self, reach: &Reach<'s>) -> Option<&'s Group<'s>> {
        match (reach.namespace, reach.selector) {
            ("", None) => Some(&self.all),
            (namespace, None) => self.by_namespace.get(namespace),
            (_, Some(_)) => self.by_reach.get(reach),
        }
    }
}

fn allows_all(policy: &Policy<'_>, reach: &Reach<'_>, scopes: &Scopes<'_>) -> Option<Message> {
    let n = policy.object.rules.iter().position(|rule| *rule == Rule::default())?;
    let group = scopes.within(reach).filter(|group| group.policies.len() > 1)?;
    let field = format!("spec.rules[{n}]");
    let text = format!(
        "{field}: allows every connection, so these ALLOW policies decide nothing: {}; remove the rule, or them.",
        group.others(policy)
    );
    Some(policy.origin.message(Code::AllowAllHidesOthers, &field, text))
}

fn allows_nothing(policy: &Policy<'_>, reach: &Reach<'_>, scopes: &Scopes<'_>) -> Option<Message> {
    let group = scopes.by_reach.get(reach).filter(|group| group.with_rules > 0)?;
    let text = format!(
        "It allows nothing, and adds nothing: the other ALLOW policies of its scope ({}) already refuse whatever they do \
         not match.",
        group.others(policy)
    );
    policy.object.rules.is_empty().then(|| policy.origin.message(Code::DenyAllBesideAllow, "spec", text))
}

#[cfg(test)]
mod tests {
    use crate::analyze::tests::{named_policy, texts};

    const SOME: &str = "{rules: [{to: [{operation: {ports: [\"80\"]}}]}]}";

    #[test]
    fn a_rule_that_allows_all_hides_the_others_of_its_scope() {
        let all = |name| named_policy("a", name, "{rules: [{}]}");
        let found = texts(&[all("all"), named_policy("a", "some", SOME)].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("[CUL0108] (AuthorizationPolicy a/all "), "{found:?}");
        assert!(found[0].contains("decide nothing: some;"), "{found:?}");
        assert!(texts(&[all("all"), named_policy("b", "some", SOME)].concat()).is_empty());
        let mesh = named_policy("istio-system", "all", "{rules: [{}]}");
        assert_eq!(texts(&[mesh, named_policy("b", "some", SOME)].concat()).len(), 1);
        let many: String = (0..7).map(|n| named_policy("a", &format!("p{n}"), SOME)).collect();
        assert!(texts(&[all("all"), many].concat())[0].contains("p0, p1, p2 and 4 more;"));
    }

    #[test]
    fn a_policy_without_rules_beside_others_adds_nothing() {
        let nothing = named_policy("a", "nothing", "{}");
        assert!(texts(&nothing).is_empty());
        let found = texts(&[nothing.clone(), named_policy("a", "some", SOME)].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("Info [CUL0109] (AuthorizationPolicy a/nothing "), "{found:?}");
        assert!(texts(&[nothing, named_policy("b", "some", SOME)].concat()).is_empty());
    }
}
