//! The table of open connections, by the peer's address and identity.
//!
//! When both ends dialled at once there are two connections between the same pair. Both ends
//! order them by the same secret of the two handshakes, so both send new streams to the same one,
//! the winner; the loser goes when it is idle. A table only: it dials nothing and waits for
//! nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use starling_gossip::identity::SpiffeId;

use crate::admission::{Occupancy, source};
use crate::connection::{Connection, SUPERSEDED};
use crate::silence::Doubt;
use crate::verify::Expected;

/// All open connections.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    by_address: BTreeMap<SocketAddr, Vec<Connection>>,
    connections: usize,
    accepted: usize,
}

impl Registry {
    pub(crate) fn insert(&mut self, connection: Connection) {
        let address = connection.peer().address;
        self.connections += 1;
        self.accepted += usize::from(connection.is_accepted());
        self.by_address.entry(address).or_default().push(connection);
        self.judge(address);
    }

    pub(crate) fn remove(&mut self, connection: &Connection) {
        let address = connection.peer().address;
        let Some(list) = self.by_address.get_mut(&address) else { return };
        let before = list.len();
        list.retain(|other| !other.is_same(connection));
        let removed = before - list.len();
        self.connections -= removed;
        self.accepted -= if connection.is_accepted() { removed } else { 0 };
        if list.is_empty() {
            self.by_address.remove(&address);
        } else {
            self.judge(address);
        }
    }

    /// The best usable connection to `address` that proved what is expected; as `local`, if given.
    pub(crate) fn usable(
        &self,
        address: SocketAddr,
        expected: &Expected,
        local: Option<&SpiffeId>,
    ) -> Option<Connection> {
        self.by_address
            .get(&address)?
            .iter()
            .filter(|one| one.is_usable())
            .filter(|one| local.is_none_or(|local| one.local() == local))
            .filter(|one| match expected {
                Expected::Anybody => true,
                Expected::Exactly(id) => one.peer().id == *id,
            })
            .min_by_key(|one| one.precedence())
            .cloned()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections
    }

    /// What is taken: by all, by the source of `ip`, and by `identity` once it is known.
    pub(crate) fn occupancy(&self, ip: IpAddr, identity: Option<&SpiffeId>) -> Occupancy {
        let of_identity =
            |id: &SpiffeId| self.iter().filter(|one| one.is_accepted() && one.peer().id == *id).count();
        Occupancy {
            connections: self.connections,
            accepted: self.accepted,
            from_source: self.by_address.range(source(ip)).map(|(_, list)| list.len()).sum(),
            of_identity: identity.map_or(0, of_identity),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.by_address.values().flatten()
    }

    /// `silent` has fallen silent: who else is connected to the same process must show that it lives.
    pub(crate) fn doubt_others(&self, silent: &Connection, doubt: Doubt) {
        let peer = silent.peer();
        let others = self.by_address.get(&peer.address).into_iter().flatten();
        for other in others.filter(|other| other.peer().id == peer.id && !other.is_same(silent)) {
            other.doubt(doubt);
        }
    }

    /// Says of each connection to `address` whether there is a better one for the same pair.
    pub(crate) fn judge(&self, address: SocketAddr) {
        let Some(list) = self.by_address.get(&address) else { return };
        for one in list {
            let superseded = list.iter().any(|other| {
                other.local() == one.local()
                    && other.peer().id == one.peer().id
                    && other.is_usable()
                    && other.precedence() < one.precedence()
            });
            one.mark(SUPERSEDED, superseded);
        }
    }
}
