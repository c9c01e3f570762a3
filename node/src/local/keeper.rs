//! One instance's keeper: probes its workload, announces it, and sees it off.

use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use starling_gossip::health::{HealthState, ProbeOutcome, Thresholds};
use starling_gossip::record::{Health, Instance, Label};
use tokio::sync::watch;
use tracing::{info, warn};

use super::Shared;
use super::heartbeat::{Heartbeat, Standing};
use crate::config::{Probe, Service, show_duration};
use crate::drain::ANNOUNCE;
use crate::probe::Prober;
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

/// What is announced of an instance.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub(super) health: Health,
    /// Why it is not healthy.
    pub(super) reason: Option<String>,
}

/// Keeps one instance's record current.
pub(super) struct Keeper {
    id: Label,
    orders: watch::Receiver<Order>,
    beats: watch::Receiver<Option<Heartbeat>>,
    shared: Arc<Shared>,
    workload: Arc<Workload>,
    service: Arc<Service>,
    state: HealthState,
    prober: Prober,
    /// Why the newest probe failed.
    failure: Option<String>,
    status: watch::Sender<Status>,
    since: SinceMillis,
}

/// When a health began, by the calendar.
struct SinceMillis(u64);

impl Keeper {
    /// For `workload`, which nobody has heard of, probed after `first_wait`; with what it will have
    /// announced.
    pub(super) fn new(
        id: Label,
        workload: Arc<Workload>,
        first_wait: Duration,
        (orders, beats): (watch::Receiver<Order>, watch::Receiver<Option<Heartbeat>>),
        shared: Arc<Shared>,
    ) -> (Self, watch::Receiver<Status>) {
        let service = workload.service_now();
        let state = HealthState::new(thresholds(service.probe.as_ref()));
        let prober = shared.prober(&workload, first_wait);
        let since = SinceMillis::now(&shared.clock);
        let (status, announced) = watch::channel(Status { health: Health::Unknown, reason: None });
        let failure = None;
        let keeper =
            Self { id, orders, beats, shared, workload, service, state, prober, failure, status, since };
        (keeper, announced)
    }

    /// Until the instance is withdrawn.
    pub(super) async fn run(mut self) {
        loop {
            let order = self.orders.borrow_and_update().clone();
            match order {
                Order::Serve(workload) => {
                    self.take(workload);
                    self.settle();
                    self.announce().await;
                    self.watch().await;
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
        } else if service.probe != self.service.probe {
            self.state.set_thresholds(thresholds);
            self.prober = self.shared.prober(&workload, Duration::ZERO);
        }
        (self.workload, self.service) = (workload, service);
    }

    /// Watches the workload's health, and the heartbeats of whoever registered it, until there is
    /// another order.
    async fn watch(&mut self) {
        loop {
            let now = self.shared.clock.now();
            let timeout = self.beats.borrow_and_update().and_then(|beat| beat.poll_timeout(now));
            tokio::select! {
                () = changed(&mut self.orders) => return,
                answer = self.prober.next() => {
                    let outcome = if answer.is_ok() { ProbeOutcome::Pass } else { ProbeOutcome::Fail };
                    self.failure = answer.err();
                    self.state.handle_probe(outcome);
                }
                () = changed(&mut self.beats) => {}
                () = until(timeout) => {}
            }
            if self.standing() == Some(Standing::Expired) {
                self.shared.expire(&self.id);
            }
            if self.settle() {
                self.announce().await;
            }
        }
    }

    fn standing(&self) -> Option<Standing> {
        let now = self.shared.clock.now();
        self.beats.borrow().map(|beat| beat.standing(now))
    }

    /// What is to be announced: healthy only by the probe's and the heartbeat's word.
    fn health(&self) -> (Health, Option<String>) {
        let ttl = self.beats.borrow().map(|beat| beat.ttl()).unwrap_or_default();
        match (self.state.health(), self.standing()) {
            (Health::Draining, _) => (Health::Draining, None),
            (_, Some(Standing::Missed | Standing::Expired)) => {
                (Health::Unhealthy, Some(format!("no heartbeat within {}", show_duration(ttl))))
            }
            (_, Some(Standing::Unwell)) => (Health::Unhealthy, Some("its last heartbeat says so".to_owned())),
            (Health::Unhealthy, _) => (Health::Unhealthy, self.failure.clone()),
            (health, _) => (health, None),
        }
    }

    /// Takes note of the present health and its reason, and says once why it flipped. `true` when it
    /// did: others hear of the health alone.
    fn settle(&mut self) -> bool {
        let (health, reason) = self.health();
        let was = self.status.borrow().clone();
        if was.health == health {
            if was.reason != reason {
                self.status.send_replace(Status { health, reason });
            }
            return false;
        }
        let (service, id) = (&self.service.name, &self.id);
        match (health, &reason) {
            (Health::Unhealthy, Some(reason)) => warn!(%service, %id, reason, "instance is unhealthy"),
            _ => info!(%service, %id, health = health.as_str(), "instance changed"),
        }
        self.since = SinceMillis::now(&self.shared.clock);
        self.status.send_replace(Status { health, reason });
        true
    }

    async fn drain(&mut self) {
        self.state.drain();
        self.prober.abandon();
        self.settle();
        self.announce().await;
    }

    /// Waits for callers to hear, then for their work to end. `false` when there is another order.
    async fn finish(&mut self) -> bool {
        let gate = self.workload.gate.clone();
        gate.drain();
        let finished = tokio::time::timeout(self.shared.drain_timeout().max(ANNOUNCE), async {
            tokio::time::sleep(ANNOUNCE).await;
            gate.dismiss();
            gate.idle().await;
        });
        tokio::select! {
            finished = finished => if finished.is_err() {
                let (service, id, under_way) = (&self.service.name, &self.id, gate.under_way());
                warn!(%service, %id, under_way, "instance is withdrawn with work under way");
            },
            () = changed(&mut self.orders) => {
                // What is served from now on may be another workload.
                gate.dismiss();
                return false;
            }
        }
        true
    }

    /// `false` when the instance is wanted again.
    async fn withdraw(&mut self) -> bool {
        self.shared.gossip.set_instance(self.id.clone(), None).await;
        let gone = self.shared.forget(&self.id);
        if gone {
            info!(service = %self.service.name, id = %self.id, "instance withdrawn");
        }
        gone
    }

    async fn changed(&mut self) {
        changed(&mut self.orders).await;
    }

    async fn announce(&mut self) {
        let service = &self.service;
        let instance = Instance {
            service: service.name.clone(),
            protocol: service.protocol,
            version: service.version.clone(),
            tags: service.tags.clone(),
            weight: service.weight,
            health: self.status.borrow().health,
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

async fn changed<T>(values: &mut watch::Receiver<T>) {
    if values.changed().await.is_err() {
        // The node is gone; its keepers go with it.
        std::future::pending::<()>().await;
    }
}

async fn until(timeout: Option<Instant>) {
    match timeout {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
