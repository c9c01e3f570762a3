//! One instance's keeper: probes its workload, announces it, and sees it off.

use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::Clock;
use starling_gossip::health::{HealthState, ProbeOutcome, Thresholds};
use starling_gossip::record::{Health, Instance, Label};
use tokio::sync::watch;
use tracing::{info, warn};

use super::Shared;
use crate::config::{Probe, Service};
use crate::drain::ANNOUNCE;
use crate::probe::{Answer, Prober};
use crate::proxy::workload::Workload;

/// What a keeper is told; the newest counts.
#[derive(Clone)]
pub(super) enum Order {
    /// Announce this workload and keep its health current.
    Serve(Arc<Workload>),
    /// The node is leaving: announce that no new work is taken.
    Drain,
    /// Announce that no new work is taken, let work finish, withdraw.
    Withdraw,
}

/// Keeps one instance's record current.
pub(super) struct Keeper {
    id: Label,
    orders: watch::Receiver<Order>,
    shared: Arc<Shared>,
    workload: Arc<Workload>,
    service: Arc<Service>,
    state: HealthState,
    prober: Prober,
    since: SinceMillis,
}

/// When a health began, by the calendar.
struct SinceMillis(u64);

impl Keeper {
    /// For `workload`, which nobody has heard of, probed after `first_wait`.
    pub(super) fn new(
        id: Label,
        workload: Arc<Workload>,
        first_wait: Duration,
        orders: watch::Receiver<Order>,
        shared: Arc<Shared>,
    ) -> Self {
        let service = workload.service_now();
        let state = HealthState::new(thresholds(service.probe.as_ref()));
        let prober = shared.prober(&workload, first_wait);
        let since = SinceMillis::now(&shared.clock);
        Self { id, orders, shared, workload, service, state, prober, since }
    }

    /// Until the instance is withdrawn.
    pub(super) async fn run(mut self) {
        loop {
            let order = self.orders.borrow_and_update().clone();
            match order {
                Order::Serve(workload) => {
                    self.take(workload);
                    self.announce().await;
                    self.probe().await;
                }
                Order::Drain => {
                    self.drain().await;
                    self.changed().await;
                }
                Order::Withdraw => {
                    self.drain().await;
                    if self.finish().await && self.withdraw().await {
                        return;
                    }
                }
            }
        }
    }

    /// Takes over what is new about the instance. Another workload begins unknown.
    fn take(&mut self, workload: Arc<Workload>) {
        let service = workload.service_now();
        let thresholds = thresholds(service.probe.as_ref());
        if !Arc::ptr_eq(&workload, &self.workload) {
            self.state = HealthState::new(thresholds);
            self.prober = self.shared.prober(&workload, Duration::ZERO);
            self.since = SinceMillis::now(&self.shared.clock);
        } else if service.probe != self.service.probe {
            self.state.set_thresholds(thresholds);
            self.prober = self.shared.prober(&workload, Duration::ZERO);
        }
        (self.workload, self.service) = (workload, service);
    }

    /// Probes until there is another order.
    async fn probe(&mut self) {
        loop {
            let answer = tokio::select! {
                answer = self.prober.next() => answer,
                () = changed(&mut self.orders) => return,
            };
            let outcome = if answer.is_ok() { ProbeOutcome::Pass } else { ProbeOutcome::Fail };
            if let Some(health) = self.state.handle_probe(outcome) {
                self.log(health, &answer);
                self.since = SinceMillis::now(&self.shared.clock);
                self.announce().await;
            }
        }
    }

    /// Once per flip, with the answer that made it.
    fn log(&self, health: Health, answer: &Answer) {
        let (service, id) = (&self.service.name, &self.id);
        match answer {
            Err(reason) => warn!(%service, %id, reason, "instance is unhealthy"),
            Ok(()) => info!(%service, %id, health = health.as_str(), "instance changed"),
        }
    }

    async fn drain(&mut self) {
        if self.state.drain().is_some() {
            self.since = SinceMillis::now(&self.shared.clock);
        }
        self.announce().await;
    }

    /// Waits for callers to hear, then for their work to end. `false` when there is another order.
    async fn finish(&mut self) -> bool {
        let gate = self.workload.gate.clone();
        gate.drain();
        let finished = tokio::time::timeout(self.shared.drain_timeout.max(ANNOUNCE), async {
            tokio::time::sleep(ANNOUNCE).await;
            gate.idle().await;
        });
        tokio::select! {
            finished = finished => if finished.is_err() {
                let (service, id, under_way) = (&self.service.name, &self.id, gate.under_way());
                warn!(%service, %id, under_way, "instance is withdrawn with work under way");
            },
            () = changed(&mut self.orders) => return false,
        }
        true
    }

    /// `false` when the instance is wanted again.
    async fn withdraw(&mut self) -> bool {
        self.shared.gossip.set_instance(self.id.clone(), None).await;
        let gone = self.shared.forget(&self.id);
        if gone {
            self.workload.gate.close();
            info!(service = %self.service.name, id = %self.id, "instance withdrawn");
        }
        gone
    }

    async fn changed(&mut self) {
        changed(&mut self.orders).await;
    }

    async fn announce(&self) {
        let service = &self.service;
        let instance = Instance {
            service: service.name.clone(),
            protocol: service.protocol,
            version: service.version.clone(),
            tags: service.tags.clone(),
            weight: service.weight,
            health: self.state.health(),
            since_unix_millis: self.since.0,
        };
        self.shared.gossip.set_instance(self.id.clone(), Some(instance)).await;
    }
}

impl SinceMillis {
    fn now(clock: &Clock) -> Self {
        Self(clock.wall().unix_millis)
    }
}

/// One whose probe is off is taken at its word.
fn thresholds(probe: Option<&Probe>) -> Thresholds {
    match probe {
        Some(probe) => {
            Thresholds { healthy_after: probe.healthy_after, unhealthy_after: probe.unhealthy_after }
        }
        None => Thresholds { healthy_after: 1, unhealthy_after: 1 },
    }
}

async fn changed(orders: &mut watch::Receiver<Order>) {
    if orders.changed().await.is_err() {
        // The node is gone; its keepers go with it.
        std::future::pending::<()>().await;
    }
}
