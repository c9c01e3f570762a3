//! A way of known length in front of a node: every datagram between it and another node takes as
//! long as the simulated network says.
//!
//! Loopback itself takes what the processors have left, which nobody can tell a simulator
//! beforehand. With this, both sides are told the same, and the rest is small beside it. The order
//! of datagrams is kept: QUIC takes much disorder for loss, and slows down.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::apart;

/// The longest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Datagrams on one way at once; more are lost, as in any queue.
const ON_THE_WAY_MAX: usize = 1024;

/// Where a node listens, and where others find it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its own socket's address.
    pub listens: SocketAddr,
    /// Its relay's.
    pub found: SocketAddr,
}

/// Relays to node `index` of `places` for as long as the runtime lives.
pub async fn start(places: Arc<[Place]>, index: usize) {
    let socket = UdpSocket::bind(places[index].found).await.expect("an address of the test's own");
    tokio::spawn(relay(Arc::new(socket), places, index));
}

async fn relay(socket: Arc<UdpSocket>, places: Arc<[Place]>, index: usize) {
    let node = places[index].listens;
    let mut towards = BTreeMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is of an earlier datagram, to a node that has ended.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(other) = places.iter().position(|place| place.listens == peer) else { continue };
        let there = match towards.get(&other).cloned() {
            Some(there) => there,
            None => {
                // A socket for each peer, so that answers find back.
                let own = Arc::new(UdpSocket::bind((node.ip(), 0)).await.expect("a port"));
                tokio::spawn(answer(own.clone(), way(socket.clone(), peer, apart(index, other))));
                let there = way(own, node, apart(index, other));
                towards.insert(other, there.clone());
                there
            }
        };
        let _ = there.try_send((Clock::System.now(), buffer[..length].to_vec()));
    }
}

/// Carries what the node says to a peer.
async fn answer(from: Arc<UdpSocket>, back: Way) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok(length) = from.recv(&mut buffer).await else { continue };
        let _ = back.try_send((Clock::System.now(), buffer[..length].to_vec()));
    }
}

/// One direction between two nodes: when a datagram was sent, and what it is.
type Way = mpsc::Sender<(Instant, Vec<u8>)>;

/// Sends from `socket` to `to` whatever is put in, so much later.
fn way(socket: Arc<UdpSocket>, to: SocketAddr, takes: Duration) -> Way {
    let (begin, mut end) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY_MAX);
    tokio::spawn(async move {
        while let Some((sent, datagram)) = end.recv().await {
            tokio::time::sleep_until(sent + takes).await;
            let _ = socket.send_to(&datagram, to).await;
        }
    });
    begin
}
