//! PURE: what a node sends in calm, added up from what it says how often, and from what QUIC adds.
//!
//! Nothing of it grows with the mesh but renewals: each node passes each owner's on.

use crate::network::connection::UNUSED_CLOSE;
use crate::network::fate::packets;
use crate::network::quic::{
    ACK_BYTES, FRAME_BYTES, HANDSHAKE_BYTES, KEEP_ALIVE, KEEP_ALIVE_BYTES, PACKET_OVERHEAD_BYTES,
    PATH_PROBES_BYTES,
};

use starling_gossip::neighbours::{CHANGE_PERIOD, NEIGHBOURS};
use starling_gossip::renewing::TALK_PEERS;
use starling_gossip::watching::{QUESTION_PERIOD, WATCHERS};

use super::{Settings, TALK_PERIOD};

/// Head of a talk (4), a count or two, and the digest of all that its sender holds.
const TALK_BYTES: f64 = 16.0;

/// One renewal: an owner, a counter, a hash, a few bytes between.
const RENEWAL_BYTES: f64 = 50.0;

/// Head, and a number to tell answers apart.
const PING_BYTES: f64 = 16.0;

/// A question for one owner's renewal.
const QUESTION_BYTES: f64 = 24.0;

/// What a node sends each second in calm.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Calm {
    /// Messages.
    pub messages: f64,
    /// Bytes, those that QUIC adds included.
    pub bytes: f64,
}

/// Of each node of such a mesh.
pub fn calm(settings: &Settings) -> Calm {
    let others = (settings.nodes - 1) as f64;
    let renewals = others / settings.renew.as_secs_f64();
    let mut calm = Calm::default();
    let talks = (TALK_PEERS as f64).min(others) / TALK_PERIOD.as_secs_f64();
    calm.add(talks, TALK_BYTES + renewals * TALK_PERIOD.as_secs_f64() * RENEWAL_BYTES, true);
    let pings = (WATCHERS as f64).min(others) / QUESTION_PERIOD.as_secs_f64();
    // An acknowledgement travels along with the answer.
    calm.add(pings, PING_BYTES, false);
    calm.add(pings, PING_BYTES, true);
    // Whoever has missed renewals asks for all of them at once.
    let missed = renewals * (1.0 - reached(settings));
    let questions = missed.min(1.0 / TALK_PERIOD.as_secs_f64());
    calm.add(questions, TALK_BYTES + QUESTION_BYTES * (missed / questions.max(f64::MIN_POSITIVE)), false);
    calm.add(questions, TALK_BYTES + RENEWAL_BYTES * (missed / questions.max(f64::MIN_POSITIVE)), true);
    calm.bytes += connections(others);
    calm
}

impl Calm {
    /// So many messages, and what QUIC adds to each.
    fn add(&mut self, messages: f64, bytes: f64, is_acknowledged_alone: bool) {
        let packets = packets(bytes as usize);
        let acknowledgements = packets.div_ceil(2) - usize::from(!is_acknowledged_alone && packets == 1);
        let added = FRAME_BYTES + packets * PACKET_OVERHEAD_BYTES + acknowledgements * ACK_BYTES;
        self.messages += messages;
        self.bytes += messages * (bytes + added as f64);
    }
}

/// The share of nodes that a renewal reaches without being asked for: of those who are told, each tells so many
/// (the final size of an epidemic, by iteration).
fn reached(settings: &Settings) -> f64 {
    const ITERATIONS: usize = 50;
    let told = (TALK_PEERS as f64).min((settings.nodes - 1) as f64) * (1.0 - settings.path.loss);
    (0..ITERATIONS).fold(1.0, |reached, _| 1.0 - (-told * reached).exp())
}

/// Connections: a neighbour is replaced now and then, at either end; those no longer used are kept alive until they
/// are given back. In a small mesh most are there already.
fn connections(others: f64) -> f64 {
    let replaced = 2.0 / CHANGE_PERIOD.as_secs_f64();
    let unused = replaced * UNUSED_CLOSE.as_secs_f64();
    let used = (2 * NEIGHBOURS + 2 * WATCHERS) as f64 + unused;
    let is_new = (1.0 - used / others).max(0.0);
    let opened = replaced * is_new * (HANDSHAKE_BYTES + PATH_PROBES_BYTES) as f64;
    opened + unused * is_new * KEEP_ALIVE_BYTES as f64 / KEEP_ALIVE.as_secs_f64()
}
