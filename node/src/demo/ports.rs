//! Free ports on loopback, chosen together.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use super::plan::Addresses;

/// Nodes whose ports may turn out unfit; one in ten thousand does.
const UNFIT_MAX: usize = 4;

/// One node's addresses, held by sockets so that nobody else gets them.
struct Held {
    addresses: Addresses,
    _udp: UdpSocket,
    _tcp: [TcpListener; 3],
}

/// Addresses for `nodes`, all different. They are free when this returns, and another program may
/// be faster to take one. They are not held until their node starts, because a child has copies of
/// all sockets until its `exec` is over, and would hold an address against its owner.
pub(super) fn free_addresses(nodes: usize) -> io::Result<Vec<Addresses>> {
    let held: Result<Vec<Held>, _> = (0..nodes + UNFIT_MAX).map(|_| hold()).collect();
    let held = held?;
    let all = held.iter().map(|held| held.addresses);
    let fit: Vec<Addresses> = all.filter(numbers_differ).take(nodes).collect();
    if fit.len() < nodes {
        return Err(io::Error::other("the same numbers are free for UDP and TCP"));
    }
    Ok(fit)
}

/// A node does not take one number for UDP and for TCP, although the kernel gives it.
fn numbers_differ(addresses: &Addresses) -> bool {
    let Addresses { listen, admin, http_proxy, workload } = addresses;
    [admin, http_proxy, workload].iter().all(|tcp| tcp.port() != listen.port())
}

fn hold() -> io::Result<Held> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let udp = UdpSocket::bind(any)?;
    let tcp = [TcpListener::bind(any)?, TcpListener::bind(any)?, TcpListener::bind(any)?];
    let [admin, http_proxy, workload] = &tcp;
    let addresses = Addresses {
        listen: udp.local_addr()?,
        admin: admin.local_addr()?,
        http_proxy: http_proxy.local_addr()?,
        workload: workload.local_addr()?,
    };
    Ok(Held { addresses, _udp: udp, _tcp: tcp })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_address_is_given_twice() {
        let all = free_addresses(20).expect("free ports");
        let tcp = all.iter().flat_map(|at| [at.admin, at.http_proxy, at.workload]);
        assert_eq!(tcp.collect::<BTreeSet<_>>().len(), 60);
        assert_eq!(all.iter().map(|at| at.listen).collect::<BTreeSet<_>>().len(), 20);
    }
}
