//! How the rest of a node talks to its gossip: one handle, answers by message.
//!
//! Nothing here touches the catalogue; the loop ([`crate::run`]) alone does, so nobody waits for a
//! lock that gossip holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::catalogue::Heard;
use crate::clock::{Clock, Instant};
use crate::limits::COMMANDS_QUEUED_MAX;
use crate::link::Link;
use crate::memory::Remembered;
use crate::publisher::NodeDescription;
use crate::record::{Instance, Label, Owner};
use crate::run::GossipLoop;
use crate::snapshot::{Member, Snapshot};
use crate::svid::{Svid, TrustBundle};

pub use crate::replica::ReplicaError;

/// What gossip needs to run.
pub struct Setup {
    /// What this node says about itself.
    pub description: NodeDescription,
    /// How often to reconcile with three peers.
    pub interval: Duration,
    /// Who this node is.
    pub svid: Arc<Svid>,
    /// Whom it believes.
    pub bundle: Arc<TrustBundle>,
    /// How it reaches others.
    pub link: Arc<dyn Link>,
    /// Its time.
    pub clock: Clock,
    /// The one source of its chance.
    pub random_seed: u64,
    /// Where to find the mesh.
    pub seeds: watch::Receiver<Vec<SocketAddr>>,
    /// What an earlier life left, and where this one's memories go. `None`: nothing is remembered.
    pub remembered: Option<Remembered>,
    /// How news spreads.
    pub news: News,
    /// What it may cost.
    pub budget: Budget,
}

/// How news spreads: whoever hears it passes it on at once, and again in a few rounds. The default is what
/// was measured to be good; the simulator tries others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// To how many peers it is passed on in a round. `sim/README.md` has what more and fewer bring and cost.
    pub told: usize,
    /// In how many rounds; it is news no longer after them.
    pub rounds: u32,
    /// The time between two rounds.
    pub period: Duration,
}

impl Default for News {
    fn default() -> Self {
        Self { told: 3, rounds: 4, period: Duration::from_millis(100) }
    }
}

/// What gossip may cost a node while nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes a second that it sends, QUIC's own included. Changes (at most 4 KB each) and joining come on top.
    pub bytes_per_second: u32,
    /// Connections it keeps for gossip alone.
    pub connections_max: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_per_second: 8_000, connections_max: 64 }
    }
}

/// A handle to the running loop; cheap to clone.
#[derive(Clone)]
pub struct Gossip {
    commands: mpsc::Sender<Command>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    owner: Owner,
}

/// A member as people see it.
#[derive(Clone, Debug)]
pub struct MemberView {
    /// Who.
    pub owner: Owner,
    /// Its record and presence.
    pub member: Member,
    /// When it was last heard.
    pub heard: Option<Heard>,
    /// Who doubts that it is there, if anybody does.
    pub doubt: Option<Doubt>,
    /// Bytes of gossip exchanged with it by kind of message, sent and received.
    pub traffic: BTreeMap<&'static str, (u64, u64)>,
}

/// A doubt about a member. It lowers its rank and removes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// How many of its watchers could not reach it.
    pub watchers: usize,
    /// Whether it left this node's own question unanswered.
    pub by_own_probe: bool,
    /// Since when.
    pub since: Instant,
}

/// How far the mesh knows what this node knows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Convergence {
    /// Present members, this node included.
    pub members: usize,
    /// Those that told this node lately what they know, this node included.
    pub heard: usize,
    /// Those of them that know the same as this node, or did when this node knew that.
    pub equal: usize,
    /// How long the longest of the others has differed.
    pub oldest_difference: Option<Duration>,
}

pub(crate) enum Command {
    SetInstance { id: Label, instance: Option<Instance> },
    Rotate(Arc<Svid>, Arc<TrustBundle>),
    Members(oneshot::Sender<Vec<MemberView>>),
    Convergence(oneshot::Sender<Convergence>),
    Care(BTreeSet<Owner>),
    Pulse(oneshot::Sender<()>),
    Leave(oneshot::Sender<()>),
}

impl Gossip {
    /// Starts the repair path and returns the handle and the loop, which the caller runs until it
    /// ends (after [`Gossip::leave`], or when all handles are gone).
    pub async fn start(setup: Setup) -> Result<(Self, GossipLoop), ReplicaError> {
        let (commands, inbox) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (snapshot_out, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let gossip_loop = GossipLoop::new(setup, inbox, snapshot_out).await?;
        let owner = gossip_loop.owner().clone();
        Ok((Self { commands, snapshots, owner }, gossip_loop))
    }

    /// Who this node is in the mesh.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The newest snapshot, and every one after it.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Announces an instance, or with `None` withdraws it.
    pub async fn set_instance(&self, id: Label, instance: Option<Instance>) {
        let _ = self.commands.send(Command::SetInstance { id, instance }).await;
    }

    /// Speaks with a rotated certificate, and believes `bundle`, from now on.
    pub async fn rotate(&self, svid: Arc<Svid>, bundle: Arc<TrustBundle>) {
        let _ = self.commands.send(Command::Rotate(svid, bundle)).await;
    }

    /// All members with their lease ages; empty once the loop has ended.
    pub async fn members(&self) -> Vec<MemberView> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Members(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// How far the mesh has come to know what this node knows.
    pub async fn convergence(&self) -> Convergence {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Convergence(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// This node sends work to `owners`, and to nobody else: when others doubt one of them, it looks for itself
    /// at once.
    pub async fn care_for(&self, owners: BTreeSet<Owner>) {
        let _ = self.commands.send(Command::Care(owners)).await;
    }

    /// Resolves when the loop has come round to answering, for watchdogs; `false` if it has ended.
    pub async fn pulse(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Pulse(reply)).await;
        answer.await.is_ok()
    }

    /// Withdraws this node, tells several peers, and ends the loop.
    pub async fn leave(&self) {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Leave(reply)).await;
        let _ = answer.await;
    }
}
