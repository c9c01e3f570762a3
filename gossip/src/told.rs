//! What a node learns of others, as lines of its log: who came, fell silent, and changed.
//!
//! Written at the level `debug` and worth nothing else: no decision reads it. With the level off it
//! costs one look at a flag for each snapshot.

use std::collections::BTreeMap;

use tracing::{Level, debug, enabled};

use crate::record::{Instance, Label, Owner};
use crate::snapshot::Snapshot;

/// Logs how `after` differs from `before`, a line for each member and instance.
pub(crate) fn tell_changes(before: &Snapshot, after: &Snapshot) {
    if enabled!(Level::DEBUG) {
        tell_members(before, after);
        tell_instances(before, after);
    }
}

fn tell_members(before: &Snapshot, after: &Snapshot) {
    for (owner, member) in &after.members {
        let was = before.members.get(owner).map(|member| member.presence);
        if was != Some(member.presence) {
            let was = was.map_or("unknown", |presence| presence.as_str());
            debug!(member = %owner, state = member.presence.as_str(), was, "member changed");
        }
    }
}

fn tell_instances(before: &Snapshot, after: &Snapshot) {
    let (before, after) = (instances(before), instances(after));
    for ((owner, id), instance) in &after {
        if before.get(&(*owner, *id)) != Some(instance) {
            let (service, weight, health) = (&instance.service, instance.weight, instance.health.as_str());
            debug!(member = %owner, %id, %service, weight, health, "instance changed");
        }
    }
    for (owner, id) in before.keys().filter(|key| !after.contains_key(key)) {
        debug!(member = %owner, %id, "instance gone");
    }
}

fn instances(snapshot: &Snapshot) -> BTreeMap<(&Owner, &Label), &Instance> {
    let each = snapshot.services.values().flatten();
    each.map(|it| ((&it.owner, &it.id), it.instance.as_ref())).collect()
}
