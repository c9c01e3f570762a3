//! The versions of everything that crosses the wire, in one place.
//!
//! | what | where it says its version | version | since |
//! |---|---|---|---|
//! | a connection | ALPN in TLS, `starling/1` | 1 | 0.1 |
//! | a stream's header, and its answer | first byte | 1 | 0.1 |
//! | a message between sidecars (`node::messages`) | its stream's kind, 19 and 20 | 1 | 0.2 |
//! | a sealed record | first byte, signed with the rest | 1 | 0.1 |
//! | a renewal, and where records are filed | the key: `l`, `n`, `i/…` | | 0.1 |
//! | a gossip message | third byte, after the magic | 1 | 0.2 |
//! | the same, of the repair path, unpacked | third byte, chitchat's | 0 | 0.1 |
//! | that a node speaks the former | `talk/1` among the capabilities of its node record | 1 | 0.2 |
//!
//! **How one changes.** Nothing that a version defines ever changes: what it reads is read by all later
//! programs, as `tests/fixtures` holds. A field added, dropped or reordered, or a value appended to an
//! enumeration, is a new version. It takes two releases: the first *reads* it ([`Versions::newest`])
//! and still writes the one before ([`Versions::written`]), the second writes it. So a mesh may hold
//! any two releases that follow one another, and whatever is passed on unread (maps of gossip are) is
//! read by whoever can. A node that finds a member without `talk/1` gossips with everybody as 0.1 did, for as long as
//! that member is there.
//!
//! **What an old node does with it.** A record of a newer version is passed on and not used
//! (`unreadable`); a stream is answered `UnsupportedVersion`, one of a newer kind `UnsupportedKind`, and
//! the connection lives (requests to such a node go in HTTP from then on, until its next life); an unknown key in a map is passed on and not used; an unknown capability in a node
//! record is ignored. A newer refusal reason makes its answer malformed, which counts as a refusal.

use std::fmt;

/// The versions of one format that this program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest it reads.
    pub oldest: u8,
    /// The newest it reads.
    pub newest: u8,
    /// The one it writes: of the versions it reads, one that the release before reads too.
    pub written: u8,
}

/// What a node says of itself that takes part in talks (`talk`) and whose map counts as its records do.
pub const TALK_CAPABILITY: &str = "talk/1";

/// Of sealed records ([`crate::signature`]). 1: the first.
pub const RECORD: Versions = Versions { oldest: 1, newest: 1, written: 1 };

/// Of stream headers and answers (`transport::header`). 1: the first.
pub const STREAM: Versions = Versions { oldest: 1, newest: 1, written: 1 };

impl Versions {
    /// Whether `version` is one of them.
    pub const fn read(self, version: u8) -> bool {
        self.oldest <= version && version <= self.newest
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "{}", self.newest)
        } else {
            write!(f, "{} to {}", self.oldest, self.newest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_neighbours_are_told_apart() {
        for versions in [RECORD, STREAM] {
            assert!(versions.read(versions.written));
            assert!(
                versions.newest - versions.written <= 1,
                "a version is written one release after it is read"
            );
        }
        let two = Versions { oldest: 3, newest: 4, written: 3 };
        assert_eq!([2, 3, 4, 5].map(|version| two.read(version)), [false, true, true, false]);
        assert_eq!((two.to_string(), RECORD.to_string()), ("3 to 4".to_owned(), "1".to_owned()));
    }
}
