//! Counts work under way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use starling_gossip::clock::Instant;

use super::Endpoint;
use crate::circuit::Room;

/// Counts one piece of work as long as it lives.
pub(crate) struct Flight {
    endpoint: Arc<Endpoint>,
    begun: Instant,
    room: Option<Room>,
}

impl Flight {
    /// Work that has `begun`.
    pub(super) fn new(endpoint: Arc<Endpoint>, begun: Instant) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { endpoint, begun, room: None }
    }

    /// When it began.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// Its answer has come to its end.
    pub(crate) fn handle_end(&self) {
        self.endpoint.record.handle_end();
    }

    /// Its answer has ended in the midst, and its caller is not to blame.
    pub(crate) fn handle_broken_answer(&self) {
        self.endpoint.handle_broken_answer(self.begun);
    }

    /// It holds `room` as well.
    pub(crate) fn holding(mut self, room: Option<Room>) -> Self {
        self.room = room;
        self
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
