//! PURE: a part of a service: those of its instances that have a version, or tags.

use std::collections::BTreeMap;

use starling_gossip::record::{Instance, Label};

use super::{Excluded, Exclusion, Route};

/// What is asked of an instance; nothing is a part as large as the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subset {
    /// Its version.
    pub version: Option<Label>,
    /// Tags it must have, with these values; others do not matter.
    pub tags: BTreeMap<Label, Label>,
}

impl Subset {
    /// Whether it asks for nothing.
    pub fn is_whole(&self) -> bool {
        self.version.is_none() && self.tags.is_empty()
    }

    /// Whether an instance is of it.
    pub fn contains(&self, instance: &Instance) -> bool {
        (self.version.is_none() || self.version == instance.version)
            && self.tags.iter().all(|(tag, value)| instance.tags.get(tag) == Some(value))
    }

    /// What a route to this part of `service` is called: `payments@version=v2,track=canary`. No service's
    /// name has an `@`, and no URL minds one.
    pub fn route_name(&self, service: &str) -> String {
        if self.is_whole() {
            return service.to_owned();
        }
        let version = self.version.iter().map(|version| format!("version={version}"));
        let tags = self.tags.iter().map(|(tag, value)| format!("{tag}={value}"));
        let parts: Vec<String> = version.chain(tags).collect();
        format!("{service}@{}", parts.join(","))
    }
}

/// The name that a route's name begins with.
pub fn service_of(route_name: &str) -> &str {
    route_name.split('@').next().unwrap_or_default()
}

/// Leaves in `route` the candidates of `subset` alone, and says so of the others.
pub fn restrict(route: &mut Route, subset: &Subset) {
    if subset.is_whole() {
        return;
    }
    let others = route.candidates.extract_if(.., |candidate| !subset.contains(&candidate.instance));
    let others =
        others.map(|candidate| Excluded { target: candidate.target, reason: Exclusion::OtherSubset });
    route.excluded.extend(others);
}

#[cfg(test)]
mod tests {
    use super::super::tests::offered;
    use super::*;

    fn label(text: &str) -> Label {
        text.parse().expect("a label")
    }

    #[test]
    fn an_instance_is_of_a_part_by_its_version_and_its_tags() {
        let whole = Subset::default();
        let canary =
            Subset { version: Some(label("v2")), tags: BTreeMap::from([(label("track"), label("canary"))]) };
        let instance = |version: &str, track: &str| {
            let made = offered("a", |_, instance, _| {
                instance.version = Some(label(version));
                instance.tags = BTreeMap::from([(label("track"), label(track)), (label("x"), label("y"))]);
            });
            made.instance
        };
        assert!(whole.is_whole() && !canary.is_whole());
        assert!(whole.contains(&instance("v1", "main")) && canary.contains(&instance("v2", "canary")));
        assert!(!canary.contains(&instance("v2", "main")) && !canary.contains(&instance("v1", "canary")));
        let name = canary.route_name("cart.shop");
        assert_eq!((name.as_str(), service_of(&name)), ("cart.shop@version=v2,track=canary", "cart.shop"));
        assert_eq!(service_of(&whole.route_name("web")), "web");
    }
}
