//! Instances that somebody registers while the node runs, by the admin API.
//!
//! They stand beside the configured ones: a reload leaves them alone, and neither may take the
//! other's id. They are not remembered over a restart.

use std::slice;
use std::time::Duration;

use starling_gossip::record::{Health, Label};

use super::heartbeat::Heartbeat;
use super::{ApplyError, Entry, LocalInstances, Source, plan};
use crate::config::Service;

/// One instance as people see it.
pub(crate) struct InstanceState {
    /// What is served.
    pub(crate) service: std::sync::Arc<Service>,
    /// What is announced.
    pub(crate) health: Health,
    /// Why it is not healthy.
    pub(crate) reason: Option<String>,
    /// On whose word.
    pub(crate) source: Source,
    /// How long the last heartbeat is still good, where there are heartbeats.
    pub(crate) ttl_remaining: Option<Duration>,
}

/// Why an instance was not registered, withdrawn or kept alive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegisterError {
    /// The node cannot take it.
    #[error(transparent)]
    NotNow(#[from] ApplyError),
    /// The configuration has it.
    #[error("{0} is configured: change the configuration file instead, or choose another id")]
    Configured(Label),
    /// Nobody has registered it.
    #[error("there is no instance {0}; register it by PUT /v1/instances/{0}")]
    Unknown(Label),
    /// It was registered without a time to live.
    #[error("{0} was registered without a ttl, so nobody waits for its heartbeats")]
    NoTtl(Label),
}

impl LocalInstances {
    /// Serves `service` too from now on, or as it is described now; counts as a heartbeat. `true`
    /// when it is new.
    pub(crate) fn register(&self, service: &Service, ttl: Option<Duration>) -> Result<bool, RegisterError> {
        let mut table = self.shared.table();
        table.check(slice::from_ref(service))?;
        let served = table.entries.get(&service.id).filter(|entry| !entry.is_withdrawn());
        if served.is_some_and(|entry| entry.source == Source::Configuration) {
            return Err(RegisterError::Configured(service.id.clone()));
        }
        let before = served.map(|entry| (&service.id, entry.served()));
        let is_new = before.is_none();
        for step in plan::steps(before.into_iter(), slice::from_ref(service)) {
            self.shared.take(&mut table, step, 1);
        }
        if let Some(entry) = table.entries.get_mut(&service.id) {
            entry.source = Source::Admin;
            let beat = ttl.map(|ttl| Heartbeat::new(ttl, self.shared.clock.now()));
            entry.beats.send_replace(beat);
        }
        self.shared.publish(&table);
        Ok(is_new)
    }

    /// Somebody stands by the instance, and says how it is.
    pub(crate) fn heartbeat(&self, id: &Label, is_well: bool) -> Result<Duration, RegisterError> {
        let table = self.shared.table();
        let entry = table.registered(id)?;
        let now = self.shared.clock.now();
        let Some(mut beat) = *entry.beats.borrow() else { return Err(RegisterError::NoTtl(id.clone())) };
        beat.handle_beat(is_well, now);
        entry.beats.send_replace(Some(beat));
        Ok(beat.remaining(now))
    }

    /// Drains a registered instance and withdraws it.
    pub(crate) fn deregister(&self, id: &Label) -> Result<(), RegisterError> {
        let mut table = self.shared.table();
        table.registered(id)?;
        self.shared.take(&mut table, plan::Step::Remove(id.clone()), 1);
        Ok(())
    }

    /// All of them, by id.
    pub(crate) fn states(&self) -> Vec<(Label, InstanceState)> {
        let now = self.shared.clock.now();
        let state = |entry: &Entry| {
            let status = entry.status.borrow().clone();
            InstanceState {
                service: entry.workload.service_now(),
                health: status.health,
                reason: status.reason,
                source: entry.source,
                ttl_remaining: entry.beats.borrow().map(|beat| beat.remaining(now)),
            }
        };
        self.shared.table().entries.iter().map(|(id, entry)| (id.clone(), state(entry))).collect()
    }
}

impl super::Shared {
    /// Nobody stands by `id` any more, unless a heartbeat came just now.
    pub(super) fn expire(self: &std::sync::Arc<Self>, id: &Label) {
        let mut table = self.table();
        let now = self.clock.now();
        let has_expired = table.entries.get(id).is_some_and(|entry| {
            let standing = entry.beats.borrow().map(|beat| beat.standing(now));
            standing == Some(super::heartbeat::Standing::Expired) && !table.ended
        });
        if has_expired {
            self.take(&mut table, plan::Step::Remove(id.clone()), 1);
        }
    }
}

impl super::Table {
    fn registered(&self, id: &Label) -> Result<&Entry, RegisterError> {
        if self.ended {
            return Err(ApplyError::Leaving.into());
        }
        match self.entries.get(id) {
            Some(entry) if entry.is_withdrawn() => Err(RegisterError::Unknown(id.clone())),
            Some(entry) if entry.source == Source::Admin => Ok(entry),
            Some(_) => Err(RegisterError::Configured(id.clone())),
            None => Err(RegisterError::Unknown(id.clone())),
        }
    }
}
