//! One owner in the catalogue: its newest word, its lease, and how both age.
//!
//! What may enter is judged in [`crate::catalogue`]; this is what entering does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::clock::{Instant, WallTime};
use crate::doubts::{Doubts, Reported};
use crate::identity::SpiffeId;
use crate::lease::SeenLink;
use crate::limits::{DEPARTED_SHOWN, RENEWALS_AHEAD_MAX, RENEWALS_MISSED_MAX};
use crate::memory::RememberedLease;
use crate::record::{Instance, Label, NodeRecord, Version};
use crate::rejection::Rejected;
use crate::snapshot::Presence;
use crate::svid::{ChainError, PublicKey, TrustBundle, Usage};

/// One owner, as the catalogue knows it.
pub(crate) struct Known {
    /// The owner's, which takes a hash to make.
    pub(crate) short_name: String,
    /// The same as a number.
    pub(crate) name: u64,
    pub(crate) node: Arc<NodeRecord>,
    /// The node record as it travelled.
    pub(crate) sealed: Arc<[u8]>,
    pub(crate) key: PublicKey,
    pub(crate) proof_ends: ProofEnds,
    /// Of the newest renewal that has counted.
    pub(crate) seen: SeenLink,
    /// The newest link that others have shown as run out: it renews nothing, and none before it does any more. The
    /// owner's own word may come yet, and counts.
    pub(crate) run_out: SeenLink,
    pub(crate) renewed_at: Instant,
    /// Known from this node's earlier life, and how old that knowledge was at its start.
    pub(crate) remembered: Option<Duration>,
    /// When a renewal that time does not explain may be checked next.
    pub(crate) next_leap: Instant,
    pub(crate) presence: Presence,
    /// When the presence last changed.
    pub(crate) since: Instant,
    /// Departed owners stay visible to people for a while; then only their versions are kept.
    pub(crate) is_shown: bool,
    pub(crate) doubts: Doubts,
    /// This node counts its lease from a renewal that came as such, and not from others' reports.
    pub(crate) is_first_hand: bool,
    /// What others said of its lease's age.
    pub(crate) reported: Reported,
    pub(crate) instances: BTreeMap<Label, KnownInstance>,
}

/// When nobody could replay an owner's records any more, for its certificate is over. By both
/// clocks: a calendar that leaps forward and back must not make this node forget what it has
/// heard, and a machine that was suspended counts too little.
#[derive(Clone, Copy)]
pub(crate) struct ProofEnds {
    pub(crate) wall: WallTime,
    pub(crate) at: Instant,
}

/// One instance of an owner.
pub(crate) struct KnownInstance {
    pub(crate) version: Version,
    /// `None` is a withdrawal, kept so that nothing older comes back.
    pub(crate) instance: Option<Arc<Instance>>,
    /// As it travelled.
    pub(crate) sealed: Arc<[u8]>,
    pub(crate) learned_at: Instant,
}

impl Known {
    /// The same owner's newer node record takes over. Returns the instances that went.
    pub(crate) fn succeed(
        &mut self,
        node: Arc<NodeRecord>,
        sealed: Arc<[u8]>,
        key: PublicKey,
        proof_ends: ProofEnds,
        now: Instant,
    ) -> Vec<Label> {
        let is_another_life = node.version.incarnation != self.node.version.incarnation;
        let goes = |_: &Label, held: &mut KnownInstance| {
            node.left || (is_another_life && Some(held.version.incarnation) != node.continues)
        };
        let gone = self.instances.extract_if(.., goes).map(|(id, _)| id).collect();
        if node.lease.anchor != self.node.lease.anchor {
            self.seen = SeenLink::anchor(node.lease.anchor);
            self.run_out = self.seen;
            self.doubts.handle_chain(now);
        }
        let presence = if node.left { Presence::Left } else { Presence::Alive };
        if is_another_life {
            self.doubts = Doubts::default();
        }
        self.node = node;
        self.sealed = sealed;
        self.key = key;
        self.proof_ends = proof_ends;
        self.renewed_at = now;
        self.remembered = None;
        self.is_first_hand = false;
        self.reported = Reported::default();
        self.set_presence(presence, now);
        gone
    }

    /// Nothing has been heard since this node's earlier life, in which it ended as `lease` says.
    pub(crate) fn recall(&mut self, lease: Option<&RememberedLease>, now: Instant, wall: WallTime) {
        if self.presence == Presence::Left {
            return;
        }
        self.remembered = Some(lease.map_or(Duration::ZERO, |lease| wall.since(lease.heard)));
        let lease = lease.filter(|lease| lease.renewal.incarnation == self.node.version.incarnation);
        if let Some(seen) = lease.and_then(|lease| self.seen.advance(&lease.renewal)) {
            self.seen = seen;
        }
        let has_expired = lease.is_some_and(|lease| lease.expired);
        self.set_presence(if has_expired { Presence::Expired } else { Presence::Suspect }, now);
    }

    /// The newest link that is proved, whether it has counted or not.
    pub(crate) fn newest_link(&self) -> SeenLink {
        if self.run_out.counter() > self.seen.counter() { self.run_out } else { self.seen }
    }

    /// Whether a renewal with this counter comes too late to count. Who is gone needs a newer one than was shown as run
    /// out; who is present may have been slandered.
    pub(crate) fn is_stale(&self, counter: u32) -> bool {
        let run_out = self.run_out.counter();
        counter <= self.seen.counter()
            || counter < run_out
            || counter == run_out && !self.presence.is_present()
    }

    pub(crate) fn lease_to_remember(&self, now: Instant, wall: WallTime) -> RememberedLease {
        let silent = now.saturating_duration_since(self.renewed_at) + self.remembered.unwrap_or_default();
        RememberedLease {
            renewal: self.seen.renewal(self.node.version.incarnation),
            heard: wall.earlier(silent),
            expired: self.presence == Presence::Expired,
        }
    }

    /// The highest counter that the time since the last renewal explains, with room for an owner
    /// whose clock is fast. It bounds what a forged renewal costs: one hash per link. Nothing is
    /// known before the first, nor while this node only remembers the owner, so that may be anywhere
    /// in the chain; and this machine may have been suspended, which its monotonic clock does not see, so
    /// now and then a leap is checked too.
    pub(crate) fn renewals_explained(&self, now: Instant) -> u32 {
        if self.seen.counter() == 0 || self.remembered.is_some() {
            return u32::MAX;
        }
        let silent = now.saturating_duration_since(self.renewed_at).as_millis();
        let missed = silent / u128::from(self.node.lease.renew_millis);
        let explained = u32::try_from(missed * 2).unwrap_or(u32::MAX).saturating_add(RENEWALS_AHEAD_MAX);
        self.seen.counter().saturating_add(explained)
    }

    /// Returns whether anything visible changed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        let silent = now.saturating_duration_since(self.renewed_at);
        if !self.presence.is_present() {
            let hide = self.is_shown && now >= self.since + DEPARTED_SHOWN;
            self.is_shown &= !hide;
            hide
        } else if silent >= self.lease_length() {
            self.set_presence(Presence::Expired, now)
        } else if silent >= self.suspect_after() {
            self.set_presence(Presence::Suspect, now)
        } else {
            false
        }
    }

    /// `reporter` heard it `age` ago.
    pub(crate) fn handle_report(&mut self, reporter: &SpiffeId, age: Duration, needed: usize, now: Instant) {
        self.is_first_hand = false;
        if let Some(heard) = self.reported.handle_report(reporter, age, needed, now) {
            self.renewed_at = self.renewed_at.min(heard);
        }
    }

    /// It is present; whether anybody doubts that has changed. Returns whether anything visible has.
    pub(crate) fn handle_doubts(&mut self, now: Instant) -> bool {
        let silent = now.saturating_duration_since(self.renewed_at);
        let is_suspect =
            self.doubts.is_doubted() || silent >= self.suspect_after() || self.remembered.is_some();
        let presence = if is_suspect { Presence::Suspect } else { Presence::Alive };
        self.presence.is_present() && self.set_presence(presence, now)
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        match self.presence {
            Presence::Alive => Some(self.renewed_at + self.suspect_after()),
            Presence::Suspect => Some(self.renewed_at + self.lease_length()),
            Presence::Left | Presence::Expired => self.is_shown.then(|| self.since + DEPARTED_SHOWN),
        }
    }

    pub(crate) fn set_presence(&mut self, presence: Presence, now: Instant) -> bool {
        let changed = self.presence != presence;
        if changed {
            self.presence = presence;
            self.since = now;
            self.is_shown = true;
        }
        changed
    }

    pub(crate) fn lease_length(&self) -> Duration {
        Duration::from_millis(self.node.lease.length_millis.into())
    }

    pub(crate) fn suspect_after(&self) -> Duration {
        let renew = Duration::from_millis(self.node.lease.renew_millis.into());
        // Before the lease ends, however seldom the owner renews: nobody goes without a doubt.
        (renew * (RENEWALS_MISSED_MAX + 1)).min(self.lease_length() * 3 / 4)
    }
}

impl ProofEnds {
    pub(crate) fn new(ends: WallTime, now: Instant, wall: WallTime) -> Self {
        Self { wall: ends, at: now + ends.since(wall) }
    }

    pub(crate) fn passed(self, now: Instant, wall: WallTime) -> bool {
        now >= self.at && wall >= self.wall
    }
}

/// Whether `bundle` believes a node record's chain, whatever the calendar says now. Only a chain
/// that is valid at no moment is believed because of that, until its lease ends.
pub(crate) fn is_believed(bundle: &TrustBundle, node: &NodeRecord, wall: WallTime) -> bool {
    let proved = bundle.verify_apart_from_time(&chain_of(node), Usage::Client, wall);
    matches!(proved, Ok(_) | Err(ChainError::NotValidNow(_)))
}

/// The key that a node record's chain proves, and when that proof ends.
pub(crate) fn verify_chain(
    bundle: &TrustBundle,
    node: &NodeRecord,
    wall: WallTime,
) -> Result<(PublicKey, WallTime), Rejected> {
    let proved = bundle.verify(&chain_of(node), Usage::Client, wall)?;
    if proved.id != node.owner.identity {
        return Err(Rejected::WrongName);
    }
    Ok((proved.public_key, proved.not_after))
}

fn chain_of(node: &NodeRecord) -> Vec<CertificateDer<'_>> {
    node.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect()
}
