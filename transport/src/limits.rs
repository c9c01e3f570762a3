//! Every maximum of the transport, each with its reason.
//!
//! A name carries its unit. What an operator may tune is handed in by the node's configuration;
//! these are the bounds under which a stranger's packets are handled, and the paces of the state
//! machines here.

use std::time::Duration;

/// Bidirectional streams that a peer may have open on a new connection. quinn-proto prepares every
/// permitted stream at set-up, in two tables; at 20,000 a connection costs more than twice as much. Most
/// connections of a node carry gossip and no call, and `permits` permits more to those that use them:
/// more calls than these that begin together wait for one round trip.
pub const CALLS_PER_CONNECTION_AT_FIRST: u32 = 64;

/// The most that one connection is ever permitted: each TCP connection is one, and so is each
/// HTTP/1.1 request at its time. Half as many again as a node takes on by default
/// (`limits.requests_in_flight_max`), so that it is that limit which refuses, and says so.
pub const CALLS_PER_CONNECTION_MAX: u32 = 16_384;

/// What one call costs before anybody takes it: quinn's two halves, and the task that reads its header.
const CALL_BYTES: u32 = 4 * 1024;

/// Unidirectional streams a peer may have open on one connection: gossip messages under way, which are sent one after
/// the other, and announcements. A thousand would be prepared as well, and take 35 KB a connection: a sixth of what an
/// idle node has on its heap.
pub const MESSAGES_PER_CONNECTION_MAX: u32 = 64;

/// Connections of one node, dialled and accepted. An idle one takes about 45 KB, so this is
/// under 200 MB; a mesh of chitchat's largest size (about 1,149 nodes) fits three times.
pub const CONNECTIONS_MAX: usize = 4_096;

/// Those of them that peers may dial: three quarters. However many come, this node can dial.
pub const CONNECTIONS_ACCEPTED_MAX: usize = CONNECTIONS_MAX / 4 * 3;

/// Accepted connections of one peer identity. Replicas share one, so it is far above one; and a
/// third of what is accepted at all, so that one workload gone wrong does not shut the others out.
pub const ACCEPTED_PER_IDENTITY_MAX: usize = 1_024;

/// Connections with one IPv4 address or one /64 of IPv6: many nodes behind one NAT fit, one host
/// cannot take all.
pub const CONNECTIONS_PER_SOURCE_MAX: usize = 1_536;

/// Handshakes under way that we answer. Beyond this, a source must first show that it receives at
/// its address (Retry, RFC 9000, section 8.1.2), so that forged sources cost no signatures.
pub const HALF_OPEN_UNPROVED_MAX: usize = 64;

/// Handshakes under way from anybody. At 1 ms of CPU each this is about a second of work.
pub const HALF_OPEN_MAX: usize = 1_024;

/// Handshakes under way from one IPv4 address or one /64 of IPv6 that has shown that it receives there:
/// a quarter of all, so that nobody keeps everybody else out by beginning and never ending. Who
/// has not shown it is not counted, for anybody could be named.
pub const HALF_OPEN_PER_SOURCE_MAX: usize = 256;

/// Early packets kept for one handshake before we answer it. A first flight is under 8 KiB.
pub const HALF_OPEN_BYTES_MAX: u64 = 64 * 1024;

/// The same for all of them together.
pub const HALF_OPEN_TOTAL_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What connections may hold in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Of one stream, received and not read yet.
    pub(crate) stream_bytes: u32,
    /// Of all streams of one connection, received and not read yet.
    pub(crate) connection_bytes: u32,
    /// Of one connection, sent and not acknowledged yet.
    pub(crate) send_bytes: u64,
    /// Calls of one peer, open at once on one connection.
    pub(crate) calls_max: u32,
}

impl Windows {
    /// For a node that may use `memory_bytes`, or as much as it likes: what one peer can make it hold
    /// is an eighth of that, and what it holds for one peer a sixteenth.
    pub fn within(memory_bytes: Option<u64>) -> Self {
        let memory_bytes = memory_bytes.unwrap_or(u64::MAX);
        let eighth = u32::try_from(memory_bytes / 8).unwrap_or(u32::MAX);
        let connection_bytes = eighth.clamp(CONNECTION_WINDOW_BYTES_MIN, CONNECTION_RECEIVE_WINDOW_BYTES);
        Self {
            stream_bytes: (connection_bytes / STREAMS_UNREAD).min(STREAM_RECEIVE_WINDOW_BYTES),
            connection_bytes,
            send_bytes: (memory_bytes / 16)
                .clamp(CONNECTION_WINDOW_BYTES_MIN.into(), CONNECTION_SEND_WINDOW_BYTES),
            calls_max: (eighth / CALL_BYTES).clamp(CALLS_PER_CONNECTION_AT_FIRST, CALLS_PER_CONNECTION_MAX),
        }
    }
}

/// So many streams that nobody reads use a connection up where memory is short; two hundred where it is not.
const STREAMS_UNREAD: u32 = 32;

/// Less than this and a path of 100 ms carries less than 10 MB/s.
const CONNECTION_WINDOW_BYTES_MIN: u32 = 1024 * 1024;

/// Bytes a peer may send on one stream before we read them. A stream's speed is this per round
/// trip: 1 Gbit/s at 10 ms, 100 Mbit/s at 100 ms.
pub const STREAM_RECEIVE_WINDOW_BYTES: u32 = 1_250_000;

/// The same for all streams of one connection together, and so all that a peer can make one
/// connection hold: as much as HTTP/2's windows. Streams that nobody reads use it up, and then
/// the peer's other streams wait as well; more would be isolation paid with memory.
pub const CONNECTION_RECEIVE_WINDOW_BYTES: u32 = 256 * 1024 * 1024;

/// Bytes kept for one connection until the peer acknowledges them: 1 Gbit/s at 130 ms.
pub const CONNECTION_SEND_WINDOW_BYTES: u64 = 16 * 1024 * 1024;

/// A whole handshake, up to the callee's welcome, at the first try.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The same after some tries that nobody answered, each of which has twice the time of the one before;
/// and of a handshake that is answered. Where many nodes start at once on few cores, handshakes
/// that are given up and begun anew are what keeps the cores busy.
pub const DIAL_TIMEOUT_MAX: Duration = Duration::from_secs(8);

/// A handshake that failed counts as under way for so long: QUIC remembers a closed connection for three
/// probe timeouts (RFC 9000, section 10.2), about a second at the round trip that is assumed first.
pub const HALF_OPEN_FAILED_LINGER: Duration = Duration::from_secs(1);

/// Dials under way. Each holds a connection's memory and a timer.
pub const DIALS_MAX: usize = 512;

/// The round trip assumed before the first is measured. RFC 9002 says 333 ms, and then a lost
/// first packet is repeated after a second, half of [`DIAL_TIMEOUT`].
pub const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Silence after which a connection is gone (RFC 9000, section 10.1). [`crate::silence`] notices
/// far earlier, and ends what has work on it; this only frees the memory.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A packet at least this often keeps NAT bindings: the common timeout for UDP is 30 s.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A connection that carried nothing for so long is given back: no call, no message, no datagram but
/// probes. In a mesh of 200 nodes that gossip once a second, a pair meets about every half minute.
pub const UNUSED_CLOSE: Duration = Duration::from_secs(120);

/// How long the loser of two simultaneous dials stays, once idle: both ends have certainly seen
/// the winner when a whole dial could have run out.
pub const LOSER_LINGER: Duration = Duration::from_secs(2);

/// How long the one who said goodbye waits for the other to close.
pub const GOODBYE_WAIT: Duration = Duration::from_secs(5);

/// Body of a stream header: a service name (127 B), an instance id (63 B) and their lengths, and
/// as much again for what later versions add.
pub const HEADER_BODY_BYTES_MAX: usize = 512;

/// Text that goes with a refusal: one line for a person.
pub const REFUSAL_DETAIL_BYTES_MAX: usize = 256;

/// From a stream's first packet to its whole header. Headers fit one packet; this covers a few
/// losses.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// From a gossip stream's header to the message's end.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long opening a stream waits for the peer to permit one more.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a stream's first bytes, a header or an answer, wait for room at the peer. A busy slow
/// link has room within a few round trips; a peer that gives none holds a task no longer than this.
pub const FIRST_WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Streams waiting for the owner to take them; beyond it callers hear `Overloaded`.
pub const INCOMING_STREAMS_MAX: usize = 256;

/// Gossip messages waiting for the gossip loop. At full size they are 32 MiB.
pub const GOSSIP_RECEIVED_MAX: usize = 256;

/// Gossip messages waiting for one peer. A round sends a peer at most a few; while it is dialled
/// for two seconds a few rounds may pass.
pub const GOSSIP_QUEUED_PER_PEER_MAX: usize = 32;

/// Peers with a sending queue. They are removed after [`GOSSIP_QUEUE_IDLE`].
pub const GOSSIP_PEERS_MAX: usize = 4_096;

/// A peer's sending queue goes when it was empty for so long.
pub const GOSSIP_QUEUE_IDLE: Duration = Duration::from_secs(30);

/// The pause after a first failed dial.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest pause between dials to one address: a restarted peer is found within it even if
/// it does not dial us itself.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Addresses whose failed dials are remembered. The one that waited longest is forgotten first.
pub const BACKOFFS_MAX: usize = 4_096;

/// How often a busy connection is looked at.
pub const SILENCE_TICK: Duration = Duration::from_millis(50);

/// The least silence, with something unacknowledged, that counts as unresponsive. Above any sane
/// scheduling delay, below what a caller would call a second.
pub const SILENCE_MIN: Duration = Duration::from_millis(300);

/// Probe timeouts (RFC 9002, section 6.2) without an answer that count as unresponsive.
pub const SILENCE_PTOS: u32 = 3;

/// A busy connection that heard nothing for so long asks, so that a peer that dies while we wait
/// for its answer is noticed within a second.
pub const PROBE_AFTER: Duration = Duration::from_millis(400);

/// The same, once its streams have been quiet for [`PROBE_EAGERLY`]: kept-alive idle streams.
pub const PROBE_AFTER_QUIET: Duration = Duration::from_secs(5);

/// How long after the last stream frame a connection asks eagerly.
pub const PROBE_EAGERLY: Duration = Duration::from_secs(10);

/// How often an unresponsive connection is asked and looked at.
pub const PROBE_WHILE_SILENT: Duration = Duration::from_millis(250);

/// So long may a peer be silent while work is under way and something awaits its acknowledgement; then the
/// connection is closed, and all that is on it. An outage half as long ends nothing: when nothing more fits
/// the congestion window, our probes included, QUIC repeats at intervals that double (RFC 9002, section 6.2),
/// so that it may take as long again until a packet is tried. And nobody is kept waiting for a dead
/// peer as long as [`IDLE_TIMEOUT`], or for minutes as by TCP.
pub const SILENCE_END: Duration = Duration::from_secs(10);

/// The same, if the peer's host says meanwhile that nobody listens there: its process has ended, and what
/// takes its place knows nothing of the connection. Not at the first word, for a firewall that is set anew
/// may say so in passing. Hosts say it to one asker once a second at least.
pub const REFUSAL_END: Duration = Duration::from_secs(1);

/// The delay a peer may add before it acknowledges (RFC 9000, section 18.2, the default).
pub const ACK_DELAY: Duration = Duration::from_millis(25);

/// Datagrams of one connection that wait to be read here; the oldest goes first. Fifty full packets:
/// more than a well-behaved peer says in a second, should it come at once. quinn counts 32 bytes more for each, and
/// holds nothing for a connection that has none waiting. It is also the most that we say a datagram may
/// have (RFC 9221, section 3); what fits a packet is far less.
pub const DATAGRAM_RECEIVE_BUFFER_BYTES: usize = 64 * 1024;

/// Datagrams of one connection that wait to be sent, while the path or the peer is slow; the oldest
/// goes first, for what is said once is soon stale. As much as the peer has room for.
pub const DATAGRAM_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// A peer that takes no datagram as long as this takes probes only: programs that know no others announce
/// 1,024 bytes, and ignore what is in them. Any path carries more, for a QUIC packet may have 1,200
/// bytes (RFC 9000, section 14), and less than 50 of them are overhead.
pub const DATAGRAM_BYTES_LEAST: usize = 1_100;

/// Peers that are shunned at one time. A mesh in which more of them go wrong needs people; each
/// entry takes at most 2 KiB.
pub const SHUNNED_MAX: usize = 1_024;

/// The longest time a peer is shunned: somebody will have looked at it by then, and if it still floods
/// it is shunned again.
pub const SHUN_MAX: Duration = Duration::from_secs(3_600);

/// Socket buffers we ask for; the system may give less. A burst of 4 MiB at 10 Gbit/s lasts 3 ms,
/// about what a busy scheduler keeps a task waiting.
pub const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// A credential file. A bundle of 64 roots as PEM is under 200 KiB.
pub const CREDENTIAL_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How often credential files are looked at.
pub const CREDENTIAL_POLL: Duration = Duration::from_secs(1);

/// How long a changed credential file must stay the same before it is taken. Far longer than between
/// the two system calls of a program that writes a file in place.
pub const CREDENTIAL_SETTLE: Duration = Duration::from_millis(100);

/// How long closing waits for the system to send the last packets.
pub const CLOSE_FLUSH: Duration = Duration::from_millis(500);
