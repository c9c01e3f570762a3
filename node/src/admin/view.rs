//! What the admin API shows, as plain data with stable field names.
//!
//! Every list is sorted, every age is in milliseconds on this node's own clock.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use starling_gossip::clock::Instant;
use starling_gossip::identity::ServiceName;
use starling_gossip::record::{Label, Locality};
use starling_gossip::snapshot::{Presence, ServiceInstance, Snapshot};

use crate::app::Shown;
use crate::live::LiveTable;
use crate::local::{InstanceState, Source};
use crate::route::Panic;

/// `/v1/node`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its SPIFFE ID.
    pub identity: String,
    /// Where others reach it.
    pub address: String,
    /// `running` or `draining`.
    pub state: String,
    /// The program's version.
    pub version: String,
    /// Since it started.
    pub uptime_ms: u64,
    /// When its certificate's validity ends, seconds since 1970.
    pub certificate_not_after: u64,
    /// Which snapshot of the catalogue the routes were computed from.
    pub generation: u64,
    /// Requests and connections under way.
    pub under_way: usize,
    /// What it remembers over its own end; `null` without `node.data_dir`.
    pub store: Option<StoreView>,
}

/// The store of `/v1/node`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreView {
    /// Whether it can be written.
    pub healthy: bool,
    /// Why not, in words.
    pub error: Option<String>,
}

/// What is known of the mesh, in one line for people.
pub(crate) fn summary(snapshot: &Snapshot) -> String {
    let count = |presence| snapshot.members.values().filter(|member| member.presence == presence).count();
    let (alive, suspect) = (count(Presence::Alive), count(Presence::Suspect));
    let instances: usize = snapshot.services.values().map(Vec::len).sum();
    let services = snapshot.services.len();
    format!("members: {alive} alive, {suspect} suspect; services: {services}, instances: {instances}")
}

/// One of `/v1/services`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceView {
    /// The service.
    pub name: String,
    /// Who serves it.
    pub instances: Vec<InstanceView>,
    /// Whether this node distrusts what it knows of it; `null` is no.
    pub panic: Option<PanicView>,
}

/// Why last known instances of a service are kept
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PanicView {
    /// Since it began.
    pub age_ms: u64,
    /// How many instances are kept now.
    pub retained: usize,
    /// How many leases had run out at once when it began.
    pub lost: usize,
    /// Of how many instances.
    pub known: usize,
    /// Why, in words.
    pub reason: String,
}

/// One instance of a service
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstanceView {
    /// Its name among its node's.
    pub id: String,
    /// Its node.
    pub node: String,
    /// Who announces it.
    pub identity: String,
    /// `unknown`, `healthy`, `unhealthy` or `draining`.
    pub health: String,
    /// `http` or `tcp`.
    pub protocol: String,
    /// The workload's version.
    pub version: Option<Label>,
    /// For routing.
    pub tags: BTreeMap<Label, Label>,
    /// Its share.
    pub weight: u16,
    /// Where its node stands.
    pub locality: Locality,
    /// Since this node learned the newest about it.
    pub age_ms: u64,
    /// Its lease ran out, and this node goes on using it all the same.
    pub retained: bool,
}

/// One of `/v1/instances`: what this node itself serves
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LocalInstanceView {
    /// Its name among this node's.
    pub id: String,
    /// What it serves.
    pub service: String,
    /// Where its workload listens.
    pub address: String,
    /// `unknown`, `healthy`, `unhealthy` or `draining`.
    pub health: String,
    /// Why it is unhealthy.
    pub reason: Option<String>,
    /// `configuration` or `admin`.
    pub source: String,
    /// How long its last heartbeat is still good; `None` where nobody waits for heartbeats.
    pub ttl_remaining_ms: Option<u64>,
}

pub(super) fn node(shown: &Shown) -> NodeView {
    let current = shown.credentials.current();
    NodeView {
        name: shown.gossip.owner().node.to_string(),
        identity: current.svid().id().to_string(),
        address: shown.address.to_string(),
        state: if shown.drain.is_draining() { "draining" } else { "running" }.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: age(shown.clock.now(), shown.started),
        certificate_not_after: current.svid().not_after().unix_seconds(),
        generation: shown.table.load().generation,
        under_way: shown.drain.under_way(),
        store: shown.store.as_ref().map(|store| {
            let error = store.status().error;
            StoreView { healthy: error.is_none(), error }
        }),
    }
}

pub(super) fn services(shown: &Shown) -> Vec<ServiceView> {
    let (snapshot, table) = (snapshot(shown), shown.table.load());
    let names: BTreeSet<&ServiceName> = snapshot.services.keys().chain(table.panics.keys()).collect();
    names.into_iter().filter_map(|name| service_of(shown, &snapshot, &table, name.as_str())).collect()
}

pub(super) fn service(shown: &Shown, name: &str) -> Option<ServiceView> {
    service_of(shown, &snapshot(shown), &shown.table.load(), name)
}

fn service_of(shown: &Shown, snapshot: &Snapshot, table: &LiveTable, name: &str) -> Option<ServiceView> {
    let now = shown.clock.now();
    let (present, panic) = (snapshot.services.get(name), table.panics.get(name));
    if present.is_none() && panic.is_none() {
        return None;
    }
    // The table may be older than the snapshot, which then knows better who has been heard again.
    let is_gone = |offered: &&ServiceInstance| {
        snapshot.members.get(&offered.owner).is_none_or(|member| !member.presence.is_present())
    };
    let kept = panic.into_iter().flat_map(|panic| &panic.instances).filter(is_gone);
    let present = present.into_iter().flatten().map(|offered| instance(offered, false, now));
    Some(ServiceView {
        name: name.to_owned(),
        instances: present.chain(kept.map(|offered| instance(offered, true, now))).collect(),
        panic: panic.map(|panic| panic_of(panic, now)),
    })
}

fn panic_of(panic: &Panic, now: Instant) -> PanicView {
    let Panic { lost, known, .. } = *panic;
    PanicView {
        age_ms: age(now, panic.since),
        retained: panic.instances.len(),
        lost,
        known,
        reason: format!(
            "the leases of {lost} of {known} instances ran out at once, so this node distrusts its view: they are \
             used after all others until it has failed to reach them for routing.max_stale"
        ),
    }
}

fn instance(offered: &ServiceInstance, retained: bool, now: Instant) -> InstanceView {
    let instance = &offered.instance;
    InstanceView {
        id: offered.id.to_string(),
        node: offered.owner.node.to_string(),
        identity: offered.owner.identity.to_string(),
        health: instance.health.as_str().to_owned(),
        protocol: instance.protocol.as_str().to_owned(),
        version: instance.version.clone(),
        tags: instance.tags.clone(),
        weight: instance.weight,
        locality: offered.node.locality.clone(),
        age_ms: age(now, offered.learned_at),
        retained,
    }
}

pub(super) fn local_instances(shown: &Shown) -> Vec<LocalInstanceView> {
    let view = |(id, state): (Label, InstanceState)| LocalInstanceView {
        id: id.to_string(),
        service: state.service.name.to_string(),
        address: state.service.address.to_string(),
        health: state.health.as_str().to_owned(),
        reason: state.reason,
        source: match state.source {
            Source::Configuration => "configuration",
            Source::Admin => "admin",
        }
        .to_owned(),
        ttl_remaining_ms: state.ttl_remaining.map(|remaining| remaining.as_millis() as u64),
    };
    shown.local.states().into_iter().map(view).collect()
}

fn snapshot(shown: &Shown) -> std::sync::Arc<Snapshot> {
    shown.gossip.snapshots().borrow().clone()
}

pub(super) fn age(now: Instant, then: Instant) -> u64 {
    now.saturating_duration_since(then).as_millis() as u64
}
