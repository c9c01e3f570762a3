//! Messages out of this node, counted by peer and kind: the gossip loop's and chitchat's.
//!
//! chitchat is a guest: it begins an exchange only when the loop has asked for it. What goes on with one is told from
//! what begins another: it is paid for already.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::kind::MessageKind;
use crate::link::{Delivery, Destination, Link};
use crate::replica::AddressBook;
use crate::talk::Message;
use crate::wire::Step;

/// Peers whose bytes are counted.
const COUNTED_MAX: usize = 4096;

/// Exchanges that are going on; those with the lowest addresses are given up for further ones. What the repair path
/// may spend allows a few at a time.
const OPEN_MAX: usize = 1024;

/// Bytes by kind of message, sent and received.
pub(crate) type ByKind = BTreeMap<&'static str, (u64, u64)>;

/// See the module.
pub(crate) struct Post {
    link: Arc<dyn Link>,
    book: AddressBook,
    own: SocketAddr,
    state: Mutex<State>,
    /// Of the repair path, since the loop last asked.
    repair_bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    traffic: BTreeMap<SocketAddr, ByKind>,
    /// With whom chitchat may begin an exchange.
    permits: BTreeSet<SocketAddr>,
    /// Who is to go on with an exchange, and at which step.
    open: BTreeSet<(SocketAddr, Step)>,
    /// Who speaks as this program does.
    talkers: BTreeSet<SocketAddr>,
}

impl Post {
    pub(crate) fn new(link: Arc<dyn Link>, book: AddressBook, own: SocketAddr) -> Arc<Self> {
        Arc::new(Self { link, book, own, state: Mutex::default(), repair_bytes: AtomicU64::new(0) })
    }

    /// Sends `message` to whoever may answer at `to`.
    pub(crate) fn send(&self, to: SocketAddr, message: &Message, delivery: Delivery) {
        self.send_bytes(to, message.encode(), delivery);
    }

    /// Sends `message` to somebody who is not present here.
    pub(crate) fn send_to(&self, to: Destination, message: &Message, delivery: Delivery) {
        let bytes = message.encode();
        self.count(to.address(), &bytes, |(sent, _)| sent);
        self.link.send(to, bytes, delivery);
    }

    /// Sends what chitchat says, which is that step of an exchange.
    pub(crate) fn send_repair(&self, to: SocketAddr, message: Vec<u8>, step: Step) {
        let is_talker = {
            let mut state = self.state();
            if to == self.own || step == Step::Syn && !state.permits.remove(&to) {
                return;
            }
            if let Some(next) = step.next() {
                if state.open.len() >= OPEN_MAX {
                    state.open.pop_first();
                }
                state.open.insert((to, next));
            }
            state.talkers.contains(&to)
        };
        let bytes = if is_talker { Message::Repair(message).encode() } else { message };
        self.repair_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.send_bytes(to, bytes, Delivery::Reliable);
    }

    /// Something came from `from`.
    pub(crate) fn count_received(&self, from: SocketAddr, message: &[u8]) {
        self.count(from, message, |(_, received)| received);
    }

    /// Whether `from` is to go on with an exchange at `step`; once.
    pub(crate) fn take_open(&self, from: SocketAddr, step: Step) -> bool {
        self.state().open.remove(&(from, step))
    }

    /// chitchat may begin one exchange with `address`.
    pub(crate) fn permit(&self, address: SocketAddr) {
        self.state().permits.insert(address);
    }

    /// Who speaks as this program does.
    pub(crate) fn set_talkers(&self, talkers: BTreeSet<SocketAddr>) {
        self.state().talkers = talkers;
    }

    /// What the repair path has sent since this was last asked.
    pub(crate) fn take_repair_bytes(&self) -> usize {
        self.repair_bytes.swap(0, Ordering::Relaxed) as usize
    }

    /// What was exchanged with `peer`.
    pub(crate) fn traffic_with(&self, peer: SocketAddr) -> ByKind {
        self.state().traffic.get(&peer).cloned().unwrap_or_default()
    }

    fn send_bytes(&self, to: SocketAddr, bytes: Vec<u8>, delivery: Delivery) {
        self.count(to, &bytes, |(sent, _)| sent);
        self.link.send(self.book.destination(to), bytes, delivery);
    }

    fn count(&self, peer: SocketAddr, message: &[u8], which: impl Fn(&mut (u64, u64)) -> &mut u64) {
        let mut state = self.state();
        if state.traffic.len() >= COUNTED_MAX && !state.traffic.contains_key(&peer) {
            state.traffic.pop_first();
        }
        let kinds = state.traffic.entry(peer).or_default();
        *which(kinds.entry(MessageKind::of(message).as_str()).or_default()) += message.len() as u64;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of it is one insertion or one count: whoever panicked left it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
