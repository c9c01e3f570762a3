//! The list of a workload's callers as it is now, asked when a stream begins and obeyed for as
//! long as it lasts.
//!
//! The decision is `authz`'s. A list may change under streams that are open:
//!
//! - HTTP asks at each request, at the cost of comparing a pointer while the list is the same. A
//!   request that was let in ends as it would.
//! - Opaque TCP, and HTTP that switched to another protocol, are cut off when their caller is let in
//!   no longer: nobody else can say where one piece of work ends.
//!
//! A list that guards nothing any more lets nobody in: no later list would reach those it let in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use http::header::HeaderValue;
use starling_gossip::identity::{ServiceName, SpiffeId};
use tokio::sync::Notify;

use crate::authz::{self, Allow, Decision, Reason, Rule};

/// Who may call one workload.
pub(crate) struct Access {
    service: ServiceName,
    allow: ArcSwap<Allow>,
    changed: Notify,
    ended: AtomicBool,
}

/// One caller that was let in.
pub(crate) struct Admission {
    access: Arc<Access>,
    peer: SpiffeId,
    /// The same, as each of its requests says it.
    peer_header: HeaderValue,
    held: ArcSwap<Held>,
}

/// What was decided last, and by which list.
struct Held {
    allow: Arc<Allow>,
    rule: Rule,
}

impl Access {
    /// For the workload that serves `service`.
    pub(crate) fn new(service: ServiceName, allow: Allow) -> Arc<Self> {
        let (allow, changed) = (ArcSwap::from_pointee(allow), Notify::new());
        Arc::new(Self { service, allow, changed, ended: AtomicBool::new(false) })
    }

    /// Another list from now on.
    pub(crate) fn replace(&self, allow: &Allow) {
        if **self.allow.load() == *allow {
            return;
        }
        self.allow.store(Arc::new(allow.clone()));
        self.changed.notify_waiters();
    }

    /// What it guards is gone: nobody is let in from now on.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.replace(&Allow::Listed(Vec::new()));
    }

    /// Lets `peer` in, or not.
    pub(crate) fn admit(self: &Arc<Self>, peer: &SpiffeId) -> Result<Arc<Admission>, Reason> {
        let held = self.decide(peer)?;
        // An identity is plain ASCII (SPIFFE-ID, section 2), so it always is a header's value.
        let peer_header = HeaderValue::from_str(peer.as_str()).expect("ASCII without controls");
        let (access, peer) = (self.clone(), peer.clone());
        Ok(Arc::new(Admission { access, peer, peer_header, held: ArcSwap::from_pointee(held) }))
    }

    fn decide(&self, peer: &SpiffeId) -> Result<Held, Reason> {
        let allow = self.allow.load_full();
        match authz::decide(&allow, peer) {
            Decision::Allow(rule) => {
                self.count("allowed", rule.as_str());
                Ok(Held { allow, rule })
            }
            Decision::Deny(reason) => {
                self.count("denied", "");
                Err(reason)
            }
        }
    }

    /// As many series as the configuration has rules; callers make none.
    fn count(&self, decision: &'static str, rule: &str) {
        let (service, rule) = (self.service.to_string(), rule.to_owned());
        metrics::counter!(
            "starling_access_decisions_total", "service" => service, "decision" => decision, "rule" => rule
        )
        .increment(1);
    }
}

impl Admission {
    /// Who was let in.
    pub(crate) fn peer(&self) -> &SpiffeId {
        &self.peer
    }

    /// Who was let in, as a header's value; a copy costs nothing.
    pub(crate) fn peer_header(&self) -> &HeaderValue {
        &self.peer_header
    }

    /// What let it in.
    pub(crate) fn rule(&self) -> Rule {
        self.held.load().rule.clone()
    }

    /// Whether the list, as it is now, lets the caller in.
    pub(crate) fn check(&self) -> Result<(), Reason> {
        if Arc::ptr_eq(&self.held.load().allow, &self.access.allow.load()) {
            return Ok(());
        }
        self.held.store(Arc::new(self.access.decide(&self.peer)?));
        Ok(())
    }

    /// Whether nobody is let in because the instance is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.access.ended.load(Ordering::Relaxed)
    }

    /// Resolves when the caller is let in no longer.
    pub(crate) async fn revoked(&self) -> Reason {
        loop {
            let mut changed = std::pin::pin!(self.access.changed.notified());
            // Waiting before looking: no change falls between the two.
            changed.as_mut().enable();
            if let Err(reason) = self.check() {
                return reason;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(patterns: &[&str]) -> Allow {
        Allow::Listed(patterns.iter().map(|text| text.parse().expect(text)).collect())
    }

    fn access(allow: Allow) -> Arc<Access> {
        Access::new("web".parse().expect("a name"), allow)
    }

    fn peer() -> SpiffeId {
        "spiffe://acme/ns/shop/sa/cart".parse().expect("an identity")
    }

    #[test]
    fn a_stream_that_is_open_obeys_the_next_list() {
        let access = access(Allow::Anybody);
        let admission = access.admit(&peer()).expect("let in");
        assert_eq!((admission.check(), admission.rule().as_str()), (Ok(()), "any"));
        access.replace(&listed(&["spiffe://acme/ns/shop/*"]));
        assert_eq!(admission.check(), Ok(()));
        assert_eq!(admission.rule().as_str(), "spiffe://acme/ns/shop/*", "the list of now");
        access.replace(&listed(&["spiffe://acme/svc/web"]));
        for _ in 0..2 {
            assert_eq!(admission.check(), Err(Reason::NotListed));
        }
        assert_eq!(access.admit(&peer()).err(), Some(Reason::NotListed));
        access.replace(&listed(&[peer().as_str()]));
        assert_eq!(admission.check(), Ok(()), "let in again");
    }

    #[tokio::test]
    async fn who_is_let_in_no_longer_hears_it_at_once() {
        let access = access(Allow::Anybody);
        let admission = access.admit(&peer()).expect("let in");
        let mut revoked = tokio::spawn(async move { admission.revoked().await });
        for allow in [listed(&["spiffe://acme/*"]), listed(&["spiffe://acme/ns/shop/*"])] {
            access.replace(&allow);
            tokio::task::yield_now().await;
            assert!(!revoked.is_finished(), "still let in");
        }
        access.replace(&listed(&[]));
        let reason = tokio::time::timeout(std::time::Duration::from_secs(10), &mut revoked).await;
        assert_eq!(reason.expect("in time").expect("no panic"), Reason::NobodyAllowed);
    }
}
