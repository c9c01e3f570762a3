//! PURE: what hosts have sent, by kind and by host.

use std::collections::BTreeMap;

use starling_gossip::kind::MessageKind;

use super::quic::{ACK_BYTES, DIAL_FAILED_BYTES, HANDSHAKE_BYTES, KEEP_ALIVE_BYTES, PATH_PROBES_BYTES};

/// What QUIC adds to messages: headers, packets sent again, acknowledgements.
const QUIC: &str = "quic";

/// What connections cost before they carry anything, and dials that fail.
const HANDSHAKE: &str = "handshake";

/// What connections cost that carry nothing.
const KEEP_ALIVE: &str = "keep-alive";

/// Sums since the start; lost messages are in them.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Messages and bytes by kind, all hosts together. What QUIC adds has kinds of its own, and no messages.
    pub by_kind: BTreeMap<&'static str, (u64, u64)>,
    /// Bytes by host, all kinds together.
    pub by_host: BTreeMap<usize, u64>,
}

impl Traffic {
    /// `host` sends a message.
    pub(super) fn message(&mut self, host: usize, kind: MessageKind, bytes: usize) {
        self.add(host, kind.as_str(), 1, bytes);
    }

    /// `host` sends so much besides.
    pub(super) fn overhead(&mut self, host: usize, bytes: usize) {
        self.add(host, QUIC, 0, bytes);
    }

    /// `host` acknowledges so often.
    pub(super) fn acknowledgements(&mut self, host: usize, count: usize) {
        self.overhead(host, count * ACK_BYTES);
    }

    /// The two have a new connection.
    pub(super) fn handshake(&mut self, hosts: [usize; 2]) {
        hosts.into_iter().for_each(|host| self.add(host, HANDSHAKE, 0, HANDSHAKE_BYTES + PATH_PROBES_BYTES));
    }

    /// `host` dials, and nobody answers.
    pub(super) fn failed_dial(&mut self, host: usize) {
        self.add(host, HANDSHAKE, 0, DIAL_FAILED_BYTES);
    }

    /// The two keep their connection alive, so often.
    pub(super) fn keep_alive(&mut self, hosts: [usize; 2], times: usize) {
        hosts.into_iter().for_each(|host| self.add(host, KEEP_ALIVE, 0, times * KEEP_ALIVE_BYTES));
    }

    fn add(&mut self, host: usize, kind: &'static str, messages: u64, bytes: usize) {
        let sums = self.by_kind.entry(kind).or_default();
        sums.0 += messages;
        sums.1 += bytes as u64;
        *self.by_host.entry(host).or_default() += bytes as u64;
    }
}
