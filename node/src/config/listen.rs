//! Where local programs connect: a TCP port of this machine, or a Unix socket.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::address::unix_path;
use super::reader::Reader;
use super::value::{HOST_PORT, socket_address, text};

/// An address of a local listener.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddress {
    /// A TCP port. Port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// A Unix socket, by absolute path.
    Unix(PathBuf),
}

/// `address:port` or `unix:/path`.
pub(super) fn local_listen_address() -> Reader<ListenAddress> {
    let pattern = format!("^unix:/|{HOST_PORT}");
    Reader::text(&pattern, |given| match text(given)?.strip_prefix("unix:") {
        Some(path) => Ok(ListenAddress::Unix(unix_path(path)?)),
        None => Ok(ListenAddress::Tcp(socket_address(given)?)),
    })
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
