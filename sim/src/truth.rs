//! What is really so: who said what when, who was up, who could reach whom.
//!
//! The checker and the measures hold it against what nodes believe. Nodes never see it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use starling_gossip::clock::Instant;
use starling_gossip::record::{Instance, Locality, Owner};

use crate::network::partition::APART;

/// All that is really so.
#[derive(Default)]
pub struct Truth {
    hosts: Vec<HostTruth>,
    by_owner: BTreeMap<Owner, usize>,
    /// Who reached whom since when: by host, its component.
    epochs: Vec<(Instant, Vec<u16>)>,
}

/// One host.
pub struct HostTruth {
    /// Who it is in the mesh.
    pub owner: Owner,
    /// It attacks others, or did; what it says of itself binds nobody.
    pub is_hostile: bool,
    /// Everywhere it ever listened.
    pub addresses: Vec<SocketAddr>,
    /// Where it stands.
    pub locality: Locality,
    /// What it said of its instance; word `n` is at index `n - 1`.
    pub words: Vec<Saying>,
    /// It left for good.
    pub has_left: bool,
    /// Its incarnation when it last left, of which others may hear after it is back.
    pub left_life: Option<u64>,
    /// When it last came up; `None` while it is down.
    pub up_since: Option<Instant>,
    /// It is slow or loses packets, or was and has been well again since.
    pub is_degraded: bool,
    /// See [`Self::is_degraded`].
    pub well_since: Option<Instant>,
}

/// Something a host said of its instance.
pub struct Saying {
    /// When.
    pub at: Instant,
    /// What; `None` withdrew it.
    pub instance: Option<Instance>,
}

impl Truth {
    /// A host that has not yet started. Returns its number.
    pub fn add(&mut self, owner: Owner, locality: Locality) -> usize {
        let host = self.hosts.len();
        self.by_owner.insert(owner.clone(), host);
        self.hosts.push(HostTruth {
            owner,
            is_hostile: false,
            addresses: Vec::new(),
            locality,
            words: Vec::new(),
            has_left: false,
            left_life: None,
            up_since: None,
            is_degraded: false,
            well_since: None,
        });
        host
    }

    /// All hosts, by number.
    pub fn hosts(&self) -> &[HostTruth] {
        &self.hosts
    }

    /// One host.
    pub fn host(&self, host: usize) -> &HostTruth {
        &self.hosts[host]
    }

    /// One host, to change.
    pub fn host_mut(&mut self, host: usize) -> &mut HostTruth {
        &mut self.hosts[host]
    }

    /// The host that `owner` is.
    pub fn host_of(&self, owner: &Owner) -> Option<usize> {
        self.by_owner.get(owner).copied()
    }

    /// Whether an attacker holds a key of `owner`'s identity, and so may truly say that it is there.
    pub fn may_be_invented(&self, owner: &Owner) -> bool {
        self.hosts.iter().any(|host| host.is_hostile && host.owner.identity == owner.identity)
    }

    /// From `now` on hosts reach each other so.
    pub fn begin_epoch(&mut self, now: Instant, components: Vec<u16>) {
        self.epochs.push((now, components));
    }

    /// By host, its component now.
    pub fn components(&self) -> &[u16] {
        self.epochs.last().map_or(&[], |(_, components)| components)
    }

    /// When `one` must have heard `other` at the latest, who renews within `span`: so long before they last reached each
    /// other, if they had for that long.
    pub fn last_together(&self, one: usize, other: usize, span: Duration) -> Option<Instant> {
        let component = |components: &[u16], host: usize| components.get(host).copied().unwrap_or(APART);
        let is_together = |components: &[u16]| {
            component(components, one) != APART && component(components, one) == component(components, other)
        };
        let ends = self.epochs.iter().skip(1).map(|(begin, _)| Some(*begin)).chain([None]);
        let mut since = None;
        let mut last = None;
        for ((begin, components), end) in self.epochs.iter().zip(ends) {
            if !is_together(components) {
                since = None;
                continue;
            }
            let since = *since.get_or_insert(*begin);
            // The present goes on; nothing has ended.
            last =
                end.map(|end| end - span).filter(|heard| *heard >= since).or(last.filter(|_| end.is_some()));
        }
        last
    }

    /// Whether both were up and reached each other, over others if need be, all the time since `since`.
    pub fn together(&self, one: usize, other: usize, since: Instant) -> bool {
        let component = |components: &[u16], host: usize| components.get(host).copied().unwrap_or(APART);
        for (begin, components) in self.epochs.iter().rev() {
            let of_one = component(components, one);
            if of_one == APART || of_one != component(components, other) {
                return false;
            }
            if *begin <= since {
                return true;
            }
        }
        false
    }
}

impl Truth {
    /// Whether `subject` was up and everybody who was up reached it, over others if need be, all the time since `since`.
    pub fn with_everybody(&self, subject: usize, since: Instant) -> bool {
        let is_with_all = |components: &[u16]| {
            let own = components.get(subject).copied().unwrap_or(APART);
            own != APART && components.iter().all(|component| *component == own || *component == APART)
        };
        let last = self.epochs.iter().rposition(|(begin, _)| *begin <= since);
        last.is_some_and(|last| self.epochs[last..].iter().all(|(_, components)| is_with_all(components)))
    }
}

impl HostTruth {
    /// Whether it has been neither slow nor lossy since `since`.
    pub fn is_well(&self, since: Instant) -> bool {
        !self.is_degraded && self.well_since.is_none_or(|well| well <= since)
    }

    /// The number of its newest word; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.words.len() as u64
    }

    /// What it said under `number`.
    pub fn word(&self, number: u64) -> Option<&Saying> {
        self.words.get(usize::try_from(number.checked_sub(1)?).ok()?)
    }

    /// The first word after word `number` that withdrew the instance: who offered that one and offers
    /// nothing any more knows it.
    pub fn withdrawn_after(&self, number: u64) -> Option<u64> {
        let mut later = (number + 1)..=self.newest();
        later.find(|later| number > 0 && self.word(*later).is_some_and(|word| word.instance.is_none()))
    }

    /// What others should offer of it, if it is up: a word's number, or 0 for nothing.
    pub fn should_be_shown(&self) -> u64 {
        self.words.last().map_or(0, |word| word.instance.as_ref().map_or(0, |_| self.newest()))
    }
}
