//! Free ports on loopback, kept until their owner starts.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use super::plan::Addresses;

/// One node's addresses. The sockets hold them against each other and against everybody else;
/// dropping them leaves the addresses to the node.
pub(super) struct Reserved {
    /// What is held.
    pub(super) addresses: Addresses,
    _udp: UdpSocket,
    _tcp: [TcpListener; 3],
}

impl Reserved {
    /// Whatever is free.
    pub(super) fn new() -> io::Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let udp = UdpSocket::bind(any)?;
        let [admin, http_proxy, workload] =
            [TcpListener::bind(any)?, TcpListener::bind(any)?, TcpListener::bind(any)?];
        let addresses = Addresses {
            listen: udp.local_addr()?,
            admin: admin.local_addr()?,
            http_proxy: http_proxy.local_addr()?,
            workload: workload.local_addr()?,
        };
        Ok(Self { addresses, _udp: udp, _tcp: [admin, http_proxy, workload] })
    }
}
