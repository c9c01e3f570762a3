//! Safety: what must hold of every snapshot of every node, at all times, whatever the network does.
//!
//! A catalogue holds nothing that its owner did not sign, never goes back, and loses nobody who
//! is there. Whether it comes to hold everything is the scenario's question, not this file's.

use std::collections::BTreeMap;

use starling_gossip::record::Owner;
use starling_gossip::snapshot::{Presence, Snapshot};

use crate::world::INSTANCE_ID;

/// A snapshot that must not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {observer} {what} {subject}")]
pub struct Violation {
    /// Who published it.
    pub observer: usize,
    /// What it did.
    pub what: &'static str,
    /// About whom.
    pub subject: Owner,
}

/// What was signed so far, and what each node has shown of it.
#[derive(Default)]
pub struct Checker {
    owners: BTreeMap<Owner, Signed>,
    /// By observer: the weight of each owner's instance in its newest snapshot.
    shown: BTreeMap<usize, BTreeMap<Owner, u16>>,
}

#[derive(Default)]
struct Signed {
    /// Every weight its instance ever had; they only grow.
    weights: Vec<u16>,
    has_crashed: bool,
}

impl Checker {
    /// `owner` signs that its instance has `weight`, greater than any before.
    pub fn signs(&mut self, owner: &Owner, weight: u16) {
        self.owners.entry(owner.clone()).or_default().weights.push(weight);
    }

    /// `owner` went down: others may come to miss it.
    pub fn crashes(&mut self, owner: &Owner) {
        self.owners.entry(owner.clone()).or_default().has_crashed = true;
    }

    /// Judges the next snapshot of node `observer`.
    pub fn observe(&mut self, observer: usize, snapshot: &Snapshot) -> Result<(), Violation> {
        let shown = self.shown.remove(&observer).unwrap_or_default();
        let violation = |(what, subject)| Violation { observer, what, subject };
        self.check_members(snapshot).map_err(violation)?;
        let offered = self.offered(snapshot).map_err(violation)?;
        self.check_progress(snapshot, &shown, &offered).map_err(violation)?;
        let mut shown = shown;
        shown.extend(offered);
        self.shown.insert(observer, shown);
        Ok(())
    }

    fn check_members(&self, snapshot: &Snapshot) -> Result<(), (&'static str, Owner)> {
        for (owner, member) in &snapshot.members {
            match self.owners.get(owner) {
                None => return Err(("holds a record that nobody signed, of", owner.clone())),
                Some(_) if member.presence == Presence::Left => {
                    return Err(("believes to have left", owner.clone()));
                }
                Some(signed) if !signed.has_crashed && !member.presence.is_present() => {
                    return Err(("gave up the running", owner.clone()));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The weight of each instance that is offered, all of which were signed.
    fn offered(&self, snapshot: &Snapshot) -> Result<BTreeMap<Owner, u16>, (&'static str, Owner)> {
        let mut offered = BTreeMap::new();
        for it in snapshot.services.values().flatten() {
            let weight = it.instance.weight;
            let is_signed = self.owners.get(&it.owner).is_some_and(|signed| signed.weights.contains(&weight));
            let is_new = offered.insert(it.owner.clone(), weight).is_none();
            if !is_signed || !is_new || it.id.as_str() != INSTANCE_ID {
                return Err(("offers what was never signed by", it.owner.clone()));
            }
        }
        Ok(offered)
    }

    /// What was shown once is shown still, as new as it was, unless its owner is gone.
    fn check_progress(
        &self,
        snapshot: &Snapshot,
        shown: &BTreeMap<Owner, u16>,
        offered: &BTreeMap<Owner, u16>,
    ) -> Result<(), (&'static str, Owner)> {
        for (owner, weight) in shown {
            let has_crashed = self.owners.get(owner).is_some_and(|signed| signed.has_crashed);
            match offered.get(owner) {
                Some(now) if now < weight => return Err(("went back in time about", owner.clone())),
                Some(_) => {}
                None if !has_crashed => return Err(("lost what it knew of", owner.clone())),
                None if snapshot.members.get(owner).is_some_and(|it| it.presence.is_present()) => {
                    return Err(("lost an instance of", owner.clone()));
                }
                None => {}
            }
        }
        Ok(())
    }
}
