//! Connections to share: found, dialled, or waited for.
//!
//! There is one connection per local identity, peer identity and address, whoever dialled it.
//! Lookups join a dial under way; failed dials are followed by a pause. The pool decides by
//! `registry` and [`crate::backoff`]; it neither encrypts nor reads streams.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::VarInt;
use rand::rngs::StdRng;
use tokio::sync::watch;

use starling_gossip::clock::{Clock, Instant};
use starling_gossip::identity::SpiffeId;

use crate::admission::{Occupancy, has_room, may_dial};
use crate::backoff::Backoff;
use crate::connection::{CLOSED, Connection, LEAVING, PEER_LEFT};
use crate::credentials::Credentials;
use crate::dial::{ConnectError, Dialler, canonical};
use crate::limits::{BACKOFFS_MAX, DIAL_TIMEOUT, DIALS_MAX};
use crate::registry::Registry;
use crate::serve::{Inbox, serve};
use crate::shunned::Shunned;
use crate::supervise::{SHUNNED_REASON, close_code, supervise};
use crate::telemetry::{self, Direction};
use crate::verify::Expected;

/// Whom to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// Who must answer there.
    pub expected: Expected,
}

/// What this node itself knows of a peer's reachability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who.
    pub identity: SpiffeId,
    /// Where.
    pub address: SocketAddr,
    /// Whether there is a connection. If not, the last dial failed.
    pub connected: bool,
    /// Whether it answers, as far as can be told.
    pub responsive: bool,
    /// The estimated round trip, while connected.
    pub rtt: Option<Duration>,
}

/// A node's connections. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    table: Mutex<Table>,
    dialler: Dialler,
    credentials: Credentials,
    inbox: Inbox,
    changes: Arc<watch::Sender<u64>>,
}

struct Table {
    registry: Registry,
    dials: BTreeMap<DialKey, watch::Receiver<DialOutcome>>,
    failures: BTreeMap<DialKey, Failure>,
    shunned: Shunned,
    rng: StdRng,
    closed: bool,
}

/// Why a connection that a peer dialled is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdopted {
    /// There is no room for it.
    Overloaded,
    /// We have nothing to do with the peer.
    Shunned,
}

/// What is remembered of a failed dial.
struct Failure {
    backoff: Backoff,
    last: ConnectError,
    at: Instant,
}

type DialOutcome = Option<Result<Connection, ConnectError>>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DialKey {
    address: SocketAddr,
    expected: Expected,
    local: SpiffeId,
}

enum Lookup {
    Found(Connection),
    Dialling(watch::Receiver<DialOutcome>),
}

impl Pool {
    pub(crate) fn new(dialler: Dialler, credentials: Credentials, inbox: Inbox, rng: StdRng) -> Self {
        let table = Table {
            registry: Registry::default(),
            dials: BTreeMap::new(),
            failures: BTreeMap::new(),
            shunned: Shunned::default(),
            rng,
            closed: false,
        };
        let shared = Shared {
            table: Mutex::new(table),
            dialler,
            credentials,
            inbox,
            changes: Arc::new(watch::Sender::new(0)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A usable connection to `target`: a pooled one, or a dial's, at most
    /// [`crate::limits::DIAL_TIMEOUT_MAX`] from now. Cancelling it leaves the dial to the others.
    pub async fn connect(&self, target: &Target) -> Result<Connection, ConnectError> {
        self.connect_as(&self.shared.credentials, target).await
    }

    /// The same under another identity of this node.
    pub async fn connect_as(
        &self,
        credentials: &Credentials,
        target: &Target,
    ) -> Result<Connection, ConnectError> {
        let mut outcome = match self.look_up(credentials, target)? {
            Lookup::Found(connection) => return Ok(connection),
            Lookup::Dialling(outcome) => outcome,
        };
        let settled = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        settled.ok().flatten().unwrap_or(Err(ConnectError::Closed))
    }

    /// A usable connection to `address`, whoever dialled it and whoever the peer is. Never dials.
    pub fn connected(&self, address: SocketAddr) -> Option<Connection> {
        self.table().registry.usable(canonical(address), &Expected::Anybody, None)
    }

    /// A usable connection to `target`, if there is one. Never dials.
    pub(crate) fn established(&self, target: &Target) -> Option<Connection> {
        let local = self.shared.credentials.id();
        self.table().registry.usable(canonical(target.address), &target.expected, Some(local))
    }

    /// Has nothing to do with `peer` at `address` for `span`: closes what is open, refuses what it dials
    /// once its handshake has proved who it is, and does not dial it. Its calls go the same way, because
    /// they share its connections: a peer that floods is cut off.
    pub(crate) fn shun(&self, peer: &SpiffeId, address: SocketAddr, span: Duration) {
        let address = canonical(address);
        let mut table = self.table();
        let fresh = table.shunned.insert(peer, address, span, self.clock().now());
        for connection in table.registry.iter().filter(|one| is_to(one, peer, address)) {
            connection.close(close_code::SHUNNED, SHUNNED_REASON);
        }
        drop(table);
        if fresh {
            telemetry::peer_shunned();
            tracing::warn!(%peer, %address, ?span, "a peer sent more than it may: it is cut off for a while, its calls as well");
        }
        self.changed();
    }

    /// Whether we have nothing to do with `peer` at `address`, which is as a connection shows it.
    pub(crate) fn is_shunned(&self, peer: &SpiffeId, address: SocketAddr) -> bool {
        self.table().shunned.wait(peer, address, self.clock().now()).is_some()
    }

    /// Every peer with a connection, and every identity whose last dial failed.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let table = self.table();
        let mut peers: BTreeMap<(SpiffeId, SocketAddr), PeerStatus> = BTreeMap::new();
        for (key, failure) in &table.failures {
            let Expected::Exactly(identity) = &key.expected else { continue };
            // Nobody was asked when our own certificate was of no use.
            if failure.backoff.failures() == 0 {
                continue;
            }
            let (identity, address) = (identity.clone(), key.address);
            peers.insert(
                (identity.clone(), address),
                PeerStatus { identity, address, connected: false, responsive: false, rtt: None },
            );
        }
        let mut connections: Vec<_> = table.registry.iter().filter(|one| !one.is_closed()).collect();
        connections.sort_by_key(|one| one.is_responsive());
        for connection in connections {
            let peer = connection.peer();
            let status = PeerStatus {
                identity: peer.id.clone(),
                address: peer.address,
                connected: true,
                responsive: connection.is_responsive(),
                rtt: Some(connection.rtt()),
            };
            peers.insert((peer.id.clone(), peer.address), status);
        }
        peers.into_values().collect()
    }

    /// Why the last failed dial of `address` failed, whoever was expected there. Forgotten once
    /// that one is connected.
    pub fn last_failure(&self, address: SocketAddr) -> Option<ConnectError> {
        let address = canonical(address);
        let table = self.table();
        let failures = table.failures.iter().filter(|(key, _)| key.address == address);
        failures.max_by_key(|(_, failure)| failure.at).map(|(_, failure)| failure.last.clone())
    }

    /// Tells when [`Pool::peers`] may say something else.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// What is taken already, when somebody comes from `ip`.
    pub(crate) fn occupancy(&self, ip: IpAddr, identity: Option<&SpiffeId>) -> Occupancy {
        self.table().registry.occupancy(ip, identity)
    }

    /// Takes in a connection that a peer dialled.
    pub(crate) fn adopt(&self, connection: &Connection) -> Result<(), NotAdopted> {
        let mut table = self.table();
        let peer = connection.peer();
        if table.shunned.wait(&peer.id, peer.address, self.clock().now()).is_some() {
            return Err(NotAdopted::Shunned);
        }
        if !has_room(table.registry.occupancy(peer.address.ip(), Some(&peer.id))) {
            return Err(NotAdopted::Overloaded);
        }
        self.attend(connection);
        self.enter(&mut table, connection.clone());
        Ok(())
    }

    /// Whether any connection has streams or messages under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.table().registry.iter().any(|one| !one.is_closed() && one.is_responsive() && one.is_busy())
    }

    /// Closes what is open to peers that are revoked, each time the credentials change. Keeps no
    /// pool, and so no port, alive.
    pub(crate) fn close_revoked(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut rotations = self.shared.credentials.rotations();
        let shared = Arc::downgrade(&self.shared);
        async move {
            while rotations.changed().await.is_ok() {
                let Some(shared) = shared.upgrade() else { return };
                let pool = Self { shared };
                let open: Vec<_> = pool.table().registry.iter().cloned().collect();
                open.iter().for_each(|connection| pool.close_if_revoked(connection));
            }
        }
    }

    /// Nothing is dialled any more.
    pub(crate) fn stop_dialling(&self) {
        self.table().closed = true;
    }

    fn look_up(&self, credentials: &Credentials, target: &Target) -> Result<Lookup, ConnectError> {
        let address = canonical(target.address);
        let local = credentials.id().clone();
        let mut table = self.table();
        if table.closed {
            return Err(ConnectError::Closed);
        }
        if let Some(connection) = table.registry.usable(address, &target.expected, Some(&local)) {
            return Ok(Lookup::Found(connection));
        }
        if let Some(retry_in) = table.shunned_at(address, &target.expected, self.clock().now()) {
            return Err(ConnectError::Shunned { address, retry_in });
        }
        let key = DialKey { address, expected: target.expected.clone(), local };
        if let Some(outcome) = table.dials.get(&key) {
            return Ok(Lookup::Dialling(outcome.clone()));
        }
        if let Some(Failure { backoff, last, .. }) = table.failures.get(&key)
            && let Some(retry_in) = backoff.wait(self.clock().now())
        {
            let (failures, last) = (backoff.failures(), Box::new(last.clone()));
            return Err(ConnectError::BackingOff { address, retry_in, failures, last });
        }
        if table.dials.len() >= DIALS_MAX || !may_dial(table.registry.connections()) {
            return Err(ConnectError::Overloaded);
        }
        let (settle, outcome) = watch::channel(None);
        table.dials.insert(key.clone(), outcome.clone());
        tokio::spawn(self.clone().dial(credentials.clone(), key, settle));
        Ok(Lookup::Dialling(outcome))
    }

    /// Owned by no caller: a dial goes on when whoever asked first stops waiting.
    async fn dial(self, credentials: Credentials, key: DialKey, settle: watch::Sender<DialOutcome>) {
        let attend = |connection: &Connection| self.attend(connection);
        let patience =
            self.table().failures.get(&key).map_or(DIAL_TIMEOUT, |failed| failed.backoff.patience());
        let expected = key.expected.clone();
        let result = self.shared.dialler.dial(&credentials, key.address, expected, patience, attend).await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) => error.as_str(),
        };
        telemetry::handshake(Direction::Outbound, outcome);
        let mut table = self.table();
        table.dials.remove(&key);
        let result = result.and_then(|connection| table.unless_shunned(connection, self.clock().now()));
        let result = match result {
            Ok(connection) => {
                self.enter(&mut table, connection.clone());
                Ok(table.registry.usable(key.address, &key.expected, Some(&key.local)).unwrap_or(connection))
            }
            Err(error) => {
                tracing::debug!(address = %key.address, %error, "dial failed");
                table.remember_failure(&key, &error, self.clock());
                // The peer may have reached us meanwhile.
                table.registry.usable(key.address, &key.expected, Some(&key.local)).ok_or(error)
            }
        };
        drop(table);
        self.changed();
        settle.send_replace(Some(result));
    }

    fn enter(&self, table: &mut Table, connection: Connection) {
        let peer = connection.peer().clone();
        for other in table.registry.iter().filter(|other| is_to(other, &peer.id, peer.address)) {
            // Perhaps the peer was restarted and this one is dead: asking is how to find out.
            other.probe();
            other.touch();
        }
        for expected in [Expected::Anybody, Expected::Exactly(peer.id)] {
            let local = connection.local().clone();
            table.failures.remove(&DialKey { address: peer.address, expected, local });
        }
        // Its handshake may have begun before the credentials changed.
        self.close_if_revoked(&connection);
        table.registry.insert(connection.clone());
        if connection.is_closed() {
            table.registry.remove(&connection);
        }
        self.changed();
    }

    fn close_if_revoked(&self, connection: &Connection) {
        let bundle = self.shared.credentials.current().bundle().clone();
        let peer = connection.peer();
        if bundle.revoked().lists(&peer.id, &connection.chain()) {
            tracing::warn!(peer = %peer.id, address = %peer.address, "closed a connection: the peer is revoked");
            connection.quinn().close(VarInt::from_u32(close_code::REVOKED), b"your identity is revoked");
        }
    }

    /// Starts what runs for as long as the connection is open.
    fn attend(&self, connection: &Connection) {
        tokio::spawn(serve(connection.clone(), self.shared.inbox.clone()));
        let (others, silent) = (self.clone(), connection.clone());
        let doubt_others = move |doubt| others.table().registry.doubt_others(&silent, doubt);
        let (clock, changes) = (self.clock().clone(), self.shared.changes.clone());
        let watched = supervise(connection.clone(), clock, changes, doubt_others);
        let (pool, leaving) = (self.clone(), connection.clone());
        let see_out = async move {
            leaving.reached(LEAVING | PEER_LEFT | CLOSED).await;
            pool.table().registry.judge(leaving.peer().address);
            leaving.reached(CLOSED).await;
            pool.table().registry.remove(&leaving);
            pool.changed();
        };
        tokio::spawn(async move { tokio::join!(watched, see_out) });
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    fn clock(&self) -> &Clock {
        self.shared.credentials.clock()
    }

    /// Held for table work only, never across a wait.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_to(connection: &Connection, peer: &SpiffeId, address: SocketAddr) -> bool {
    connection.peer().address == address && connection.peer().id == *peer
}

impl Table {
    /// How much longer `address` is not dialled. Whoever is shunned there is likely who would answer.
    fn shunned_at(&self, address: SocketAddr, expected: &Expected, now: Instant) -> Option<Duration> {
        match expected {
            Expected::Anybody => self.shunned.wait_for_anybody(address, now),
            Expected::Exactly(id) => self.shunned.wait(id, address, now),
        }
    }

    /// The peer may have been shunned while it was dialled.
    fn unless_shunned(&self, connection: Connection, now: Instant) -> Result<Connection, ConnectError> {
        let (id, address) = (&connection.peer().id, connection.peer().address);
        let Some(retry_in) = self.shunned.wait(id, address, now) else { return Ok(connection) };
        connection.close(close_code::SHUNNED, SHUNNED_REASON);
        Err(ConnectError::Shunned { address, retry_in })
    }

    fn remember_failure(&mut self, key: &DialKey, error: &ConnectError, clock: &Clock) {
        if matches!(error, ConnectError::Closed | ConnectError::Overloaded | ConnectError::Shunned { .. }) {
            return;
        }
        if !self.failures.contains_key(key) && self.failures.len() >= BACKOFFS_MAX {
            let oldest = self.failures.iter().min_by_key(|(_, failure)| failure.backoff.not_before());
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.failures.remove(&oldest);
            }
        }
        let at = clock.now();
        let mut backoff = self.failures.remove(key).map_or_else(Backoff::default, |failure| failure.backoff);
        // Without a certificate of ours no packet was sent; a new one may be used at once.
        if *error != ConnectError::BadCredentials {
            backoff.handle_failure(at, &mut self.rng);
        }
        self.failures.insert(key.clone(), Failure { backoff, last: error.clone(), at });
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("registry", &self.table().registry).finish_non_exhaustive()
    }
}
