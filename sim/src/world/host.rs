//! One host: what outlives its processes, and the process that runs on it now.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use starling_gossip::clock::Clock;
use starling_gossip::handle::Gossip;
use starling_gossip::identity::ServiceName;
use starling_gossip::record::{Health, Instance, Locality, Protocol};
use starling_gossip::svid::Svid;
use tokio::task::JoinHandle;

use crate::disk::{Disk, Image};
use crate::network::HostLink;
use crate::scenario::Attack;

/// A machine with one node on it.
pub(crate) struct Host {
    pub(crate) site: usize,
    pub(crate) locality: Locality,
    pub(crate) service: ServiceName,
    pub(crate) svid: Arc<Svid>,
    /// Its calendar.
    pub(crate) clock: Clock,
    pub(crate) disk: Option<Arc<Disk>>,
    /// What the disk held when the mesh first converged.
    pub(crate) old_image: Option<Image>,
    /// How often it has moved to another address.
    pub(crate) moves: u16,
    /// Tells observations of this process from an earlier one's.
    pub(crate) life: u64,
    pub(crate) process: Option<Process>,
    /// What it says of its instance, when it says something.
    pub(crate) weight: u16,
}

/// A running node.
pub(crate) struct Process {
    pub(crate) gossip: Gossip,
    pub(crate) link: Arc<HostLink>,
    pub(crate) brake: Arc<Brake>,
    pub(crate) tasks: Vec<JoinHandle<()>>,
    /// Its attacks, if it is hostile.
    pub(crate) attacks: BTreeMap<Attack, JoinHandle<()>>,
}

impl Host {
    /// The instance as this host describes it in word `number`.
    pub(crate) fn instance(&self, health: Health, number: u64) -> Instance {
        Instance {
            service: self.service.clone(),
            protocol: Protocol::Http,
            version: None,
            tags: BTreeMap::new(),
            weight: self.weight,
            health,
            since_unix_millis: number,
        }
    }
}

impl Process {
    /// Ends it as SIGKILL does.
    pub(crate) fn kill(self) {
        self.tasks.iter().chain(self.attacks.values()).for_each(JoinHandle::abort);
    }
}

/// Holds a future still, as SIGSTOP does a process.
#[derive(Default)]
pub(crate) struct Brake {
    is_on: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Brake {
    /// Stops what runs under it, or lets it go on.
    pub(crate) fn set(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Relaxed);
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Whether it is on.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Runs `work` whenever the brake is off.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
            if self.is_on() { Poll::Pending } else { work.as_mut().poll(context) }
        })
        .await
    }
}
