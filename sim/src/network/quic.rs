//! PURE: what a QUIC transport adds to messages, in bytes. Counted by hand from the standards and from quinn,
//! for a node on IPv4; whoever measures otherwise on real processes changes it here.

use std::time::Duration;

/// What is added to each packet: IP and UDP headers (28), QUIC's own (1 byte of flags, a connection ID of 8,
/// up to 4 of packet number, and frames that come along, 22 in all), the seal of encryption (16).
pub const PACKET_OVERHEAD_BYTES: usize = 28 + 22 + 16;

/// What one message's frame adds: type, stream's number, length (7 bytes), and a stream's preamble (4), see
/// `transport::header`. A datagram's frame is shorter by a few bytes, which are not told apart.
pub const FRAME_BYTES: usize = 11;

/// A packet that acknowledges others and nothing else (RFC 9000, section 19.3).
pub const ACK_BYTES: usize = PACKET_OVERHEAD_BYTES + 5;

/// An acknowledgement may wait so long for a message to travel with, or a second packet to acknowledge
/// (`max_ack_delay`, RFC 9000, section 13.2.1).
pub const ACK_DELAY: Duration = Duration::from_millis(25);

/// How often a connection that carries nothing is kept alive, as in `transport`.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What that costs each of the two: one asks (PING), the other acknowledges, and either may be the one.
pub const KEEP_ALIVE_BYTES: usize = ACK_BYTES;

/// The dialler's first flight: a hello with keys of X25519MLKEM768 (1,216 bytes) fills two packets, which are
/// padded to 1,200 bytes (RFC 9000, section 14.1).
const FIRST_FLIGHT_BYTES: usize = 2 * (1200 + 28);

/// The server's: a hello with 1,120 bytes of keys in a padded packet; then its request for a certificate, two
/// certificates of P-256 (500 each), a signature and a MAC: 1,300 bytes in two packets.
const SERVER_FLIGHT_BYTES: usize = 1200 + 1300 + 3 * PACKET_OVERHEAD_BYTES;

/// The dialler's second: chain, signature, MAC.
const SECOND_FLIGHT_BYTES: usize = 1200 + 2 * PACKET_OVERHEAD_BYTES;

/// Acknowledgements under way, "the handshake is done", and the callee's welcome.
const CONFIRMATION_BYTES: usize = 6 * ACK_BYTES;

/// A mutual handshake of TLS 1.3, about 7 kB, half of it to each of the two.
pub const HANDSHAKE_BYTES: usize =
    (FIRST_FLIGHT_BYTES + SERVER_FLIGHT_BYTES + SECOND_FLIGHT_BYTES + CONFIRMATION_BYTES) / 2;

/// What each side sends of a new connection to find out how large packets may be: quinn tries 1,326, 1,389,
/// 1,420 and 1,452 bytes (its `MtuDiscoveryConfig`, which `transport` leaves as it is).
pub const PATH_PROBES_BYTES: usize = 1326 + 1389 + 1420 + 1452 + 4 * 28;

/// A dial that nobody answers: the first flight, again after three probe timeouts' pauses (300 and 600 ms)
/// until it is given up after two seconds.
pub const DIAL_FAILED_BYTES: usize = 3 * FIRST_FLIGHT_BYTES;

/// The first pause between dials to one address, and the longest, as in `transport`: each is twice the one before.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// See [`BACKOFF_MIN`].
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
