//! The set of local listeners, which may change while a node runs.
//!
//! A change has two steps: [`Listeners::bind`] binds what is new, and may fail; [`Listeners::take`]
//! starts it and stops what is gone, and cannot. Connections that were accepted live on. A socket that was passed
//! listens as long as whoever passed it holds it, so it is kept: to refuse, and to serve again should it be wanted.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::task::{AbortHandle, JoinSet};

use crate::config::{Config, ListenAddress};
use crate::proxy::listener::{Clients, Listener, Serves};
use crate::proxy::local_socket::LocalSocket;
use crate::proxy::outbound::Outbound;
use crate::sockets::Sockets;

/// A configured address, and which of several at it: port 0 may be given many times.
type Slot = (ListenAddress, usize);

/// The listeners that run.
pub(crate) struct Listeners {
    outbound: Arc<Outbound>,
    clients: Clients,
    running: BTreeMap<Slot, Running>,
    tasks: JoinSet<()>,
}

struct Running {
    is_passed: bool,
    serves: Arc<ArcSwapOption<Serves>>,
    task: AbortHandle,
}

/// What a configuration wants: bound, where it does not run already.
pub(crate) struct Bound(BTreeMap<Slot, (Serves, Option<New>)>);

struct New {
    socket: LocalSocket,
    is_passed: bool,
}

impl Listeners {
    /// None yet; all together let in what `clients` let in.
    pub(crate) fn new(outbound: Arc<Outbound>, clients: Clients) -> Self {
        Self { outbound, clients, running: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Binds, or takes from `sockets`, what `config` wants and does not run yet; the first that fails says which key is in the
    /// way, and nothing is left behind.
    pub(crate) async fn bind(&self, config: &Config, sockets: &mut Sockets) -> io::Result<Bound> {
        let mut bound = BTreeMap::new();
        for (address, key, serves) in wanted(config) {
            let same = bound.keys().filter(|(taken, _): &&Slot| *taken == address).count();
            let slot = (address, same);
            let new = match self.running.contains_key(&slot) {
                true => None,
                false => {
                    let is_passed = sockets.has(&slot.0);
                    let socket = LocalSocket::bind(&slot.0, &key, sockets).await;
                    Some(New { socket: socket.map_err(|error| self.explain(error, &slot.0))?, is_passed })
                }
            };
            bound.insert(slot, (serves, new));
        }
        Ok(Bound(bound))
    }

    /// Serves exactly `bound` from now on.
    pub(crate) fn take(&mut self, Bound(bound): Bound) {
        self.running.retain(|slot, running| {
            let is_wanted = bound.contains_key(slot);
            match running.is_passed {
                _ if is_wanted => {}
                true => running.serves.store(None),
                false => running.task.abort(),
            }
            is_wanted || running.is_passed
        });
        for (slot, (serves, new)) in bound {
            if let Some(running) = self.running.get(&slot) {
                running.serves.store(Some(Arc::new(serves)));
            } else if let Some(New { socket, is_passed }) = new {
                let serves = Arc::new(ArcSwapOption::from_pointee(serves));
                let (outbound, clients) = (self.outbound.clone(), self.clients.clone());
                let listener = Listener { socket, serves: serves.clone(), outbound, clients };
                let task = self.tasks.spawn(listener.run());
                self.running.insert(slot, Running { is_passed, serves, task });
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// A wider address on a port of our own cannot be bound before the old one is given up.
    fn explain(&self, error: io::Error, address: &ListenAddress) -> io::Error {
        let port = |address: &ListenAddress| match address {
            ListenAddress::Tcp(address) => Some(address.port()),
            ListenAddress::Unix(_) => None,
        };
        let same = |own: &ListenAddress| port(own).is_some() && port(own) == port(address);
        match self.running.keys().find(|(own, _)| same(own)) {
            Some((own, _)) if error.kind() == io::ErrorKind::AddrInUse => {
                let hint =
                    format!("{error} (this node itself listens on {own}: restart it, or use another port)");
                io::Error::new(error.kind(), hint)
            }
            _ => error,
        }
    }
}

/// Address, key and purpose of each.
fn wanted(config: &Config) -> impl Iterator<Item = (ListenAddress, String, Serves)> {
    let fixed = config.outbounds.iter().enumerate().map(|(index, fixed)| {
        let serves = Serves::Service(fixed.route_name().into(), fixed.timeouts);
        (fixed.listen.clone(), format!("outbound[{index}].listen"), serves)
    });
    let by_name = config
        .http_proxy
        .iter()
        .map(|proxy| (proxy.listen.clone(), "http_proxy.listen".to_owned(), Serves::ByName(proxy.timeouts)));
    fixed.chain(by_name)
}
