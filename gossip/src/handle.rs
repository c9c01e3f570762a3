//! How the rest of a node talks to its gossip: one handle, answers by message.
//!
//! Nothing here touches the catalogue; the loop ([`crate::run`]) alone does, so nobody waits for a
//! lock that gossip holds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::catalogue::Heard;
use crate::clock::Clock;
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
}

/// How news spreads between two regular rounds. The default is what was measured to be good; the
/// simulator tries others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// To how many peers a node that has heard news passes it on at once. `sim/README.md` has
    /// what more and fewer bring and cost.
    pub told: usize,
    /// How often at most. News runs through the mesh in a few such steps instead of a few rounds, and
    /// costs nothing in calm.
    pub period: Duration,
}

impl Default for News {
    fn default() -> Self {
        Self { told: 2, period: Duration::from_millis(200) }
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
}

pub(crate) enum Command {
    SetInstance { id: Label, instance: Option<Instance> },
    Rotate(Arc<Svid>, Arc<TrustBundle>),
    Members(oneshot::Sender<Vec<MemberView>>),
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
