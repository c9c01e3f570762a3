//! Sockets that a test holds for a node, as a service manager would: they outlive the processes.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use command_fds::{CommandFdExt as _, FdMapping};
use socket2::{Domain, SockAddr, Socket, Type};

/// What systemd listens with, as far as the kernel allows (net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// The first descriptor that is passed (sd_listen_fds(3)).
const FIRST: usize = 3;

/// Bound sockets, in the order in which they are passed.
#[derive(Default)]
pub(crate) struct PassedSockets(Vec<OwnedFd>);

impl PassedSockets {
    /// A TCP listener.
    pub(crate) fn listen(&mut self, address: SocketAddr) {
        self.bind(Type::STREAM, Domain::for_address(address), &address.into());
    }

    /// A UDP socket.
    pub(crate) fn datagrams(&mut self, address: SocketAddr) {
        self.bind(Type::DGRAM, Domain::for_address(address), &address.into());
    }

    /// A Unix listener.
    pub(crate) fn listen_unix(&mut self, path: &Path) {
        self.bind(Type::STREAM, Domain::UNIX, &SockAddr::unix(path).expect("a path that fits"));
    }

    fn bind(&mut self, kind: Type, domain: Domain, address: &SockAddr) {
        let socket = Socket::new(domain, kind, None).expect("a socket");
        socket.bind(address).expect("a free address");
        if kind == Type::STREAM {
            socket.listen(BACKLOG).expect("a listener");
        }
        self.0.push(socket.into());
    }

    /// Lets the process that `command` starts inherit them. Who starts a process does not know its id
    /// before, so `LISTEN_PID` is left out.
    pub(crate) fn pass_to(&self, command: &mut Command) {
        if self.0.is_empty() {
            return;
        }
        command.env("LISTEN_FDS", self.0.len().to_string());
        let mapping = |(index, socket): (usize, &OwnedFd)| FdMapping {
            parent_fd: socket.try_clone().expect("a descriptor"),
            child_fd: i32::try_from(FIRST + index).expect("few sockets"),
        };
        let mappings = self.0.iter().enumerate().map(mapping).collect();
        command.fd_mappings(mappings).expect("each has its own number");
    }
}
