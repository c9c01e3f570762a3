//! Asks a silent peer's host whether anybody listens there still.
//!
//! A process that was killed says nothing, but its host does: it answers what comes for a port that nobody
//! has with an ICMP message (RFC 1122, section 4.1.3.1). QUIC's own socket hears none, for it is connected
//! to nobody; so this is a socket of its own. Such a word can be forged, so it counts only against a peer
//! that answers nothing itself, and only after a while.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// No QUIC packet begins so (RFC 9000, section 17.3.1): whoever does listen throws it away.
const NOTHING: &[u8] = &[0];

/// A socket that hears what a peer's host says.
pub(crate) struct Knock(UdpSocket);

impl Knock {
    /// `None` if this node has no socket for it.
    pub(crate) fn at(peer: SocketAddr) -> Option<Self> {
        let from: SocketAddr = match peer {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(from).ok()?;
        socket.set_nonblocking(true).ok()?;
        socket.connect(peer).ok()?;
        Some(Self(socket))
    }

    /// Asks once more; says whether the host has refused since it was asked last.
    pub(crate) fn ask(&self) -> bool {
        let refused = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
        let heard = self.0.take_error().ok().flatten();
        let sent = self.0.send(NOTHING);
        heard.as_ref().is_some_and(refused) || sent.as_ref().is_err_and(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(knock: &Knock) -> bool {
        (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(2));
            knock.ask()
        })
    }

    #[test]
    fn a_port_that_nobody_has_refuses_and_one_that_nobody_reads_does_not() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(peer) = UdpSocket::bind(host) else { continue };
            let knock = Knock::at(peer.local_addr().expect("an address")).expect("a socket");
            assert!(!refuses(&knock), "{host}");
            drop(peer);
            assert!(refuses(&knock), "{host}");
        }
    }
}
