//! Where local programs connect, TCP or Unix, and their connections, as one thing each.

use std::fmt;
use std::io;
use std::net::IpAddr;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::TcpListener;
use tokio_util::either::Either;

use crate::config::ListenAddress;
use crate::proxy::listener;
use crate::proxy::workload::Plain;
use crate::sockets::Sockets;
use crate::unix_socket::{Access, OwnedSocket};

/// A bound listening socket.
pub(crate) enum LocalSocket {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(OwnedSocket),
}

impl LocalSocket {
    /// Takes or binds it, or says which key of the configuration is in the way.
    pub(crate) async fn bind(address: &ListenAddress, key: &str, sockets: &mut Sockets) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => listener::bind(*address, key, sockets).await.map(Self::Tcp),
            ListenAddress::Unix(path) => OwnedSocket::bind(path, key, Access::Owner, sockets)
                .map(Self::Unix)
                .map_err(|error| io::Error::other(format!("{error:#}"))),
        }
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Plain> {
        match self {
            Self::Tcp(listener) => {
                let (client, _) = listener.accept().await?;
                // Requests are small and wait for answers; Nagle's algorithm would hold them back.
                let _ = client.set_nodelay(true);
                Ok(Either::Left(client))
            }
            Self::Unix(socket) => socket.listener().accept().await.map(|(client, _)| Either::Right(client)),
        }
    }
}

/// Where a connection comes from; a Unix socket's has no address.
pub(crate) fn source(client: &Plain) -> Option<IpAddr> {
    match client {
        Either::Left(client) => client.peer_addr().ok().map(|address| address.ip()),
        Either::Right(_) => None,
    }
}

impl fmt::Display for LocalSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(error) => error.fmt(f),
            },
            Self::Unix(socket) => match socket.listener().local_addr() {
                Ok(address) => write!(f, "unix:{}", address.as_pathname().unwrap_or("".as_ref()).display()),
                Err(error) => error.fmt(f),
            },
        }
    }
}

/// A client's first bytes, which stay unread; how many there are, and 0 after its end.
pub(crate) async fn peek(client: &Plain, first: &mut [u8]) -> io::Result<usize> {
    let client = match client {
        Either::Left(tcp) => return tcp.peek(first).await,
        Either::Right(unix) => unix,
    };
    loop {
        client.readable().await?;
        let peeked = client.try_io(Interest::READABLE, || {
            rustix::net::recv(client, &mut *first, RecvFlags::PEEK).map_err(io::Error::from)
        });
        match peeked {
            Ok((count, _)) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
