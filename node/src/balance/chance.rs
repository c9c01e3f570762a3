//! A seeded source of chance that needs no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug)]
pub struct Chance(AtomicU64);

impl Chance {
    /// A sequence that depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// 64 random bits.
    pub fn bits(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        mix(self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP))
    }

    /// A fraction of one, each as likely as any other.
    pub fn fraction(&self) -> f64 {
        // As many bits as a fraction holds.
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `bound`; `None` if there is none.
    pub(super) fn below(&self, bound: u32) -> Option<u32> {
        // Multiply and shift (Lemire, 2019); its bias is far below what a balancer could show.
        (bound > 0).then(|| ((u64::from(self.bits() as u32) * u64::from(bound)) >> 32) as u32)
    }
}

/// Each of its bits depends on all of `z`'s.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The same on every node, in every life of it and in every release: FNV-1a, stirred. It keeps nobody from
/// making names that meet; who does that meets only themselves.
pub(crate) fn stable_hash(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xCBF2_9CE4_8422_2325;
    for part in parts {
        // What ends a part, so that "a", "bc" is not "ab", "c".
        for byte in part.iter().chain(&[0xFF]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }
    mix(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_what_they_were_in_the_release_before() {
        assert_eq!(stable_hash(&[]), mix(0xCBF2_9CE4_8422_2325));
        assert_ne!(stable_hash(&[b"a", b"bc"]), stable_hash(&[b"ab", b"c"]));
        assert_eq!(stable_hash(&[b"web-1"]), stable_hash(&[b"web-1"]));
    }
}
