//! PURE: who may connect, by counting those who are connected already.
//!
//! Before a handshake only the source address is known, after it the identity as well. What peers
//! take leaves room for what this node dials itself. It neither looks connections up nor closes
//! them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;

use crate::limits::{
    ACCEPTED_PER_IDENTITY_MAX, CONNECTIONS_ACCEPTED_MAX, CONNECTIONS_MAX, CONNECTIONS_PER_SOURCE_MAX,
    HALF_OPEN_MAX, HALF_OPEN_PER_SOURCE_MAX, HALF_OPEN_UNPROVED_MAX,
};

/// What to do with somebody's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Shake hands.
    Accept,
    /// Have it prove its address first (RFC 9000, section 8.1.2).
    Retry,
    /// Say no.
    Refuse,
}

/// Who is connected already, when somebody knocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Occupancy {
    /// Connections, whoever dialled them.
    pub(crate) connections: usize,
    /// Those of them that peers dialled.
    pub(crate) accepted: usize,
    /// Those with the source, whoever dialled them.
    pub(crate) from_source: usize,
    /// Those accepted of the peer's identity; none count before it is known.
    pub(crate) of_identity: usize,
}

/// Handshakes under way, when somebody knocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HalfOpen {
    /// From anybody.
    pub(crate) all: usize,
    /// From the source, by those who have proved that they receive there.
    pub(crate) from_source: usize,
}

/// Decides about a first packet, by counts only.
pub(crate) fn admit(half_open: HalfOpen, occupancy: Occupancy, proved: bool) -> Admission {
    let source_is_full = proved && half_open.from_source >= HALF_OPEN_PER_SOURCE_MAX;
    if half_open.all >= HALF_OPEN_MAX || source_is_full || !has_room(occupancy) {
        Admission::Refuse
    } else if half_open.all >= HALF_OPEN_UNPROVED_MAX && !proved {
        Admission::Retry
    } else {
        Admission::Accept
    }
}

/// Whether a peer may have one more.
pub(crate) fn has_room(occupancy: Occupancy) -> bool {
    occupancy.connections < CONNECTIONS_MAX
        && occupancy.accepted < CONNECTIONS_ACCEPTED_MAX
        && occupancy.from_source < CONNECTIONS_PER_SOURCE_MAX
        && occupancy.of_identity < ACCEPTED_PER_IDENTITY_MAX
}

/// Whether this node may dial one more.
pub(crate) fn may_dial(connections: usize) -> bool {
    connections < CONNECTIONS_MAX
}

/// The addresses that count as one source: an IPv4 address, or a /64 of IPv6, which is what one
/// host is given (RFC 6177) and within which it may take any address.
pub(crate) fn source(ip: IpAddr) -> RangeInclusive<SocketAddr> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), 0)..=SocketAddr::new(ip.into(), u16::MAX),
        IpAddr::V6(ip) => {
            let first = Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX));
            let last = Ipv6Addr::from_bits(ip.to_bits() | u128::from(u64::MAX));
            SocketAddrV6::new(first, 0, 0, 0).into()
                ..=SocketAddrV6::new(last, u16::MAX, u32::MAX, u32::MAX).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Occupancy = Occupancy { connections: 0, accepted: 0, from_source: 0, of_identity: 0 };
    const FULL: [Occupancy; 4] = [
        Occupancy { connections: CONNECTIONS_MAX, ..FREE },
        Occupancy { accepted: CONNECTIONS_ACCEPTED_MAX, ..FREE },
        Occupancy { from_source: CONNECTIONS_PER_SOURCE_MAX, ..FREE },
        Occupancy { of_identity: ACCEPTED_PER_IDENTITY_MAX, ..FREE },
    ];

    #[test]
    fn many_strangers_must_prove_their_address_and_too_many_are_refused() {
        let all = |all| HalfOpen { all, from_source: 0 };
        assert_eq!(admit(all(0), FREE, false), Admission::Accept);
        assert_eq!(admit(all(HALF_OPEN_UNPROVED_MAX), FREE, false), Admission::Retry);
        assert_eq!(admit(all(HALF_OPEN_UNPROVED_MAX), FREE, true), Admission::Accept);
        assert_eq!(admit(all(HALF_OPEN_MAX), FREE, true), Admission::Refuse);
        for full in FULL {
            assert_eq!(admit(all(0), full, true), Admission::Refuse, "{full:?}");
        }
    }

    #[test]
    fn one_source_begins_no_more_than_its_share_and_nobody_speaks_for_it() {
        let share = HalfOpen { all: HALF_OPEN_PER_SOURCE_MAX, from_source: HALF_OPEN_PER_SOURCE_MAX };
        assert_eq!(admit(share, FREE, true), Admission::Refuse);
        assert_eq!(admit(share, FREE, false), Admission::Retry, "it may be somebody else's packet");
        assert_eq!(admit(HalfOpen { from_source: 0, ..share }, FREE, true), Admission::Accept);
        const { assert!(HALF_OPEN_PER_SOURCE_MAX <= HALF_OPEN_MAX / 4) };
    }

    #[test]
    fn the_last_place_is_taken_and_no_further_one() {
        let last = Occupancy {
            connections: CONNECTIONS_MAX - 1,
            accepted: CONNECTIONS_ACCEPTED_MAX - 1,
            from_source: CONNECTIONS_PER_SOURCE_MAX - 1,
            of_identity: ACCEPTED_PER_IDENTITY_MAX - 1,
        };
        assert!(has_room(last));
        assert!(FULL.into_iter().all(|full| !has_room(full)));
    }

    #[test]
    fn accepted_connections_leave_room_to_dial() {
        assert!(may_dial(CONNECTIONS_ACCEPTED_MAX));
        assert!(!may_dial(CONNECTIONS_MAX));
        const { assert!(CONNECTIONS_MAX - CONNECTIONS_ACCEPTED_MAX >= crate::limits::DIALS_MAX) };
        const { assert!(ACCEPTED_PER_IDENTITY_MAX < CONNECTIONS_ACCEPTED_MAX) };
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_a_64_of_ipv6() {
        let same = |one: &str, other: &str| {
            let one: IpAddr = one.parse().expect("an address");
            source(one).contains(&other.parse().expect("an address and a port"))
        };
        assert!(same("192.0.2.1", "192.0.2.1:0") && same("192.0.2.1", "192.0.2.1:65535"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1:1"));
        assert!(!same("192.0.2.1", "192.0.2.2:1") && !same("192.0.2.2", "192.0.2.1:65535"));
        assert!(same("2001:db8:0:1::1", "[2001:db8:0:1:ffff:ffff:ffff:ffff]:65535"));
        assert!(same("2001:db8:0:1:9::1", "[2001:db8:0:1::]:0"));
        assert!(same("fe80::1", "[fe80::2%7]:65535"));
        assert!(!same("2001:db8:0:1::1", "[2001:db8:0:2::]:0"));
        assert!(!same("2001:db8:0:1::1", "[2001:db8::ffff:ffff:ffff:ffff]:65535"));
    }
}
