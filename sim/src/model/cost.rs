//! What messages weigh: chitchat's format, counted.
//!
//! A SYN is a digest, a SYN-ACK a digest and a delta, an ACK a delta (`message.rs` and `digest.rs` of
//! chitchat 0.11). A digest names everybody, so almost all of the cost grows with the mesh.

use std::time::Duration;

use super::digest_entry_bytes;

/// Magic number, version, kind, and the count of a digest's entries.
const DIGEST_ENVELOPE_BYTES: usize = 2 + 1 + 1 + 2;

/// The name of the mesh in a SYN: its length and a trust domain such as `example.org`.
const CLUSTER_BYTES: usize = 2 + 11;

/// Magic number, version, kind, and a delta that says nothing.
const ACK_BYTES: usize = 2 + 1 + 1 + 1;

/// One renewed lease in a delta that holds some: an owner, a counter, a hash as base64, packed.
/// Measured in full runs; alone it takes about 130.
const RENEWAL_BYTES: f64 = 70.0;

/// What was sent, all nodes together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// In how much time.
    pub time: Duration,
    /// Messages that begin an exchange.
    pub syns: u64,
    /// Their answers.
    pub syn_acks: u64,
    /// The answers' answers.
    pub acks: u64,
    /// Times that one owner's renewal was sent.
    pub renewals: u64,
}

/// A SYN of a mesh of `nodes`; the SYN-ACK takes as much, and what it carries.
pub fn exchange_bytes(nodes: usize) -> usize {
    DIGEST_ENVELOPE_BYTES + CLUSTER_BYTES + nodes * digest_entry_bytes()
}

/// The last message of an exchange, when it carries little.
pub(super) fn ack_bytes() -> usize {
    ACK_BYTES
}

impl Traffic {
    /// Messages that each node sends.
    pub fn messages_per_node_s(&self, nodes: usize) -> f64 {
        self.per_node_s((self.syns + self.syn_acks + self.acks) as f64, nodes)
    }

    /// Bytes that each node sends. Every node renews, and what was counted was one node's.
    pub fn bytes_per_node_s(&self, nodes: usize) -> f64 {
        let digests = (self.syns + self.syn_acks) as f64 * exchange_bytes(nodes) as f64;
        let renewals = self.renewals as f64 * nodes as f64 * RENEWAL_BYTES;
        self.per_node_s(digests + self.acks as f64 * ACK_BYTES as f64 + renewals, nodes)
    }

    fn per_node_s(&self, amount: f64, nodes: usize) -> f64 {
        amount / nodes as f64 / self.time.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}
