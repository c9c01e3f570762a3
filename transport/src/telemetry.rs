//! The names of the transport's metrics, in one place, so that their series stay bounded.
//!
//! Every label's values come from an enumeration in this crate or in gossip's; none from a peer.

use metrics::{counter, gauge};

use starling_gossip::kind::MessageKind;
use starling_gossip::link::Delivery;

use crate::header::RefusalReason;

/// Which way something went, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// A handshake ended, or was not begun.
pub(crate) fn handshake(direction: Direction, outcome: &'static str) {
    counter!("starling_handshakes_total", "direction" => direction.as_str(), "outcome" => outcome)
        .increment(1);
}

/// A connection was opened.
pub(crate) fn connection_opened() {
    gauge!("starling_connections").increment(1);
}

/// A connection is gone.
pub(crate) fn connection_closed() {
    gauge!("starling_connections").decrement(1);
}

/// A connection's peer stopped answering.
pub(crate) fn peer_unresponsive() {
    counter!("starling_connections_unresponsive_total").increment(1);
}

/// We refused a peer's stream.
pub(crate) fn stream_refused(reason: RefusalReason) {
    counter!("starling_streams_refused_total", "reason" => reason.as_str()).increment(1);
}

/// A gossip message went out or came in whole, as `delivery` says it travelled; what was asked for may
/// have been another, for not everything fits a datagram.
pub(crate) fn gossip_message(direction: Direction, delivery: Delivery, message: &[u8]) {
    let (direction, kind) = (direction.as_str(), MessageKind::of(message).as_str());
    let delivery = match delivery {
        Delivery::Reliable => "reliable",
        Delivery::Once => "once",
    };
    let labels = [("direction", direction), ("kind", kind), ("delivery", delivery)];
    counter!("starling_gossip_messages_total", &labels).increment(1);
    counter!("starling_gossip_bytes_total", &labels).increment(message.len() as u64);
}

/// A gossip message was lost here.
pub(crate) fn gossip_dropped(reason: &'static str) {
    counter!("starling_gossip_dropped_total", "reason" => reason).increment(1);
}

/// A peer sent a datagram of a kind that we do not know.
pub(crate) fn datagram_ignored() {
    counter!("starling_datagrams_ignored_total").increment(1);
}

/// A peer is shunned from now on.
pub(crate) fn peer_shunned() {
    counter!("starling_peers_shunned_total").increment(1);
}
