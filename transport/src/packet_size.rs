//! How large packets may be: what the first link of the way to a peer carries.
//!
//! QUIC begins with packets of 1,200 bytes and probes for more (RFC 8899); how far it should, it cannot know.
//! The kernel does, for the route's first link. Where that carries jumbo frames, or is the loopback interface, a packet
//! costs a fraction per byte: sealing, headers and acknowledgements are paid by the packet. Links behind the first
//! are found out by the probes, which cost what is lost and no connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use quinn::MtuDiscoveryConfig;
use rustix::net::sockopt;

use crate::dial::canonical;

/// quinn hands the kernel up to ten packets at a time, which together must fit one UDP payload (64 KiB less an IPv4 and
/// a UDP header): what does not would be lost without a word. So a jumbo frame of 9,000 bytes is not filled.
pub(crate) const PAYLOAD_BYTES_MAX: u16 = 65_507 / 10;

/// The payload of an Ethernet frame over IPv6: quinn's own choice. What differs from it by less than a tunnel's header
/// is left at it.
const ETHERNET_PAYLOAD_BYTES: u16 = 1_452;
const TUNNEL_BYTES: u16 = 100;

/// UDP's header, and IP's.
const UDP_HEADER_BYTES: u32 = 8;
const IPV4_HEADER_BYTES: u32 = 20;
const IPV6_HEADER_BYTES: u32 = 40;

/// How far to probe on the way to `peer`.
pub(crate) fn discovery(peer: SocketAddr) -> MtuDiscoveryConfig {
    let upper_bound = first_link(canonical(peer)).unwrap_or(ETHERNET_PAYLOAD_BYTES);
    let mut config = MtuDiscoveryConfig::default();
    config.upper_bound(upper_bound);
    config
}

/// The payload that the first link towards `peer` carries, if it is more than Ethernet's; `None` where the kernel
/// knows no route.
fn first_link(peer: SocketAddr) -> Option<u16> {
    let any: IpAddr =
        if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Sends nothing: the kernel looks up the route.
    socket.connect(peer).ok()?;
    let (link, headers) = if peer.is_ipv4() {
        (sockopt::ip_mtu(&socket).ok()?, IPV4_HEADER_BYTES + UDP_HEADER_BYTES)
    } else {
        (sockopt::ipv6_mtu(&socket).ok()?, IPV6_HEADER_BYTES + UDP_HEADER_BYTES)
    };
    let payload = u16::try_from(link.saturating_sub(headers)).unwrap_or(u16::MAX);
    (payload > ETHERNET_PAYLOAD_BYTES + TUNNEL_BYTES).then_some(payload.min(PAYLOAD_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_carries_more_than_ethernet() {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 7400));
        assert_eq!(first_link(loopback), Some(PAYLOAD_BYTES_MAX));
    }
}
