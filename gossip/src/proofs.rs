//! A bounded memory of what was proved, so that the same bytes are not proved twice.
//!
//! A node hears a record from several peers, and a simulation's nodes all judge the same records. Only
//! positive verdicts are kept, each under the SHA-256 of everything it follows from; so nothing is ever
//! believed here that was not proved, and nobody fills the memory with refusals. What changes without
//! the bytes is not part of a verdict: the calendar and revocation are
//! [`crate::svid::TrustBundle::verify`]'s to judge, each time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use rustls_pki_types::CertificateDer;

use crate::clock::WallTime;
use crate::svid::{PublicKey, SIGNATURE_BYTES, Usage, VerifiedIdentity};

/// What a verdict follows from, as its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Evidence([u8; 32]);

/// What one bundle's roots proved.
pub(crate) struct Proofs(Mutex<Generations>);

/// A chain that leads to the bundle's roots at every moment from `not_before` to `not_after`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProvedChain {
    pub(crate) leaf: VerifiedIdentity,
    pub(crate) not_before: WallTime,
    pub(crate) not_after: WallTime,
}

#[derive(Clone)]
enum Proved {
    Chain(ProvedChain),
    Signature,
}

/// What was asked for lately, and what was asked for before: a half that is full becomes the older
/// one, and the older one goes.
struct Generations {
    half: usize,
    young: BTreeMap<Evidence, Proved>,
    old: BTreeMap<Evidence, Proved>,
}

impl Evidence {
    /// All that a chain's verdict follows from, time and revocation apart.
    pub(crate) fn of_chain(chain: &[CertificateDer<'_>], usage: Usage) -> Self {
        let usage: &[u8] = match usage {
            Usage::Client => b"client",
            Usage::Server => b"server",
        };
        Self::of([b"chain".as_slice(), usage].into_iter().chain(chain.iter().map(|one| one.as_ref())))
    }

    /// All that a signature's verdict follows from.
    pub(crate) fn of_signature(key: &PublicKey, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> Self {
        let (kind, key) = match key {
            PublicKey::P256(point) => (b"P-256".as_slice(), point),
            PublicKey::Ed25519(key) => (b"Ed25519".as_slice(), key),
        };
        Self::of([b"signature".as_slice(), kind, key, signature, message].into_iter())
    }

    /// Each part with its length in front, so that no two lists of parts are the same bytes.
    fn of<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }
}

impl Proofs {
    /// Remembers at least half of `capacity` verdicts, and at most all.
    pub(crate) fn new(capacity: usize) -> Self {
        let (half, young, old) = ((capacity / 2).max(1), BTreeMap::new(), BTreeMap::new());
        Self(Mutex::new(Generations { half, young, old }))
    }

    /// Who `evidence` proved to sign, if its chain is valid at `wall`.
    pub(crate) fn chain(&self, evidence: Evidence, wall: WallTime) -> Option<VerifiedIdentity> {
        match self.held().get(evidence)? {
            Proved::Chain(proved) if (proved.not_before..=proved.not_after).contains(&wall) => {
                Some(proved.leaf.clone())
            }
            Proved::Chain(_) | Proved::Signature => None,
        }
    }

    pub(crate) fn add_chain(&self, evidence: Evidence, proved: ProvedChain) {
        self.held().put(evidence, Proved::Chain(proved));
    }

    /// Whether `evidence` is a signature that was found to be good.
    pub(crate) fn has_signature(&self, evidence: Evidence) -> bool {
        matches!(self.held().get(evidence), Some(Proved::Signature))
    }

    pub(crate) fn add_signature(&self, evidence: Evidence) {
        self.held().put(evidence, Proved::Signature);
    }

    fn held(&self) -> MutexGuard<'_, Generations> {
        // Each change of it is one insertion: whoever panicked left it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Proofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.held();
        f.debug_struct("Proofs").field("remembered", &(held.young.len() + held.old.len())).finish()
    }
}

impl Generations {
    fn get(&mut self, evidence: Evidence) -> Option<&Proved> {
        if let Some(proved) = self.old.remove(&evidence) {
            self.put(evidence, proved);
        }
        self.young.get(&evidence)
    }

    fn put(&mut self, evidence: Evidence, proved: Proved) {
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(evidence, proved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(number: u8) -> Evidence {
        Evidence([number; 32])
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_asked_for() {
        let proofs = Proofs::new(4);
        for number in 0..=u8::MAX {
            proofs.add_signature(evidence(number));
            assert!(proofs.has_signature(evidence(0)), "asked for each time, {number}");
            let held = proofs.held();
            assert!(held.young.len() + held.old.len() <= 4);
        }
        assert!(proofs.has_signature(evidence(u8::MAX)));
        assert!(!proofs.has_signature(evidence(1)), "pushed out");
    }

    #[test]
    fn every_part_of_the_evidence_counts() {
        let key = PublicKey::Ed25519(vec![1; 32]);
        let of = |key: &PublicKey, message: &[u8], first| {
            let mut signature = [0; SIGNATURE_BYTES];
            signature[0] = first;
            Evidence::of_signature(key, message, &signature)
        };
        let all = [
            of(&key, b"ab", 0),
            of(&key, b"a", 0),
            of(&key, b"ab", 1),
            of(&PublicKey::Ed25519(vec![2; 32]), b"ab", 0),
            of(&PublicKey::P256(vec![1; 32]), b"ab", 0),
        ];
        let [one, two] = [b"one".as_slice(), b"two"].map(CertificateDer::from);
        let joined = CertificateDer::from(b"onetwo".as_slice());
        let chains = [
            Evidence::of_chain(&[one.clone(), two.clone()], Usage::Client),
            Evidence::of_chain(&[one.clone(), two.clone()], Usage::Server),
            Evidence::of_chain(&[two, one], Usage::Client),
            Evidence::of_chain(&[joined], Usage::Client),
        ];
        let different: std::collections::BTreeSet<_> = all.into_iter().chain(chains).collect();
        assert_eq!(different.len(), all.len() + chains.len());
    }

    #[test]
    fn a_chain_is_proved_while_all_of_it_is_valid() {
        let at = |unix_millis| WallTime { unix_millis };
        let leaf = VerifiedIdentity {
            id: "spiffe://acme/svc/web".parse().expect("an identity"),
            public_key: PublicKey::Ed25519(vec![1; 32]),
            not_after: at(30),
        };
        let proofs = Proofs::new(4);
        let proved = ProvedChain { leaf: leaf.clone(), not_before: at(10), not_after: at(20) };
        proofs.add_chain(evidence(1), proved);
        for (wall, is_valid) in [(9, false), (10, true), (20, true), (21, false)] {
            assert_eq!(proofs.chain(evidence(1), at(wall)), is_valid.then(|| leaf.clone()), "{wall}");
        }
        assert!(!proofs.has_signature(evidence(1)), "a chain is no signature");
    }
}
