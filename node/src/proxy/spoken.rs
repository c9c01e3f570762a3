//! STATE MACHINE: which versions of HTTP a workload speaks, as far as it has shown.
//!
//! Nobody is asked before the first call: a caller's version is tried, and what comes of it is
//! remembered. Both may be spoken. One that was refused is tried again after a while, and at once when
//! the other is refused too, for the workload may have been replaced by another program.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use starling_gossip::clock::Instant;

use crate::upstream::HttpVersion;

/// How long a refused version is not tried where the other serves as well: each try costs the
/// workload a connection and, as a rule, a line in its log.
const PATIENCE: Duration = Duration::from_secs(300);

/// The same where only the refused one will do, as for gRPC.
const PATIENCE_IN_NEED: Duration = Duration::from_secs(1);

/// What is known of one workload.
#[derive(Default)]
pub(crate) struct Spoken {
    /// A bit for each version that was answered, and for each that was refused; never both.
    shown: AtomicU8,
    refused_at: Mutex<Option<Instant>>,
}

impl Spoken {
    /// Whether requests in `version` have been answered, and nothing has spoken against it since: so
    /// it is with ordinary requests.
    pub(crate) fn has_answered(&self, version: HttpVersion) -> bool {
        self.shown.load(Ordering::Relaxed) & answered(version) != 0
    }

    /// The version to speak for a caller of version `asked`, who may be `in_need` of just that.
    pub(crate) fn version_for(&self, asked: HttpVersion, in_need: bool, now: Instant) -> HttpVersion {
        if self.shown.load(Ordering::Relaxed) & refused(asked) == 0 {
            return asked;
        }
        let patience = if in_need { PATIENCE_IN_NEED } else { PATIENCE };
        let refused_at = *self.refused_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = refused_at.is_none_or(|at| now >= at + patience);
        if is_due { asked } else { asked.other() }
    }

    /// A request in `version` was answered.
    pub(crate) fn handle_answer(&self, version: HttpVersion) {
        let shown = self.shown.load(Ordering::Relaxed);
        self.shown.store(shown & !refused(version) | answered(version), Ordering::Relaxed);
    }

    /// `version` is not spoken. So the other is tried next, whatever was seen of it.
    pub(crate) fn handle_refusal(&self, version: HttpVersion, now: Instant) {
        let shown = self.shown.load(Ordering::Relaxed);
        let shown = shown & !answered(version) & !refused(version.other());
        self.shown.store(shown | refused(version), Ordering::Relaxed);
        *self.refused_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Nothing is known any more.
    pub(crate) fn forget(&self) {
        self.shown.store(0, Ordering::Relaxed);
    }
}

fn answered(version: HttpVersion) -> u8 {
    match version {
        HttpVersion::Http1 => 1,
        HttpVersion::Http2 => 2,
    }
}

fn refused(version: HttpVersion) -> u8 {
    answered(version) << 2
}

#[cfg(test)]
mod tests {
    use starling_gossip::clock::Clock;

    use super::HttpVersion::{Http1, Http2};
    use super::*;

    #[test]
    fn a_version_that_is_refused_gives_way_to_the_other_for_a_while() {
        let (spoken, now) = (Spoken::default(), Clock::System.now());
        assert_eq!(spoken.version_for(Http2, false, now), Http2, "nothing is known");
        spoken.handle_refusal(Http2, now);
        assert_eq!(spoken.version_for(Http2, false, now), Http1);
        assert_eq!(spoken.version_for(Http1, false, now), Http1);
        assert_eq!(spoken.version_for(Http2, true, now + PATIENCE_IN_NEED), Http2);
        assert_eq!(spoken.version_for(Http2, false, now + PATIENCE_IN_NEED), Http1);
        assert_eq!(spoken.version_for(Http2, false, now + PATIENCE), Http2);
    }

    #[test]
    fn an_answer_clears_a_refusal_and_a_refusal_an_answer() {
        let (spoken, now) = (Spoken::default(), Clock::System.now());
        spoken.handle_answer(Http1);
        spoken.handle_refusal(Http2, now);
        assert!(spoken.has_answered(Http1) && !spoken.has_answered(Http2));
        // The workload is another program now.
        spoken.handle_refusal(Http1, now);
        assert!(!spoken.has_answered(Http1));
        assert_eq!(spoken.version_for(Http1, false, now), Http2);
        assert_eq!(spoken.version_for(Http2, false, now), Http2);
        spoken.handle_answer(Http2);
        spoken.handle_answer(Http1);
        assert_eq!(spoken.version_for(Http1, false, now), Http1);
        assert!(spoken.has_answered(Http1) && spoken.has_answered(Http2));
        spoken.forget();
        assert!(!spoken.has_answered(Http1) && !spoken.has_answered(Http2));
    }
}
