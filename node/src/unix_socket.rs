//! A Unix socket that this node listens on, as a file: made where there was none or a stale one, and
//! removed with its listener.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use crate::sockets::Sockets;

/// Connections that wait to be accepted, as tokio has it for its own listeners.
const BACKLOG: i32 = 1024;

/// Whoever may connect to a local port's socket calls services in this node's name.
const OWNER_ONLY: u32 = 0o600;

/// A listening Unix socket; one that this process bound is removed with it.
pub(crate) struct OwnedSocket {
    listener: UnixListener,
    path: Option<PathBuf>,
}

/// Who may connect to a socket that this process makes. One that was passed keeps what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// As the process's `umask` has it: who connects is asked who it is.
    Umask,
    /// The user that the node runs as, and root.
    Owner,
}

impl OwnedSocket {
    /// Takes or binds the socket at `path`, which the configuration's `key` asks for.
    pub(crate) fn bind(
        path: &Path,
        key: &str,
        access: Access,
        sockets: &mut Sockets,
    ) -> anyhow::Result<Self> {
        if let Some(passed) = sockets.unix(path, key) {
            return Ok(Self { listener: UnixListener::from_std(passed)?, path: None });
        }
        remove_stale(path, key)?;
        let listener = listen(path, access)
            .with_context(|| format!("{key}: cannot create {}; does its directory exist?", path.display()))?;
        Ok(Self { listener, path: Some(path.to_owned()) })
    }

    /// Accepts from it.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

/// Nobody can connect before it listens, and it listens only when its mode is set.
fn listen(path: &Path, access: Access) -> std::io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    if access == Access::Owner {
        fs::set_permissions(path, fs::Permissions::from_mode(OWNER_ONLY))?;
    }
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())
}

/// Removes a socket left behind by a killed node: the kernel refuses whoever connects to it. Anything else there is
/// somebody's, and named.
fn remove_stale(path: &Path, key: &str) -> anyhow::Result<()> {
    // What cannot be looked at cannot be bound either, and binding says it better.
    let Ok(there) = fs::symlink_metadata(path) else { return Ok(()) };
    let kind = there.file_type();
    let what = match () {
        () if kind.is_socket() => match probe(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                return fs::remove_file(path)
                    .with_context(|| format!("{key}: cannot remove the old {}", path.display()));
            }
            // Who listens and has no room left listens, too.
            Ok(()) => "a socket at which another process answers",
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                "a socket at which another process listens"
            }
            Err(error) => anyhow::bail!(
                "{key}: {} is a socket that may be another process's ({error}); choose another path, or remove it",
                path.display()
            ),
        },
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_file() => "a regular file",
        () => "no socket",
    };
    anyhow::bail!("{key}: {} is {what}; choose another path, or remove it", path.display())
}

/// Whether somebody listens there. Never waits: a backlog may be full.
fn probe(path: &Path) -> std::io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

impl Drop for OwnedSocket {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_makes_room_for_the_socket() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("admin.sock");
        remove_stale(&path, "admin.socket").expect("nothing is there");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        remove_stale(&path, "admin.socket").expect("an old socket");
        assert!(!path.exists());
        fs::write(&path, "precious").expect("written");
        let refused = remove_stale(&path, "admin.socket").expect_err("a file").to_string();
        let others = place.path().join("others.sock");
        let datagrams = std::os::unix::net::UnixDatagram::bind(&others).expect("a socket");
        let named = remove_stale(&others, "admin.socket").expect_err("somebody's").to_string();
        assert!(named.contains("may be another process's"), "{named}");
        assert!(others.exists());
        drop(datagrams);
        let full = place.path().join("full.sock");
        let busy = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        busy.bind(&SockAddr::unix(&full).expect("a path")).expect("bound");
        busy.listen(0).expect("it listens");
        let _waits = probe(&full);
        let named = remove_stale(&full, "admin.socket").expect_err("somebody's").to_string();
        assert!(named.contains("another process listens"), "{named}");
        assert!(refused.contains("is a regular file"), "{refused}");
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }

    #[tokio::test]
    async fn it_is_its_owners_alone_and_goes_with_its_listener() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("web.sock");
        let bind = || OwnedSocket::bind(&path, "outbound[0].listen", Access::Owner, &mut Sockets::default());
        let socket = bind().expect("bound");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, OWNER_ONLY);
        let second = bind().err().expect("it is in use").to_string();
        assert!(second.contains("is a socket at which another process answers"), "{second}");
        drop(socket);
        assert!(!path.exists());
    }
}
