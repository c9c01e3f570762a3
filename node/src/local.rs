//! The instances this node serves: what is announced of them, and the probes behind that.

use std::collections::BTreeMap;
use std::sync::Arc;

use starling_gossip::clock::Clock;
use starling_gossip::handle::Gossip;
use starling_gossip::health::{HealthState, Thresholds};
use starling_gossip::record::{Health, Instance};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::Service;
use crate::probe;
use crate::proxy::workload::Workload;

/// The configured instances.
pub(crate) struct LocalInstances {
    services: Vec<Service>,
    gossip: Gossip,
    clock: Clock,
}

/// The configured instances, announced and probed.
pub(crate) struct RunningInstances {
    services: Vec<Service>,
    gossip: Gossip,
    draining: watch::Sender<bool>,
    keepers: JoinSet<()>,
}

impl LocalInstances {
    /// Nothing is announced yet.
    pub(crate) fn new(services: &[Service], gossip: Gossip, clock: Clock) -> Self {
        Self { services: services.to_vec(), gossip, clock }
    }

    /// How each is reached.
    pub(crate) fn workloads(&self, idle_max: usize) -> BTreeMap<String, Arc<Workload>> {
        let workload = |service: &Service| {
            let (name, address) = (service.name.clone(), service.address.clone());
            let workload = Workload::new(name, service.protocol, address, idle_max);
            (service.id.to_string(), Arc::new(workload))
        };
        self.services.iter().map(workload).collect()
    }

    /// Announces each and keeps its health current.
    pub(crate) fn start(self) -> RunningInstances {
        let (draining, is_draining) = watch::channel(false);
        let mut keepers = JoinSet::new();
        for service in &self.services {
            keepers.spawn(keep(
                service.clone(),
                self.gossip.clone(),
                self.clock.clone(),
                is_draining.clone(),
            ));
        }
        RunningInstances { services: self.services, gossip: self.gossip, draining, keepers }
    }
}

impl RunningInstances {
    /// Announces that none takes new work.
    pub(crate) async fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Withdraws all.
    pub(crate) async fn withdraw(mut self) {
        self.keepers.shutdown().await;
        for service in &self.services {
            self.gossip.set_instance(service.id.clone(), None).await;
        }
    }
}

/// Keeps one instance's record current: unknown until the first probe, draining at the end. One
/// without a probe is taken at its word.
async fn keep(service: Service, gossip: Gossip, clock: Clock, mut is_draining: watch::Receiver<bool>) {
    let thresholds = match &service.probe {
        Some(probe) => {
            Thresholds { healthy_after: probe.healthy_after, unhealthy_after: probe.unhealthy_after }
        }
        None => Thresholds { healthy_after: 1, unhealthy_after: 1 },
    };
    let mut state = HealthState::new(thresholds);
    let mut prober = probe::Prober::new(&service);
    announce(&gossip, &service, state.health(), &clock).await;
    loop {
        let flipped = tokio::select! {
            outcome = prober.next() => state.handle_probe(outcome),
            () = begins(&mut is_draining) => {
                state.drain();
                announce(&gossip, &service, state.health(), &clock).await;
                return;
            }
        };
        if let Some(health) = flipped {
            match health {
                Health::Unhealthy => {
                    warn!(service = %service.name, id = %service.id, "instance is unhealthy")
                }
                _ => {
                    info!(service = %service.name, id = %service.id, health = health.as_str(), "instance changed")
                }
            }
            announce(&gossip, &service, health, &clock).await;
        }
    }
}

async fn begins(draining: &mut watch::Receiver<bool>) {
    if draining.wait_for(|draining| *draining).await.is_err() {
        // The node is gone without draining; its keepers go with it.
        std::future::pending::<()>().await;
    }
}

async fn announce(gossip: &Gossip, service: &Service, health: Health, clock: &Clock) {
    let instance = Instance {
        service: service.name.clone(),
        protocol: service.protocol,
        version: service.version.clone(),
        tags: service.tags.clone(),
        weight: service.weight,
        health,
        since_unix_millis: clock.wall().unix_millis,
    };
    gossip.set_instance(service.id.clone(), Some(instance)).await;
}
