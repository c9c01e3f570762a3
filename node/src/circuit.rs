//! What one service may take up of its caller, so that one that hangs does not take everything.
//!
//! It counts and says no. A limit is the caller's own: nobody else hears of it, and nothing is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The most that this node has under way with one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections.
    pub connections: u32,
    /// Requests and connections that wait for an instance, or for a connection to its node.
    pub pending: u32,
    /// HTTP requests, each from its sending to its answer's end.
    pub requests: u32,
    /// Requests that are being sent once more. Above all of them stands the service's retry budget.
    pub retries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        // As much as a whole node takes on: a lower limit is a choice that needs to know the service.
        Self { connections: 10_000, pending: 10_000, requests: 10_000, retries: 1_000 }
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Connections,
    Pending,
    Requests,
    Retries,
}

/// What is under way with one service.
#[derive(Debug, Default)]
pub(crate) struct Circuit {
    counts: [AtomicU32; 4],
}

/// One piece of it, as long as it lives.
#[must_use = "it counts as long as it lives"]
pub(crate) struct Room {
    circuit: Arc<Circuit>,
    kind: Kind,
}

impl Kind {
    /// As in metrics; the configuration's key has `_max` after it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending",
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }
}

impl Limits {
    /// The most of this kind.
    pub(crate) fn of(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Connections => self.connections,
            Kind::Pending => self.pending,
            Kind::Requests => self.requests,
            Kind::Retries => self.retries,
        }
    }
}

impl Circuit {
    /// Room for one more; `None` at the limit.
    pub(crate) fn enter(self: &Arc<Self>, kind: Kind, limits: &Limits) -> Option<Room> {
        // Counted first and taken back by the drop, so that the limit holds among many.
        let before = self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
        let room = Room { circuit: self.clone(), kind };
        (before < limits.of(kind)).then_some(room)
    }

    /// How many of this kind are under way.
    pub(crate) fn count(&self, kind: Kind) -> u32 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.circuit.counts[self.kind as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_limit_of_its_own_and_room_comes_back() {
        let circuit = Arc::new(Circuit::default());
        let limits = Limits { requests: 2, retries: 0, ..Limits::default() };
        let two = [circuit.enter(Kind::Requests, &limits), circuit.enter(Kind::Requests, &limits)];
        assert!(two.iter().all(Option::is_some));
        assert!(circuit.enter(Kind::Requests, &limits).is_none());
        assert!(circuit.enter(Kind::Retries, &limits).is_none());
        assert!(circuit.enter(Kind::Pending, &limits).is_some());
        assert_eq!(circuit.count(Kind::Requests), 2);
        drop(two);
        assert_eq!(circuit.count(Kind::Requests), 0);
        assert!(circuit.enter(Kind::Requests, &limits).is_some());
    }
}
