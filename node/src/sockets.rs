//! Where a node's listening sockets come from: whoever started the process passes them bound
//! (`LISTEN_FDS`, sd_listen_fds(3)), or the node binds them itself.
//!
//! A passed socket outlives the process: while one is replaced by the next, new connections wait in
//! the kernel. It is used for the configured listener with the same address and nothing else; what
//! nothing is configured for is an error, for somebody would wait behind it for ever.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use crate::config::ListenAddress;

/// Sockets that were passed and not taken yet, and what has been asked for.
#[derive(Default)]
pub struct Sockets {
    passed: Vec<(String, Passed)>,
    asked: Vec<String>,
}

enum Passed {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Unix(UnixListener),
}

impl Sockets {
    /// What this process was passed. Takes the variables that say so away: they are not for
    /// processes that this one starts. Call it before there are other threads.
    pub fn from_environment() -> anyhow::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut descriptors = ListenFd::from_env();
        let mut passed = Vec::new();
        for index in 0..descriptors.len() {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("without a name");
            let name = format!("number {} ({name})", index + 1);
            let socket = take(&mut descriptors, index).with_context(|| {
                format!("LISTEN_FDS: socket {name} is neither a TCP or Unix listener nor a UDP socket")
            })?;
            passed.push((name, socket));
        }
        Ok(Self { passed, asked: Vec::new() })
    }

    /// Whether a listener for `address` was passed, and nothing has taken it.
    pub(crate) fn has(&self, address: &ListenAddress) -> bool {
        self.passed.iter().any(|(_, socket)| match (socket, address) {
            (Passed::Tcp(it), ListenAddress::Tcp(address)) => it.local_addr().ok() == Some(*address),
            (Passed::Unix(it), ListenAddress::Unix(path)) => path_of(it).as_ref() == Some(path),
            _ => false,
        })
    }

    /// The TCP listener for `address`, which the configuration's `key` asks for.
    pub(crate) fn tcp(&mut self, address: SocketAddr, key: &str) -> Option<TcpListener> {
        self.asked.push(format!("{key} = TCP {address}"));
        match self
            .take(|socket| matches!(socket, Passed::Tcp(it) if it.local_addr().ok() == Some(address)))?
        {
            Passed::Tcp(listener) => Some(listener),
            _ => None,
        }
    }

    /// The UDP socket for `address`.
    pub(crate) fn udp(&mut self, address: SocketAddr, key: &str) -> Option<UdpSocket> {
        self.asked.push(format!("{key} = UDP {address}"));
        match self
            .take(|socket| matches!(socket, Passed::Udp(it) if it.local_addr().ok() == Some(address)))?
        {
            Passed::Udp(socket) => Some(socket),
            _ => None,
        }
    }

    /// The Unix listener at `path`.
    pub(crate) fn unix(&mut self, path: &Path, key: &str) -> Option<UnixListener> {
        self.asked.push(format!("{key} = {}", path.display()));
        match self
            .take(|socket| matches!(socket, Passed::Unix(it) if path_of(it).as_deref() == Some(path)))?
        {
            Passed::Unix(listener) => Some(listener),
            _ => None,
        }
    }

    /// Fails if a socket was passed that nothing asked for.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let Some((name, socket)) = self.passed.first() else { return Ok(()) };
        anyhow::bail!(
            "LISTEN_FDS: nothing is configured for the passed socket {name}, {socket}; configured are: {}; \
             give both the same address, or do not pass it",
            self.asked.join(", ")
        )
    }

    fn take(&mut self, is_wanted: impl Fn(&Passed) -> bool) -> Option<Passed> {
        let index = self.passed.iter().position(|(_, socket)| is_wanted(socket))?;
        Some(self.passed.remove(index).1)
    }
}

/// Each question also checks, so the first that fits is the answer.
fn take(descriptors: &mut ListenFd, index: usize) -> io::Result<Passed> {
    let socket = if let Ok(Some(listener)) = descriptors.take_tcp_listener(index) {
        listener.set_nonblocking(true)?;
        check_listens(socket_acceptconn(&listener))?;
        Passed::Tcp(listener)
    } else if let Ok(Some(listener)) = descriptors.take_unix_listener(index) {
        listener.set_nonblocking(true)?;
        check_listens(socket_acceptconn(&listener))?;
        Passed::Unix(listener)
    } else {
        let socket = descriptors.take_udp_socket(index)?.ok_or(io::ErrorKind::InvalidInput)?;
        socket.set_nonblocking(true)?;
        Passed::Udp(socket)
    };
    Ok(socket)
}

/// With `Accept=yes` a service manager passes a connection in place of a listener.
fn check_listens(listens: rustix::io::Result<bool>) -> io::Result<()> {
    if listens? { Ok(()) } else { Err(io::Error::other("it does not listen; with systemd, write Accept=no")) }
}

fn path_of(listener: &UnixListener) -> Option<PathBuf> {
    listener.local_addr().ok()?.as_pathname().map(Path::to_owned)
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = match self {
            Self::Tcp(listener) => listener.local_addr().map(|address| format!("TCP {address}")),
            Self::Udp(socket) => socket.local_addr().map(|address| format!("UDP {address}")),
            Self::Unix(listener) => {
                let path = path_of(listener).unwrap_or_default();
                Ok(format!("{}", path.display()))
            }
        };
        f.write_str(&address.unwrap_or_else(|error| error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(socket: Passed) -> Sockets {
        Sockets { passed: vec![("number 1 (starling.socket)".into(), socket)], asked: Vec::new() }
    }

    #[test]
    fn a_passed_socket_serves_the_listener_with_its_address_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut sockets = passed(Passed::Tcp(listener));
        assert!(sockets.udp(address, "node.listen").is_none(), "another protocol");
        let other = SocketAddr::new(address.ip(), address.port() ^ 1);
        assert!(sockets.tcp(other, "admin.listen").is_none(), "another port");
        let taken = sockets.tcp(address, "http_proxy.listen").expect("the passed one");
        assert_eq!(taken.local_addr().ok(), Some(address));
        assert!(sockets.tcp(address, "http_proxy.listen").is_none(), "it is taken");
        sockets.finish().expect("all are used");
    }

    #[test]
    fn a_passed_socket_that_fits_nothing_is_an_error_that_names_both() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("other.sock");
        let mut sockets = passed(Passed::Unix(UnixListener::bind(&path).expect("a socket")));
        assert!(sockets.unix(Path::new("/run/starling/admin.sock"), "admin.socket").is_none());
        let error = sockets.finish().expect_err("nothing wants it").to_string();
        let expected = format!(
            "LISTEN_FDS: nothing is configured for the passed socket number 1 (starling.socket), {}; \
             configured are: admin.socket = /run/starling/admin.sock; give both the same address, or do not pass it",
            path.display()
        );
        assert_eq!(error, expected);
    }
}
