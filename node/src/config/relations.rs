//! What is wrong only in company: listeners that meet, a workload that is its own caller.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::Config;
use super::address::{Host, WorkloadAddress};
use super::listen::ListenAddress;
use super::section::{Report, Section};

/// The addresses that the sections claim, gathered while they are read: a claim counts even when
/// something else in its section is wrong.
#[derive(Clone, Default)]
pub(super) struct Claims {
    datagram: Option<Listener>,
    streams: Vec<Listener>,
    sockets: Vec<UnixListener>,
    workloads: Vec<(String, WorkloadAddress)>,
}

const LISTENS_ON: &str = "write the address that the workload itself listens on";

/// One address this node binds, and the key that says so.
#[derive(Clone)]
struct Listener {
    key: String,
    address: SocketAddr,
}

/// One Unix socket this node binds, and the key that says so.
#[derive(Clone)]
struct UnixListener {
    key: String,
    path: PathBuf,
}

/// The admin API's socket, whose every caller is the owner.
const ADMIN_SOCKET: &str = "admin.socket";

impl Claims {
    /// The listeners of a configuration that is known to be right.
    pub(super) fn of_listeners(config: &Config) -> Self {
        let mut claims = Self::default();
        claims.add("admin.listen".to_owned(), &config.admin.listen.into());
        for path in config.admin.socket.iter().cloned() {
            claims.add(ADMIN_SOCKET.to_owned(), &ListenAddress::Unix(path));
        }
        if let Some(proxy) = &config.http_proxy {
            claims.add("http_proxy.listen".to_owned(), &proxy.listen);
        }
        for (index, one) in config.outbounds.iter().enumerate() {
            claims.add(format!("outbound[{index}].listen"), &one.listen);
        }
        claims
    }

    /// All claims of a configuration, for one that was put together from two.
    pub(super) fn of_config(config: &Config) -> Self {
        let services = config.services.iter().enumerate();
        Self {
            datagram: Some(Listener { key: "node.listen".to_owned(), address: config.node.listen }),
            workloads: services
                .map(|(index, one)| (format!("service[{index}].address"), one.address.clone()))
                .collect(),
            ..Self::of_listeners(config)
        }
    }

    /// The node's own UDP port.
    pub(super) fn datagrams(&mut self, section: &Section<'_>, address: SocketAddr) {
        self.datagram = Listener::new(section, address);
    }

    /// A TCP port.
    pub(super) fn streams(&mut self, section: &Section<'_>, address: SocketAddr) {
        self.streams.extend(Listener::new(section, address));
    }

    /// A TCP port or a Unix socket, at `listen`.
    pub(super) fn local(&mut self, section: &Section<'_>, address: &ListenAddress) {
        let key = section.path_of("listen");
        if !section.report().has_mistake_at(&key) {
            self.add(key, address);
        }
    }

    /// The admin API's socket.
    pub(super) fn socket(&mut self, section: &Section<'_>, path: &Path) {
        self.add(section.path_of("socket"), &ListenAddress::Unix(path.to_owned()));
    }

    fn add(&mut self, key: String, address: &ListenAddress) {
        match address.clone() {
            ListenAddress::Tcp(address) => self.streams.push(Listener { key, address }),
            ListenAddress::Unix(path) => self.sockets.push(UnixListener { key, path }),
        }
    }

    /// A workload to be called.
    pub(super) fn workload(&mut self, section: &Section<'_>, address: &WorkloadAddress) {
        self.workloads.push((section.path_of("address"), address.clone()));
    }

    /// Reports every claim that another one contradicts.
    pub(super) fn check(&self, report: &Report) {
        // In the file's order, the node's own first: the later one is said to meet the earlier.
        let mut streams: Vec<&Listener> = self.streams.iter().collect();
        streams.sort_by_key(|listener| report.sources.place(&listener.key));
        let listeners: Vec<&Listener> = self.datagram.iter().chain(streams).collect();
        for (index, listener) in listeners.iter().enumerate() {
            if let Some(earlier) = listeners[..index].iter().find(|earlier| overlap(earlier, listener)) {
                let problem =
                    format!("{} is taken by {} ({})", listener.address, earlier.key, earlier.address);
                report.add(&listener.key, problem, "give each listener a port of its own");
            }
        }
        let mut sockets: Vec<&UnixListener> = self.sockets.iter().collect();
        sockets.sort_by_key(|socket| report.sources.place(&socket.key));
        for (index, socket) in sockets.iter().enumerate() {
            if let Some(earlier) = sockets[..index].iter().find(|earlier| earlier.path == socket.path) {
                let problem = format!("{} is taken by {}", socket.path.display(), earlier.key);
                report.add(&socket.key, problem, "give each listener a socket of its own");
            }
        }
        self.check_workloads(report);
    }

    /// Reports every workload that is one of this node's own listeners.
    pub(super) fn check_workloads(&self, report: &Report) {
        for (key, workload) in &self.workloads {
            // A workload may use the number of the node's UDP port over TCP.
            if let Some(own) = self.streams.iter().find(|own| leads_to(workload, own)) {
                let problem = format!("{workload} is this node's own {}: calls would go in circles", own.key);
                report.add(key, problem, LISTENS_ON);
            }
            if let WorkloadAddress::Unix(path) = workload
                && let Some(own) = self.sockets.iter().find(|own| own.path == *path)
            {
                let what = match own.key.as_str() {
                    ADMIN_SOCKET => "every caller would be its owner",
                    _ => "calls would go in circles",
                };
                let problem = format!("{workload} is this node's own {}: {what}", own.key);
                report.add(key, problem, LISTENS_ON);
            }
        }
    }
}

impl Listener {
    /// `None` when the address is a default standing in for a mistake.
    fn new(section: &Section<'_>, address: SocketAddr) -> Option<Self> {
        let key = section.path_of("listen");
        (!section.report().has_mistake_at(&key)).then_some(Self { key, address })
    }
}

/// Whether both would bind the same port. The node's UDP port counts as well: one number for two
/// purposes is a slip of the pen, even where the kernel would allow it.
fn overlap(one: &Listener, other: &Listener) -> bool {
    let (a, b) = (one.address, other.address);
    // Linux binds `[::]` for IPv4 too.
    let covers = |wide: IpAddr, narrow: IpAddr| {
        wide == Ipv6Addr::UNSPECIFIED || (wide.is_unspecified() && wide.is_ipv4() == narrow.is_ipv4())
    };
    a.port() != 0
        && a.port() == b.port()
        && (a.ip() == b.ip() || covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
}

/// Whether a call of the workload would reach the listener. Names other than `localhost` are left
/// to time: what they resolve to may change.
fn leads_to(workload: &WorkloadAddress, listener: &Listener) -> bool {
    let Some(workload) = workload.host_port() else { return false };
    let bound = listener.address.ip();
    let same_host = match &workload.host {
        Host::Ip(ip) => *ip == bound || (bound.is_unspecified() && ip.is_loopback()),
        Host::Name(name) => name == "localhost" && (bound.is_loopback() || bound.is_unspecified()),
    };
    workload.port == listener.address.port() && same_host
}
