//! A handle to one authenticated connection, and what is known of it without asking the network.
//!
//! State is one atomic word, so that a balancer may ask `is_usable` for every call. Who changes it:
//! `supervise` watches the peer, `serve` hears welcome and goodbye,
//! `registry` says which of two connections is the better one.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::VarInt;
use tokio::sync::{Notify, watch};

use rustls::pki_types::CertificateDer;
use starling_gossip::identity::SpiffeId;
use tracing::debug;

use crate::bell::{Bell, Ropes};
use crate::datagram::{Datagram, MARK_BYTES};
use crate::header::{HeaderError, StreamHeader};
use crate::limits::{DATAGRAM_BYTES_LEAST, OPEN_TIMEOUT};
use crate::silence::Doubt;
use crate::stream::{BeginError, MeshStream, SendHalf};
use crate::telemetry;

/// Who is at the other end, as proved in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// Where its packets come from.
    pub address: SocketAddr,
    /// SHA-256 of its leaf's public key.
    pub key_fingerprint: [u8; 32],
}

/// One connection. Cheap to clone; it lives until either end closes it, not until handles drop.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    quinn: quinn::Connection,
    peer: PeerIdentity,
    local: SpiffeId,
    precedence: [u8; 16],
    accepted: bool,
    flags: watch::Sender<u8>,
    /// The same word as in `flags`, readable without the watch channel's lock.
    flags_now: AtomicU8,
    work: AtomicUsize,
    /// Calls of the peer that are open.
    calls: AtomicU32,
    attention: AtomicU8,
    /// Whether a message went or came since the supervisor looked.
    used: AtomicBool,
    wake: Notify,
    /// Who waits for the peer, and is told when it does not answer.
    waiting: Mutex<Ropes>,
    /// What the supervisor has not looked at yet.
    doubt: Mutex<Option<Doubt>>,
}

/// Counts as work on a connection while it lives: the peer is watched for silence, and the
/// connection is not given back.
pub struct WorkGuard {
    connection: Connection,
    /// The peer's call that the work belongs to, if it does.
    call: Option<Arc<OpenCall>>,
}

/// Counts among the peer's open calls as long as one of its halves lives.
struct OpenCall(Connection);

/// Why a stream could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The connection is gone.
    #[error("the connection to {peer} is lost: {why}")]
    Lost {
        /// To whom.
        peer: SocketAddr,
        /// Why.
        why: String,
    },
    /// The peer has permitted no further stream for [`OPEN_TIMEOUT`].
    #[error("{peer} permits no more streams")]
    TooManyStreams {
        /// Who does not.
        peer: SocketAddr,
    },
    /// The peer has had no room for the header for [`crate::limits::FIRST_WRITE_TIMEOUT`].
    #[error("{peer} takes no more bytes in")]
    Stalled {
        /// Who does not.
        peer: SocketAddr,
    },
    /// The header cannot be sent.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// Flags of a connection's state.
pub(crate) const SILENT: u8 = 1;
pub(crate) const LEAVING: u8 = 2;
pub(crate) const PEER_LEFT: u8 = 4;
pub(crate) const CLOSED: u8 = 8;
pub(crate) const SUPERSEDED: u8 = 16;
pub(crate) const WELCOMED: u8 = 32;
pub(crate) const GONE: u8 = 64;
pub(crate) const DOUBTED: u8 = 128;
const UNUSABLE: u8 = SILENT | DOUBTED | LEAVING | PEER_LEFT | CLOSED;

/// The supervisor's attention: sleeping until told, looking regularly, or told since it looked.
const PARKED: u8 = 0;
const LOOKING: u8 = 1;
const TOUCHED: u8 = 2;

impl Connection {
    /// Wraps a connection whose handshake is complete. Must run in its runtime.
    pub(crate) fn new(quinn: quinn::Connection, peer: PeerIdentity, local: SpiffeId) -> Self {
        // Both ends derive the same bytes and nobody else can (RFC 8446, section 7.5), so both
        // agree which of two connections is the better one without a word.
        let mut precedence = [0; 16];
        quinn
            .export_keying_material(&mut precedence, b"EXPORTER-starling-precedence", b"")
            .expect("a complete handshake exports 16 bytes");
        let shared = Shared {
            accepted: quinn.side().is_server(),
            quinn,
            peer,
            local,
            precedence,
            flags: watch::Sender::new(0),
            flags_now: AtomicU8::new(0),
            work: AtomicUsize::new(0),
            calls: AtomicU32::new(0),
            attention: AtomicU8::new(LOOKING),
            used: AtomicBool::new(false),
            wake: Notify::new(),
            waiting: Mutex::default(),
            doubt: Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.shared.peer
    }

    /// The certificates that proved it, leaf first.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        let chain = self.shared.quinn.peer_identity().and_then(|chain| chain.downcast().ok());
        chain.map(|chain| *chain).unwrap_or_default()
    }

    /// As whom we are connected.
    pub fn local(&self) -> &SpiffeId {
        &self.shared.local
    }

    /// Whether a new stream should go here: open, responsive, not in doubt, and nobody is leaving. One atomic
    /// read.
    pub fn is_usable(&self) -> bool {
        self.flags_now() & UNUSABLE == 0
    }

    /// Whether the peer answers, as far as can be told. One atomic read.
    pub fn is_responsive(&self) -> bool {
        self.flags_now() & (SILENT | CLOSED) == 0
    }

    /// Whether it is open, the peer answers as far as can be told, and nothing puts that in doubt. One atomic read.
    pub fn is_answering(&self) -> bool {
        self.flags_now() & (SILENT | DOUBTED | CLOSED) == 0
    }

    /// Whether the connection is gone. One atomic read.
    pub fn is_closed(&self) -> bool {
        self.flags_now() & CLOSED != 0
    }

    /// Whether it was closed because the peer had been silent for too long. One atomic read.
    pub fn is_given_up(&self) -> bool {
        self.flags_now() & GONE != 0
    }

    /// Resolves when the peer is silent although something awaits its acknowledgement, or the
    /// connection is closed. At once if that is so already.
    pub async fn unresponsive(&self) {
        self.reached(SILENT | CLOSED).await;
    }

    /// Resolves when the connection is gone, with the reason for a person.
    pub async fn closed(&self) -> String {
        self.shared.quinn.closed().await.to_string()
    }

    /// The current estimate of the round trip.
    pub fn rtt(&self) -> Duration {
        self.shared.quinn.rtt()
    }

    /// Work begins; it ends when the guard is dropped.
    pub fn begin_work(&self) -> WorkGuard {
        self.begin(None)
    }

    fn begin(&self, call: Option<Arc<OpenCall>>) -> WorkGuard {
        self.shared.work.fetch_add(1, Ordering::AcqRel);
        self.touch();
        WorkGuard { connection: self.clone(), call }
    }

    /// The peer opened a call, which is open until the guard and all that [`WorkGuard::share`] made of
    /// it are dropped. Gives how many calls of the peer are open now, too.
    pub(crate) fn begin_call(&self) -> (WorkGuard, u32) {
        let open = self.shared.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let call = Some(Arc::new(OpenCall(self.clone())));
        (self.begin(call), open)
    }

    /// Opens a stream that begins with `header`. Nothing waits for the peer, unless it permits no
    /// more streams, and then at most [`OPEN_TIMEOUT`], or no more bytes, and then at most
    /// [`crate::limits::FIRST_WRITE_TIMEOUT`]; the answer is awaited on the stream.
    pub async fn open(&self, header: &StreamHeader) -> Result<MeshStream, OpenError> {
        let header = header.encode()?;
        let work = self.begin_work();
        let opened = tokio::time::timeout(OPEN_TIMEOUT, self.shared.quinn.open_bi()).await;
        let (send, recv) = match opened {
            Ok(Ok(pair)) => pair,
            Ok(Err(error)) => return Err(self.lost(error)),
            Err(_) => return Err(OpenError::TooManyStreams { peer: self.shared.peer.address }),
        };
        let mut stream = MeshStream::dialled(send, recv, work);
        stream.write_first(&header).await.map_err(|error| self.not_begun(error))?;
        Ok(stream)
    }

    /// Opens a stream of one direction that begins with `header`, within the same bounds.
    pub(crate) async fn open_message(&self, header: &StreamHeader) -> Result<SendHalf, OpenError> {
        let header = header.encode()?;
        let work = self.begin_work();
        let opened = tokio::time::timeout(OPEN_TIMEOUT, self.shared.quinn.open_uni()).await;
        let send = match opened {
            Ok(Ok(send)) => send,
            Ok(Err(error)) => return Err(self.lost(error)),
            Err(_) => return Err(OpenError::TooManyStreams { peer: self.shared.peer.address }),
        };
        let mut stream = SendHalf::new(send, work);
        stream.write_first(&header).await.map_err(|error| self.not_begun(error))?;
        Ok(stream)
    }

    /// Sends `message` as one datagram. Never waits: what finds the send buffer full pushes the oldest out.
    /// `false` if it does not fit, the peer takes none, or the connection is lost.
    pub(crate) fn send_once(&self, message: &[u8]) -> bool {
        let quinn = &self.shared.quinn;
        let bytes = MARK_BYTES + message.len();
        let room = quinn.max_datagram_size().filter(|room| *room >= DATAGRAM_BYTES_LEAST);
        if room.is_none_or(|room| bytes > room) {
            return false;
        }
        if quinn.datagram_send_buffer_space() < bytes {
            telemetry::gossip_dropped("send_buffer_full");
        }
        let sent = quinn.send_datagram(Datagram::gossip(message)).is_ok();
        if sent {
            self.note_use();
        }
        sent
    }

    /// Sends an empty datagram, for its acknowledgement. Fails only on a closed connection, and who
    /// supervises it notices that.
    pub(crate) fn probe(&self) {
        let _ = self.shared.quinn.send_datagram(Datagram::probe());
    }

    /// Closes it at once, whatever is under way: it is unusable when this returns.
    pub(crate) fn close(&self, code: u32, reason: &str) {
        self.shared.quinn.close(VarInt::from_u32(code), reason.as_bytes());
        self.mark(CLOSED, true);
    }

    fn not_begun(&self, why: BeginError) -> OpenError {
        match why {
            BeginError::Lost(why) => self.lost(why),
            BeginError::Stalled => {
                debug!(peer = %self.shared.peer.address, stats = ?self.shared.quinn.stats(), "no room for a header");
                OpenError::Stalled { peer: self.shared.peer.address }
            }
        }
    }

    fn lost(&self, why: impl std::fmt::Display) -> OpenError {
        OpenError::Lost { peer: self.shared.peer.address, why: why.to_string() }
    }

    pub(crate) fn quinn(&self) -> &quinn::Connection {
        &self.shared.quinn
    }

    /// Smaller is better; the same at both ends.
    pub(crate) fn precedence(&self) -> [u8; 16] {
        self.shared.precedence
    }

    /// Whether the peer dialled, not we.
    pub(crate) fn is_accepted(&self) -> bool {
        self.shared.accepted
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(crate) fn flags_now(&self) -> u8 {
        self.shared.flags_now.load(Ordering::Acquire)
    }

    /// Sets or clears flags; says whether anything changed.
    pub(crate) fn mark(&self, flags: u8, on: bool) -> bool {
        let changed = self.shared.flags.send_if_modified(|word| {
            let new = if on { *word | flags } else { *word & !flags };
            let changed = new != *word;
            *word = new;
            self.shared.flags_now.store(new, Ordering::Release);
            changed
        });
        if changed && on && flags & (SILENT | CLOSED) != 0 {
            self.waiting().ring();
        }
        if changed && flags & (PEER_LEFT | SUPERSEDED) != 0 {
            self.shared.wake.notify_one();
        }
        changed
    }

    /// `bell` is rung whenever the peer falls silent, or the connection is closed, from now on.
    pub(crate) fn ring_when_unresponsive(&self, bell: &Bell) {
        self.waiting().add(bell);
    }

    /// Held for as long as it takes to ring all, or to add one.
    fn waiting(&self) -> MutexGuard<'_, Ropes> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when any of `flags` is set.
    pub(crate) async fn reached(&self, flags: u8) {
        let mut watch = self.shared.flags.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ = watch.wait_for(|word| word & flags != 0).await;
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.shared.work.load(Ordering::Acquire) > 0
    }

    /// A message went or came: the connection is in use, though nothing may be under way.
    pub(crate) fn note_use(&self) {
        self.shared.used.store(true, Ordering::SeqCst);
        self.touch();
    }

    /// The supervisor looks: did a message go or come since?
    pub(crate) fn take_use(&self) -> bool {
        self.shared.used.swap(false, Ordering::SeqCst)
    }

    /// Somebody wrote, or was heard. Wakes the supervisor only if it sleeps; usually one atomic read.
    pub(crate) fn touch(&self) {
        if self.shared.attention.load(Ordering::SeqCst) != TOUCHED
            && self.shared.attention.swap(TOUCHED, Ordering::SeqCst) == PARKED
        {
            self.shared.wake.notify_one();
        }
    }

    /// The supervisor looks: did anything happen since?
    pub(crate) fn take_touch(&self) -> bool {
        self.shared.attention.swap(LOOKING, Ordering::SeqCst) == TOUCHED
    }

    /// Another connection to the same place has fallen silent: the supervisor asks whether this one has, too.
    pub(crate) fn doubt(&self, doubt: Doubt) {
        *self.shared.doubt.lock().unwrap_or_else(PoisonError::into_inner) = Some(doubt);
        self.shared.wake.notify_one();
    }

    /// The supervisor looks: what has another connection shown since?
    pub(crate) fn take_doubt(&self) -> Option<Doubt> {
        self.shared.doubt.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The supervisor means to sleep; `false` if somebody wrote meanwhile.
    pub(crate) fn park(&self) -> bool {
        let attention = &self.shared.attention;
        attention.compare_exchange(LOOKING, PARKED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    pub(crate) async fn woken(&self) {
        self.shared.wake.notified().await;
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.shared.peer.id)
            .field("address", &self.shared.peer.address)
            .field("flags", &self.flags_now())
            .finish_non_exhaustive()
    }
}

impl WorkGuard {
    /// The connection worked on.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// One more for the same work: another half of the same stream.
    pub(crate) fn share(&self) -> Self {
        self.connection.begin(self.call.clone())
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.shared.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        let connection = &self.connection;
        let before = connection.shared.work.fetch_sub(1, Ordering::AcqRel);
        // Only a connection that waits to go cares to know at once.
        if before == 1 && connection.flags_now() & (LEAVING | PEER_LEFT | SUPERSEDED) != 0 {
            connection.shared.wake.notify_one();
        }
    }
}
