//! What a node tells the service manager that started it (sd_notify(3)): ready, reloading,
//! stopping, a line about its state, and that it is alive.
//!
//! Nothing is said when nobody asked (`NOTIFY_SOCKET` is not set). A manager that does not listen
//! holds nothing up: messages that do not fit are dropped. The crate `sd-notify` would wait for it,
//! on the one thread that carries everything, and knows no abstract sockets.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::AbortHandle;
use tracing::warn;

/// Shorter watchdogs would fire because a machine is busy.
const WATCHDOG_MIN: Duration = Duration::from_millis(10);

/// A manager that is busy is told again after so long, ...
const READY_AGAIN: Duration = Duration::from_millis(250);

/// ... for a minute and a half, as long as systemd waits for it by default.
const READY_TRIES_MAX: u32 = 360;

/// The service manager; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
    /// Says that the node is ready, as long as nobody has heard it.
    again: Arc<Mutex<Option<AbortHandle>>>,
}

/// A reload under way. Dropped, it has ended, however it went.
#[must_use = "a reload ends when this is dropped"]
pub(crate) struct Reloading(ServiceManager);

impl ServiceManager {
    /// The one that `variable` tells of, if any: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let Some(address) = variable("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let socket = connect(&address)
            .with_context(|| format!("NOTIFY_SOCKET: the service manager does not listen at {address}"))?;
        let is_for_us = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let micros = variable("WATCHDOG_USEC").filter(|_| is_for_us).and_then(|micros| micros.parse().ok());
        let watchdog = micros.map(Duration::from_micros).filter(|period| *period >= WATCHDOG_MIN);
        Ok(Self { socket: Some(Arc::new(socket)), watchdog, again: Arc::default() })
    }

    /// Everything is bound and served. Said until it is heard: without it, a manager ends the node.
    pub(crate) fn ready(&self) {
        const READY: &str = "READY=1";
        if self.tell(READY) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let manager = self.clone();
        let again = runtime.spawn(async move {
            for _ in 0..READY_TRIES_MAX {
                tokio::time::sleep(READY_AGAIN).await;
                if manager.send(READY).is_ok() {
                    return;
                }
            }
        });
        self.supersede(Some(again.abort_handle()));
    }

    /// What is said again is about an earlier state than what is said now.
    fn supersede(&self, again: Option<AbortHandle>) {
        let mut held = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = std::mem::replace(&mut *held, again) {
            before.abort();
        }
    }

    /// The configuration is read again, until the answer is dropped.
    pub(crate) fn reloading(&self) -> Reloading {
        self.supersede(None);
        // Type=notify-reload pairs the message with its own signal by this time.
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
        Reloading(self.clone())
    }

    /// The node drains and ends.
    pub(crate) fn stopping(&self) {
        self.supersede(None);
        self.tell("STOPPING=1\nSTATUS=draining");
    }

    /// One line for people.
    pub(crate) fn status(&self, line: &str) {
        self.tell(&format!("STATUS={}", line.replace('\n', " ")));
    }

    /// Whether anybody listens.
    pub(crate) fn listens(&self) -> bool {
        self.socket.is_some()
    }

    /// Says twice in each period of the watchdog that the node is alive, as long as `pulse`
    /// answers: a node that cannot is better started again. An answer may take a quarter of the
    /// period, and another quarter is left for a machine that is busy.
    pub(crate) async fn keep_watchdog<F: Future<Output = ()>>(self, pulse: impl Fn() -> F) {
        let Some(watchdog) = self.watchdog else { return };
        loop {
            match tokio::time::timeout(watchdog / 4, pulse()).await {
                Ok(()) => {
                    self.tell("WATCHDOG=1");
                    tokio::time::sleep(watchdog / 2).await;
                }
                // Asked again at once: the next answer may still come in time.
                Err(_) => warn!(?watchdog, "gossip does not answer: the service manager is told nothing"),
            }
        }
    }

    /// `false` if the manager's queue is full, or it is gone.
    fn tell(&self, state: &str) -> bool {
        let sent = self.send(state);
        if let Err(error) = &sent {
            warn!(%error, state, "the service manager cannot be told");
        }
        sent.is_ok()
    }

    fn send(&self, state: &str) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        socket.send(state.as_bytes()).map(drop)
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        self.0.ready();
    }
}

/// A path, or the name of an abstract socket after `@`.
fn connect(address: &str) -> io::Result<UnixDatagram> {
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn manager(name: &str, watchdog: &str) -> (UnixDatagram, ServiceManager) {
        let name = format!("starling-test-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("bound");
        socket.set_nonblocking(true).expect("a flag");
        let manager = ServiceManager::from_environment(|variable| match variable {
            "NOTIFY_SOCKET" => Some(format!("@{name}")),
            "WATCHDOG_USEC" => Some(watchdog.to_owned()),
            _ => None,
        });
        (socket, manager.expect("it listens"))
    }

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 256];
        let next =
            || socket.recv(&mut buffer).ok().map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned());
        std::iter::from_fn(next).collect()
    }

    #[tokio::test]
    async fn the_watchdog_is_fed_while_the_pulse_answers_and_starves_when_it_does_not() {
        let (socket, fed) = manager("fed", "40000");
        let _ = tokio::time::timeout(Duration::from_millis(500), fed.keep_watchdog(|| ready(()))).await;
        let said = heard(&socket);
        assert!(said.len() > 2 && said.iter().all(|state| state == "WATCHDOG=1"), "{said:?}");
        let (socket, starved) = manager("starved", "40000");
        let _ = tokio::time::timeout(Duration::from_millis(500), starved.keep_watchdog(pending)).await;
        assert!(heard(&socket).is_empty());
    }

    #[test]
    fn states_are_told_as_the_protocol_says() {
        let (socket, manager) = manager("states", "");
        manager.ready();
        manager.status("two\nlines");
        manager.stopping();
        assert_eq!(heard(&socket), ["READY=1", "STATUS=two lines", "STOPPING=1\nSTATUS=draining"]);
    }

    #[tokio::test]
    async fn a_manager_that_was_busy_hears_that_the_node_is_ready() {
        let (socket, manager) = manager("busy", "");
        (0..10_000).for_each(|_| manager.status("again"));
        manager.ready();
        while heard(&socket).len() > 1 {}
        let said = loop {
            tokio::time::sleep(READY_AGAIN).await;
            match heard(&socket) {
                nothing if nothing.is_empty() => {}
                said => break said,
            }
        };
        assert_eq!(said, ["READY=1"]);
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let nobody = ServiceManager::from_environment(|_| None).expect("nobody");
        nobody.ready();
        assert!(!nobody.listens());
    }

    #[test]
    fn a_full_manager_holds_nothing_up() {
        let (_socket, manager) = manager("full", "");
        (0..10_000).for_each(|_| manager.status("again"));
    }
}
