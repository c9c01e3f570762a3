//! The instances this node serves: which ones, what is announced of them, who keeps them current.
//!
//! What is served can change at any moment ([`LocalInstances::apply`]); [`plan`] decides what that
//! means for each instance, one [`keeper`] per instance carries it out. The request path sees
//! none of it: it loads one pointer ([`Workloads`]).

mod heartbeat;
mod keeper;
mod plan;
mod registered;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use starling_gossip::clock::Clock;
use starling_gossip::handle::Gossip;
use starling_gossip::limits::INSTANCES_PER_OWNER_MAX;
use starling_gossip::record::Label;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::info;

use crate::balance::Chance;
use crate::config::Service;
use crate::probe::{self, Prober};
use crate::proxy::workload::{Workload, WorkloadLimits, Workloads};
use heartbeat::Heartbeat;
use keeper::{Keeper, Order, Status};
use plan::Step;

pub(crate) use registered::{InstanceState, RegisterError};

/// The instances this node serves; cheap to clone.
#[derive(Clone)]
pub(crate) struct LocalInstances {
    shared: Arc<Shared>,
}

struct Shared {
    workloads: Workloads,
    table: Mutex<Table>,
    gossip: Gossip,
    clock: Clock,
    chance: Chance,
    /// What connections to workloads may take.
    limits: WorkloadLimits,
    /// How long work may finish with an instance that is withdrawn, in milliseconds.
    drain_millis: AtomicU64,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<Label, Entry>,
    /// Ids that this life of the node has announced: others remember withdrawn ones too.
    used: BTreeSet<Label>,
    /// The node is stopping: nothing changes any more.
    ended: bool,
}

/// One instance, until it is withdrawn.
struct Entry {
    workload: Arc<Workload>,
    orders: watch::Sender<Order>,
    task: JoinHandle<()>,
    source: Source,
    /// `None`: it stands without heartbeats.
    beats: watch::Sender<Option<Heartbeat>>,
    status: watch::Receiver<Status>,
}

/// On whose word an instance is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The configuration's.
    Configuration,
    /// Somebody's who registered it by the admin API.
    Admin,
}

/// Why the instances stay as they were.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApplyError {
    /// More ids than others would remember.
    #[error(
        "{0} instance ids would be in use since this node started, withdrawn ones included, and others \
         remember {INSTANCES_PER_OWNER_MAX}: use earlier ids again, or restart the node"
    )]
    TooManyIds(usize),
    /// Somebody has registered one of them.
    #[error("{0} was registered by the admin API: withdraw it there, or give the service another id")]
    Registered(Label),
    /// The node is stopping.
    #[error("this node is leaving")]
    Leaving,
}

impl LocalInstances {
    /// None yet. Those withdrawn later get `drain_timeout` for their work; `seed` spreads probes.
    pub(crate) fn new(
        gossip: Gossip,
        clock: Clock,
        limits: WorkloadLimits,
        drain_timeout: Duration,
        seed: u64,
    ) -> Self {
        let shared = Shared {
            workloads: Workloads::default(),
            table: Mutex::default(),
            gossip,
            clock,
            limits,
            chance: Chance::new(seed),
            drain_millis: AtomicU64::default(),
        };
        let local = Self { shared: Arc::new(shared) };
        local.set_drain_timeout(drain_timeout);
        local
    }

    /// For whatever is withdrawn from now on.
    pub(crate) fn set_drain_timeout(&self, drain_timeout: Duration) {
        self.shared.drain_millis.store(drain_timeout.as_millis() as u64, Ordering::Relaxed);
    }

    /// How each is reached, at any moment.
    pub(crate) fn workloads(&self) -> Workloads {
        self.shared.workloads.clone()
    }

    /// Serves exactly `services` from now on, beside what was registered, or changes nothing. What stays the same keeps its
    /// health, connections and counters; what is gone drains and is withdrawn.
    pub(crate) fn apply(&self, services: &[Service]) -> Result<(), ApplyError> {
        let mut table = self.shared.table();
        table.check(services)?;
        if let Some(taken) = services.iter().find(|service| table.is_registered(&service.id)) {
            return Err(ApplyError::Registered(taken.id.clone()));
        }
        let configured = table.entries.iter().filter(|(_, entry)| entry.source == Source::Configuration);
        let before = configured.map(|(id, entry)| (id, entry.served()));
        for step in plan::steps(before, services) {
            self.shared.take(&mut table, step, services.len());
        }
        for service in services {
            // One that was registered and is just being withdrawn is the configuration's now.
            if let Some(entry) = table.entries.get_mut(&service.id) {
                entry.source = Source::Configuration;
                entry.beats.send_replace(None);
            }
        }
        self.shared.publish(&table);
        Ok(())
    }

    /// Announces that none takes new work; from now on nothing changes.
    pub(crate) fn drain(&self) {
        let mut table = self.shared.table();
        table.ended = true;
        for entry in table.entries.values() {
            entry.orders.send_replace(Order::Drain);
        }
    }

    /// Withdraws all.
    pub(crate) async fn withdraw(&self) {
        let entries = {
            let mut table = self.shared.table();
            table.ended = true;
            std::mem::take(&mut table.entries)
        };
        for (id, entry) in entries {
            entry.task.abort();
            let _ = entry.task.await;
            self.shared.gossip.set_instance(id, None).await;
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it is held; a poisoned table is still the table.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, table: &mut Table, step: Step<'_>, together: usize) {
        let entry = table.entries.get_mut(step.id());
        match (step, entry) {
            (Step::Start(service), None) => self.start(table, service, together),
            (Step::Start(service) | Step::Replace(service), Some(entry)) => {
                info!(service = %service.name, id = %service.id, address = %service.address, "instance moved");
                let new = Arc::new(entry.workload.succeeded_by(service, &self.limits));
                let old = std::mem::replace(&mut entry.workload, new);
                // Streams that callers keep open go over to the new one, request by request.
                old.gate.drain();
                old.gate.dismiss();
                entry.serve();
            }
            (Step::Update(service), Some(entry)) => {
                info!(service = %service.name, id = %service.id, "instance changed");
                entry.workload.set_service(service);
                entry.serve();
            }
            (Step::Remove(id), Some(entry)) => {
                info!(service = %entry.workload.service, %id, "instance is to be withdrawn");
                entry.orders.send_replace(Order::Withdraw);
            }
            (Step::Replace(_) | Step::Update(_) | Step::Remove(_), None) => {}
        }
    }

    /// One of `starting` that start together.
    fn start(self: &Arc<Self>, table: &mut Table, service: &Service, starting: usize) {
        let id = service.id.clone();
        let workload = Arc::new(Workload::new(service, &self.limits));
        let (orders, inbox) = watch::channel(Order::Serve(workload.clone()));
        let first_wait = probe::first_wait(starting, self.chance.bits());
        let (beats, heard) = watch::channel(None);
        let (keeper, status) =
            Keeper::new(id.clone(), workload.clone(), first_wait, (inbox, heard), self.clone());
        let task = tokio::spawn(keeper.run());
        table.used.insert(id.clone());
        let source = Source::Configuration;
        table.entries.insert(id, Entry { workload, orders, task, source, beats, status });
    }

    fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_millis.load(Ordering::Relaxed))
    }

    fn prober(&self, workload: &Arc<Workload>, first_wait: Duration) -> Prober {
        Prober::new(workload.clone(), first_wait, self.clock.clone(), Chance::new(self.chance.bits()))
    }

    fn publish(&self, table: &Table) {
        let workload = |(id, entry): (&Label, &Entry)| (id.to_string(), entry.workload.clone());
        self.workloads.set(table.entries.iter().map(workload).collect());
    }

    /// The keeper of `id` has withdrawn it. `false` when it is wanted again meanwhile.
    fn forget(&self, id: &Label) -> bool {
        let mut table = self.table();
        let wanted = table.entries.get(id).is_some_and(|entry| !entry.is_withdrawn());
        if !wanted {
            let gone = table.entries.remove(id);
            self.publish(&table);
            gone.into_iter().for_each(|entry| entry.workload.withdraw());
        }
        !wanted
    }
}

impl Table {
    /// Whether somebody has registered `id` and not withdrawn it.
    fn is_registered(&self, id: &Label) -> bool {
        let entry = self.entries.get(id);
        entry.is_some_and(|entry| entry.source == Source::Admin && !entry.is_withdrawn())
    }

    fn check(&self, services: &[Service]) -> Result<(), ApplyError> {
        if self.ended {
            return Err(ApplyError::Leaving);
        }
        let new = services.iter().filter(|service| !self.used.contains(&service.id));
        match self.used.len() + new.count() {
            0..=INSTANCES_PER_OWNER_MAX => Ok(()),
            ids => Err(ApplyError::TooManyIds(ids)),
        }
    }
}

impl Entry {
    /// What it serves; `None` while it is withdrawn.
    fn served(&self) -> Option<Arc<Service>> {
        (!self.is_withdrawn()).then(|| self.workload.service_now())
    }

    fn serve(&self) {
        self.orders.send_replace(Order::Serve(self.workload.clone()));
    }

    fn is_withdrawn(&self) -> bool {
        matches!(*self.orders.borrow(), Order::Withdraw)
    }
}
