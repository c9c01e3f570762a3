//! PURE: the PROXY protocol, version 2 (HAProxy's `proxy-protocol.txt`): what a TCP workload that asks
//! for it hears of its caller before the caller's first byte.
//!
//! The source is the caller's node as its packets come; the destination is the workload's own address,
//! where a caller without a mesh would have connected. An identity says more than an address, so the
//! caller's SPIFFE ID follows as a type-length-value of type `0xE0`, the first of those that
//! applications may choose. `PP2_TYPE_AUTHORITY` would be wrong for it: that is whom the caller asked
//! for, and not who it is.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use starling_gossip::identity::SpiffeId;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2 in the high half; the command in the low one.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// Address family in the high half; a stream in the low one.
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The caller's SPIFFE ID; nginx has it as `$proxy_protocol_tlv_0xe0`.
const SPIFFE_ID: u8 = 0xE0;

/// Begins a connection of the node's own, such as a probe: there is no caller.
pub(crate) const FOR_PROBE: [u8; 16] = {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = SIGNATURE;
    [a, b, c, d, e, f, g, h, i, j, k, l, LOCAL, UNSPECIFIED, 0, 0]
};

/// Begins a connection for the caller `peer`, whose packets come `from` there, `to` the workload's
/// address; `None` where that is no IP address, and is written as all zeros.
pub(crate) fn header(peer: &SpiffeId, from: SocketAddr, to: Option<SocketAddr>) -> Vec<u8> {
    let (family, addresses) = addresses(from, to);
    let id = peer.as_str().as_bytes();
    // A SPIFFE ID has 2048 bytes at most (SPIFFE-ID, section 2.3).
    let id_bytes = u16::try_from(id.len()).unwrap_or(u16::MAX);
    let id = &id[..usize::from(id_bytes)];
    let value = [&[SPIFFE_ID], &id_bytes.to_be_bytes()[..], id].concat();
    let bytes = u16::try_from(addresses.len() + value.len()).unwrap_or(u16::MAX);
    [&SIGNATURE[..], &[PROXY, family], &bytes.to_be_bytes(), &addresses, &value].concat()
}

/// Both addresses, then both ports. Two families meet as IPv6, which holds IPv4 (RFC 4291, section
/// 2.5.5.2).
fn addresses(from: SocketAddr, to: Option<SocketAddr>) -> (u8, Vec<u8>) {
    let ports = [from.port().to_be_bytes(), to.map_or(0, |to| to.port()).to_be_bytes()].concat();
    match (from.ip().to_canonical(), to.map(|to| to.ip().to_canonical())) {
        (IpAddr::V4(from), Some(IpAddr::V4(to))) => {
            (TCP_OVER_IPV4, [&from.octets()[..], &to.octets(), &ports].concat())
        }
        (IpAddr::V4(from), None) => (TCP_OVER_IPV4, [&from.octets()[..], &[0; 4], &ports].concat()),
        (from, to) => {
            let to = to.map_or(Ipv6Addr::UNSPECIFIED, in_ipv6);
            (TCP_OVER_IPV6, [&in_ipv6(from).octets()[..], &to.octets(), &ports].concat())
        }
    }
}

fn in_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader of its own, for every header that there can be.
    struct Read {
        from: SocketAddr,
        to: SocketAddr,
        id: String,
    }

    fn read(bytes: &[u8]) -> Read {
        let (head, rest) = bytes.split_at(16);
        assert_eq!(&head[..13], b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21");
        assert_eq!(usize::from(u16::from_be_bytes([head[14], head[15]])), rest.len());
        let ip_bytes = match head[13] {
            0x11 => 4,
            0x21 => 16,
            other => panic!("family {other:#x}"),
        };
        let ip = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
            Ok(bytes) => IpAddr::from(bytes),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).expect("an IPv6 address")),
        };
        let (addresses, value) = rest.split_at(2 * ip_bytes + 4);
        let (from, to, ports) =
            (&addresses[..ip_bytes], &addresses[ip_bytes..2 * ip_bytes], &addresses[2 * ip_bytes..]);
        assert_eq!(
            (value[0], usize::from(u16::from_be_bytes([value[1], value[2]]))),
            (0xE0, value.len() - 3)
        );
        Read {
            from: SocketAddr::new(ip(from), u16::from_be_bytes([ports[0], ports[1]])),
            to: SocketAddr::new(ip(to), u16::from_be_bytes([ports[2], ports[3]])),
            id: String::from_utf8(value[3..].to_vec()).expect("text"),
        }
    }

    #[test]
    fn a_reader_gets_what_was_written() {
        let addresses = ["10.0.0.7:4711", "[2001:db8::7]:1", "[::ffff:10.0.0.7]:65535", "0.0.0.0:0"];
        let addresses = addresses.map(|text| text.parse::<SocketAddr>().expect(text));
        for text in ["spiffe://a/b", "spiffe://acme/ns/shop/sa/cart"] {
            let peer: SpiffeId = text.parse().expect(text);
            for from in addresses {
                for to in addresses.into_iter().map(Some).chain([None]) {
                    let read = read(&header(&peer, from, to));
                    assert_eq!(read.id, text);
                    assert_eq!(read.from.ip().to_canonical(), from.ip().to_canonical());
                    assert_eq!(read.from.port(), from.port());
                    let to = to.unwrap_or(SocketAddr::new(read.to.ip(), 0));
                    assert_eq!(read.to.ip().to_canonical(), to.ip().to_canonical());
                    assert_eq!(read.to.port(), to.port());
                    assert_eq!(read.from.is_ipv4(), read.to.is_ipv4());
                }
            }
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let peer = "spiffe://a/b".parse().expect("an identity");
        let to = "127.0.0.1:80".parse().ok();
        let header = header(&peer, "10.0.0.7:4711".parse().expect("an address"), to);
        let expected =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1b\x0a\0\0\x07\x7f\0\0\x01\x12\x67\0\x50\xe0\0\x0cspiffe://a/b";
        assert_eq!(header, expected);
        assert_eq!(FOR_PROBE, *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }
}
