//! PURE: what a changed list of services means for each instance.

use std::collections::BTreeMap;
use std::sync::Arc;

use starling_gossip::record::Label;

use crate::config::Service;

/// What happens to one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<'s> {
    /// It is new, or wanted again before it was gone.
    Start(&'s Service),
    /// Its workload is the same, and something about it has changed.
    Update(&'s Service),
    /// It is another workload from now on.
    Replace(&'s Service),
    /// It is gone.
    Remove(Label),
}

impl Step<'_> {
    /// Which instance.
    pub(super) fn id(&self) -> &Label {
        match self {
            Self::Start(service) | Self::Update(service) | Self::Replace(service) => &service.id,
            Self::Remove(id) => id,
        }
    }
}

/// From what was served (`None`: being withdrawn) to `after`; what stays the same has no step.
pub(super) fn steps<'s, 'b>(
    before: impl Iterator<Item = (&'b Label, Option<Arc<Service>>)>,
    after: &'s [Service],
) -> Vec<Step<'s>> {
    let mut before: BTreeMap<&Label, Option<Arc<Service>>> = before.collect();
    let mut steps = Vec::new();
    for service in after {
        match before.remove(&service.id).flatten() {
            None => steps.push(Step::Start(service)),
            Some(old) if *old == *service => {}
            Some(old) if old.is_same_workload(service) => steps.push(Step::Update(service)),
            Some(_) => steps.push(Step::Replace(service)),
        }
    }
    let gone = before.into_iter().filter(|(_, served)| served.is_some());
    steps.extend(gone.map(|(id, _)| Step::Remove(id.clone())));
    steps
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn services(entries: &[(&str, &str)]) -> Vec<Service> {
        let section = |(id, keys): &(&str, &str)| {
            let address = if keys.contains("address") { "" } else { "address = \"127.0.0.1:80\"" };
            format!("[[service]]\nname = \"web\"\nid = {id:?}\n{address}\n{keys}\n")
        };
        let text: String = entries.iter().map(section).collect();
        let none: [(String, String); 0] = [];
        Config::parse(&text, Path::new("starling.toml"), none).expect("services").services
    }

    fn planned(before: &[(&str, &str)], after: &[(&str, &str)]) -> Vec<String> {
        let (before, after) = (services(before), services(after));
        let before = before.iter().map(|service| (&service.id, Some(Arc::new(service.clone()))));
        let name = |step: &Step<'_>| match step {
            Step::Start(service) => format!("start {}", service.id),
            Step::Update(service) => format!("update {}", service.id),
            Step::Replace(service) => format!("replace {}", service.id),
            Step::Remove(id) => format!("remove {id}"),
        };
        steps(before, &after).iter().map(name).collect()
    }

    #[test]
    fn what_stays_the_same_is_left_alone() {
        let same = [("a", ""), ("b", "weight = 3")];
        assert!(planned(&same, &same).is_empty());
        let turned = [("b", "weight = 3"), ("a", "")];
        assert!(planned(&same, &turned).is_empty(), "order means nothing");
    }

    #[test]
    fn a_workload_at_the_same_address_is_the_same_workload() {
        for keys in ["weight = 3", "version = \"v2\"", "tags = { a = \"b\" }", "probe = { tcp = true }"] {
            assert_eq!(planned(&[("a", "")], &[("a", keys)]), ["update a"], "{keys}");
        }
        for keys in ["address = \"127.0.0.1:81\"", "protocol = \"tcp\""] {
            assert_eq!(planned(&[("a", "")], &[("a", keys)]), ["replace a"], "{keys}");
        }
    }

    #[test]
    fn some_come_and_some_go() {
        assert_eq!(planned(&[("a", ""), ("b", "")], &[("b", ""), ("c", "")]), ["start c", "remove a"]);
    }

    #[test]
    fn one_that_is_being_withdrawn_starts_again_and_is_not_removed_twice() {
        let after = services(&[("a", "")]);
        let leaving = [(&after[0].id, None)];
        assert_eq!(steps(leaving.into_iter(), &after), [Step::Start(&after[0])]);
        let leaving = [(&after[0].id, None)];
        assert!(steps(leaving.into_iter(), &[]).is_empty());
    }
}
