//! `[routing]`: when a node distrusts its own view of the mesh.

use std::time::Duration;

use super::limits::{MAX_STALE, PANIC_WINDOW};
use super::section::Section;
use super::value::{duration, percent};

/// `[routing]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// When more than this share of a service's endpoints is lost at once because leases ran out, the
    /// node keeps using them. In percent; 0 and 100 are off. Half: fewer is a failure that the others can
    /// carry, and of more it is likelier that this node is the one that is cut off.
    pub panic_threshold: u8,
    /// What "at once" means. Leases of nodes that were lost together end within one renewal period (30 s)
    /// of each other, so shorter than that misses some.
    pub panic_window: Duration,
    /// How long this node's own attempts to reach a kept endpoint fail before it is given up.
    pub max_stale: Duration,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            panic_threshold: 50,
            panic_window: Duration::from_secs(30),
            max_stale: Duration::from_secs(600),
        }
    }
}

pub(super) fn read(mut section: Section<'_>) -> Routing {
    let default = Routing::default();
    let routing = Routing {
        panic_threshold: section.or("panic_threshold", default.panic_threshold, percent()),
        panic_window: section.or("panic_window", default.panic_window, duration(PANIC_WINDOW)),
        max_stale: section.or("max_stale", default.max_stale, duration(MAX_STALE)),
    };
    section.finish();
    routing
}
