//! What the admin API shows of the mesh itself: its members, what they cost, and how far they agree.
//!
//! As in `view`: plain data with stable field names. What it says of a member is what the catalogue knows,
//! what others suspect, and what this node has seen for itself, the last of which counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use starling_gossip::clock::Instant;
use starling_gossip::handle::{Convergence, Doubt, MemberView as Gossiped};
use starling_gossip::record::Locality;
use starling_gossip::snapshot::Presence;
use starling_transport::pool::PeerStatus;

use super::view::age;
use crate::app::Shown;

/// One of `/v1/members`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberView {
    /// Its node's name.
    pub node: String,
    /// Its SPIFFE ID.
    pub identity: String,
    /// Where it listens.
    pub address: String,
    /// `alive`, `suspect`, `left` or `expired`.
    pub state: String,
    /// Who doubts that it is there, and why, in words.
    pub reason: Option<String>,
    /// What of that is gossip's.
    pub doubt: Option<DoubtView>,
    /// Which life of the node.
    pub incarnation: u64,
    /// Since it last renewed its lease; what lies before this node's start is by the calendar.
    pub lease_age_ms: u64,
    /// How long a renewal lasts.
    pub lease_ms: u64,
    /// Where it stands.
    pub locality: Locality,
    /// The program's version.
    pub version: String,
    /// The round trip to it, while this node is connected with it.
    pub rtt_us: Option<u64>,
    /// Gossip exchanged with it, by kind of message.
    pub traffic: BTreeMap<String, TrafficView>,
}

/// A doubt about a member
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoubtView {
    /// How many of its watchers cannot reach it.
    pub watchers: usize,
    /// Whether it left this node's own question unanswered.
    pub by_own_probe: bool,
    /// Since it is doubted.
    pub age_ms: u64,
}

/// Bytes of one kind of message
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficView {
    /// From this node.
    pub sent: u64,
    /// To this node.
    pub received: u64,
}

/// `/v1/convergence`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvergenceView {
    /// Present members, this node included.
    pub members: usize,
    /// Those that told this node lately what they know, this node included.
    pub heard: usize,
    /// Those of them that know what this node knows.
    pub equal: usize,
    /// `equal` of `heard`, in percent.
    pub share: f64,
    /// How long the longest of the others has differed.
    pub oldest_difference_ms: Option<u64>,
}

pub(super) async fn members(shown: &Shown) -> Vec<MemberView> {
    let peers = shown.transport.pool().peers();
    let now = shown.clock.now();
    let view = |gossiped: Gossiped| {
        let address = gossiped.member.record.addresses[0];
        let is_it = |peer: &&PeerStatus| peer.address == address && peer.identity == gossiped.owner.identity;
        let peer = peers.iter().find(is_it);
        member(gossiped, peer, now)
    };
    shown.gossip.members().await.into_iter().map(view).collect()
}

fn member(gossiped: Gossiped, peer: Option<&PeerStatus>, now: Instant) -> MemberView {
    let record = &gossiped.member.record;
    let is_remembered = gossiped.heard.as_ref().is_some_and(|heard| heard.is_remembered);
    let doubt = gossiped.doubt.as_ref();
    let (state, reason) = state_of(gossiped.member.presence, is_remembered, doubt, peer);
    let traffic =
        |(kind, (sent, received)): (&str, (u64, u64))| (kind.to_owned(), TrafficView { sent, received });
    MemberView {
        node: gossiped.owner.node.to_string(),
        identity: gossiped.owner.identity.to_string(),
        address: record.addresses[0].to_string(),
        state: state.as_str().to_owned(),
        reason,
        doubt: doubt.map(|doubt| DoubtView {
            watchers: doubt.watchers,
            by_own_probe: doubt.by_own_probe,
            age_ms: age(now, doubt.since),
        }),
        incarnation: record.version.incarnation,
        lease_age_ms: gossiped.heard.map_or(0, |heard| heard.lease_age.as_millis() as u64),
        lease_ms: record.lease.length_millis.into(),
        locality: record.locality.clone(),
        version: record.program.to_string(),
        rtt_us: peer.and_then(|peer| peer.rtt).map(|rtt| rtt.as_micros() as u64),
        traffic: gossiped.traffic.into_iter().map(traffic).collect(),
    }
}

/// What the catalogue knows of a member, what others suspect, and what this node has seen for itself.
fn state_of(
    presence: Presence,
    is_remembered: bool,
    doubt: Option<&Doubt>,
    peer: Option<&PeerStatus>,
) -> (Presence, Option<String>) {
    if !presence.is_present() {
        return (presence, None);
    }
    if presence == Presence::Suspect && is_remembered {
        let reason = "it has not been heard since this node started; known from node.data_dir";
        return (presence, Some(reason.to_owned()));
    }
    let seen = match peer {
        Some(peer) if !peer.connected => Some("it could not be reached from here"),
        Some(peer) if !peer.responsive => Some("it has fallen silent towards this node"),
        _ => None,
    };
    let state = if seen.is_some() { Presence::Suspect } else { presence };
    let mut reasons: Vec<String> = doubt.map(suspicions).unwrap_or_default();
    reasons.extend(seen.map(str::to_owned));
    if state == Presence::Suspect && reasons.is_empty() {
        reasons.push("it has missed several renewals of its lease".to_owned());
    }
    (state, (!reasons.is_empty()).then(|| reasons.join("; ")))
}

fn suspicions(doubt: &Doubt) -> Vec<String> {
    let watchers = match doubt.watchers {
        0 => None,
        1 => Some("one of its watchers cannot reach it".to_owned()),
        several => Some(format!("{several} of its watchers cannot reach it")),
    };
    let own = doubt.by_own_probe.then(|| "it left this node's own question unanswered".to_owned());
    watchers.into_iter().chain(own).collect()
}

pub(super) async fn convergence(shown: &Shown) -> ConvergenceView {
    let Convergence { members, heard, equal, oldest_difference } = shown.gossip.convergence().await;
    ConvergenceView {
        members,
        heard,
        equal,
        share: if heard == 0 { 0.0 } else { equal as f64 * 100.0 / heard as f64 },
        oldest_difference_ms: oldest_difference.map(|since| since.as_millis() as u64),
    }
}

#[cfg(test)]
mod tests {
    use starling_gossip::clock::Clock;

    use super::*;

    fn peer(connected: bool, responsive: bool) -> PeerStatus {
        let address = ([10, 0, 0, 1], 7400).into();
        let identity = "spiffe://acme/svc/web".parse().expect("an identity");
        PeerStatus { identity, address, connected, responsive, rtt: None }
    }

    fn doubt(watchers: usize, by_own_probe: bool) -> Doubt {
        Doubt { watchers, by_own_probe, since: Clock::System.now() }
    }

    fn told(presence: Presence, doubt: Option<&Doubt>, peer: Option<&PeerStatus>) -> (&'static str, String) {
        let (state, reason) = state_of(presence, false, doubt, peer);
        (state.as_str(), reason.unwrap_or_default())
    }

    #[test]
    fn a_member_is_as_the_catalogue_says_but_for_what_this_node_sees() {
        use Presence::{Alive, Expired, Left, Suspect};
        let (well, silent, gone) = (peer(true, true), peer(true, false), peer(false, false));
        assert_eq!(told(Alive, None, None), ("alive", String::new()));
        assert_eq!(told(Alive, None, Some(&well)), ("alive", String::new()));
        assert_eq!(told(Alive, None, Some(&silent)).0, "suspect");
        assert_eq!(told(Alive, None, Some(&gone)).1, "it could not be reached from here");
        assert_eq!(told(Suspect, None, Some(&well)).1, "it has missed several renewals of its lease");
        for departed in [Left, Expired] {
            let (state, reason) = told(departed, Some(&doubt(2, true)), Some(&gone));
            assert_eq!((state, reason.as_str()), (departed.as_str(), ""));
        }
        let (state, reason) = state_of(Suspect, true, None, Some(&gone));
        assert!(state == Suspect && reason.is_some_and(|words| words.contains("node.data_dir")));
    }

    #[test]
    fn suspicion_is_told_in_words() {
        use Presence::{Alive, Suspect};
        let one = doubt(1, false);
        assert_eq!(told(Alive, Some(&one), None), ("alive", "one of its watchers cannot reach it".into()));
        let two = doubt(2, false);
        assert_eq!(told(Suspect, Some(&two), None).1, "2 of its watchers cannot reach it");
        let own = doubt(2, true);
        let reason = told(Suspect, Some(&own), Some(&peer(false, false))).1;
        let expected = "2 of its watchers cannot reach it; it left this node's own question unanswered; \
                        it could not be reached from here";
        assert_eq!(reason, expected);
    }
}
