//! Nodes of the real gossip loop on a paused clock, and ways to wait until they know something.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use starling_gossip::handle::{Budget, Gossip, News, Setup};
use starling_gossip::publisher::NodeDescription;
use starling_gossip::record::{Health, Instance, Label, Locality, Protocol};
use starling_gossip::snapshot::{Presence, Snapshot};
use starling_gossip::svid::{Svid, TrustBundle};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::authority::{Authority, KeyKind, WALL};
use crate::link::Network;

pub(crate) const INTERVAL: Duration = Duration::from_millis(500);
pub(crate) const RENEW: Duration = Duration::from_secs(1);
pub(crate) const SUSPECT_AFTER: Duration = Duration::from_secs(4);
pub(crate) const LEASE: Duration = Duration::from_secs(10);

/// How long news may take to reach ten nodes: many rounds, whatever peers chance chooses.
pub(crate) const SPREAD: Duration = Duration::from_secs(6);

/// A mesh in one process.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) network: Arc<Network>,
    pub(crate) clock: Clock,
    pub(crate) nodes: Vec<Node>,
}

/// One running node.
pub(crate) struct Node {
    pub(crate) gossip: Gossip,
    pub(crate) address: SocketAddr,
    pub(crate) svid: Arc<Svid>,
    task: JoinHandle<()>,
}

impl World {
    /// `count` nodes that have found each other, each serving one instance.
    pub(crate) async fn converged(count: usize) -> Self {
        let mut world = Self::empty();
        for _ in 0..count {
            world.add().await;
        }
        world.wait_for("all know all", SPREAD, |all| all.iter().all(|it| alive(it) == count)).await;
        world.wait_for("equal catalogues", SPREAD, equal).await;
        world
    }

    pub(crate) fn empty() -> Self {
        let clock = Clock::starting_at(WALL);
        Self { authority: Authority::new(), network: Arc::default(), clock, nodes: Vec::new() }
    }

    /// Starts the next node, `svc-<number>`; the first is everybody's seed.
    pub(crate) async fn add(&mut self) -> usize {
        let index = self.nodes.len();
        let kind = if index.is_multiple_of(2) { KeyKind::Ed25519 } else { KeyKind::P256 };
        let svid = self.authority.svid(&format!("spiffe://acme/svc/svc-{index}"), kind);
        let bundle = self.authority.bundle();
        self.add_as(svid, bundle, vec![address(index)]).await
    }

    /// Starts the next node as somebody, who says that it listens at `addresses`.
    pub(crate) async fn add_as(
        &mut self,
        svid: Arc<Svid>,
        bundle: Arc<TrustBundle>,
        addresses: Vec<SocketAddr>,
    ) -> usize {
        let index = self.nodes.len();
        let setup = self.setup(index, svid.clone(), bundle, addresses);
        let node = start(index, svid, setup).await;
        self.nodes.push(node);
        self.announce(index, 1).await;
        index
    }

    /// Starts a crashed node again under the same name, as `change` would have it.
    pub(crate) async fn restart(&mut self, index: usize, change: impl FnOnce(&mut Setup)) {
        let svid = self.nodes[index].svid.clone();
        let mut setup = self.setup(index, svid.clone(), self.authority.bundle(), vec![address(index)]);
        change(&mut setup);
        self.nodes[index] = start(index, svid, setup).await;
        self.announce(index, 1).await;
    }

    fn setup(
        &self,
        index: usize,
        svid: Arc<Svid>,
        bundle: Arc<TrustBundle>,
        addresses: Vec<SocketAddr>,
    ) -> Setup {
        Setup {
            description: description(index, addresses),
            interval: INTERVAL,
            link: self.network.host(address(index), svid.id().clone()),
            svid,
            bundle,
            clock: self.clock.clone(),
            random_seed: index as u64,
            seeds: watch::channel(vec![address(0)]).1,
            remembered: None,
            news: News::default(),
            budget: Budget::default(),
        }
    }

    /// Node `index` says that its one instance has `weight`.
    pub(crate) async fn announce(&self, index: usize, weight: u16) {
        let node = &self.nodes[index];
        let service = node.svid.id().announces().expect("it may announce one");
        let instance = Instance {
            service,
            protocol: Protocol::Http,
            version: None,
            tags: BTreeMap::new(),
            weight,
            health: Health::Healthy,
            since_unix_millis: WALL.unix_millis,
        };
        node.gossip.set_instance(label("main"), Some(instance)).await;
    }

    /// Ends node `index` without a word.
    pub(crate) fn crash(&mut self, index: usize) {
        self.nodes[index].task.abort();
        self.network.unplug(self.nodes[index].address);
    }

    pub(crate) fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        self.nodes.iter().map(|node| node.gossip.snapshots().borrow().clone()).collect()
    }

    /// Waits until `condition` holds for the snapshots of all nodes, at most `limit`.
    #[track_caller]
    pub(crate) fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&[Arc<Snapshot>]) -> bool,
    ) -> impl Future<Output = Duration> {
        let caller = std::panic::Location::caller();
        async move {
            let start = Instant::now();
            while !condition(&self.snapshots()) {
                assert!(start.elapsed() < limit, "{caller}: not within {limit:?}: {what}");
                sleep(Duration::from_millis(10)).await;
            }
            start.elapsed()
        }
    }
}

async fn start(index: usize, svid: Arc<Svid>, setup: Setup) -> Node {
    let (gossip, gossip_loop) = Gossip::start(setup).await.expect("the loop starts");
    let task = tokio::spawn(gossip_loop.run());
    Node { gossip, address: address(index), svid, task }
}

pub(crate) fn address(index: usize) -> SocketAddr {
    format!("10.0.0.{}:7400", index + 1).parse().expect("an address")
}

/// Whether all snapshots hold the same records.
pub(crate) fn equal(snapshots: &[Arc<Snapshot>]) -> bool {
    snapshots.windows(2).all(|pair| pair[0].digest == pair[1].digest)
}

pub(crate) fn alive(snapshot: &Snapshot) -> usize {
    snapshot.members.values().filter(|member| member.presence == Presence::Alive).count()
}

/// How the node number `index` looks in `snapshot`.
pub(crate) fn presence(snapshot: &Snapshot, index: usize) -> Option<Presence> {
    let mut members = snapshot.members.iter();
    members.find(|(owner, _)| owner.node.as_str() == node_name(index)).map(|(_, member)| member.presence)
}

/// The weight that `snapshot` gives for node `index`'s instance, if it is offered.
pub(crate) fn weight(snapshot: &Snapshot, index: usize) -> Option<u16> {
    let mut offered = snapshot.services.values().flatten();
    offered.find(|it| it.owner.node.as_str() == node_name(index)).map(|it| it.instance.weight)
}

fn node_name(index: usize) -> String {
    format!("node-{index}")
}

fn label(text: &str) -> Label {
    text.parse().expect("a label")
}

fn description(index: usize, addresses: Vec<SocketAddr>) -> NodeDescription {
    NodeDescription {
        name: node_name(index).parse().expect("a node name"),
        addresses,
        locality: Locality::default(),
        program: label("0.1.0"),
        lease: LEASE,
        renew: RENEW,
    }
}
