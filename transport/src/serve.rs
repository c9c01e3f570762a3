//! What a peer sends on a connection: streams read up to their header, datagrams, and handed on.
//!
//! Calls go to the node, gossip messages to the gossip loop, each through a bounded queue: a full
//! one refuses the newest. Unknown versions and kinds are answered, not punished: the peer may be
//! newer than we are.

use bytes::Bytes;
use quinn::{ReadExactError, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use starling_gossip::limits::MESSAGE_BYTES_MAX;
use starling_gossip::link::{Delivery, Received};

use crate::connection::{Connection, PEER_LEFT, WELCOMED, WorkGuard};
use crate::datagram::Datagram;
use crate::header::{
    HeaderError, PREAMBLE_BYTES, Preamble, Refusal, RefusalReason, StreamHeader, StreamKind,
};
use crate::incoming::{IncomingStream, UnansweredStream};
use crate::limits::{HEADER_TIMEOUT, MESSAGE_TIMEOUT};
use crate::permits::Permits;
use crate::stream::stream_code;
use crate::telemetry::{self, Direction};

/// Where a peer's streams go.
#[derive(Clone)]
pub(crate) struct Inbox {
    pub(crate) streams: mpsc::Sender<IncomingStream>,
    pub(crate) gossip: mpsc::Sender<Received>,
    /// Calls of one peer that may be open at once.
    pub(crate) calls_max: u32,
}

/// Why a stream has no header.
enum ReadHeaderError {
    /// It has something else.
    Header(HeaderError),
    /// The peer reset it, took too long, or is gone; nobody waits for an answer.
    Gone,
}

/// Serves `connection` until it is closed. Streams under way are bounded by what the peer is
/// permitted.
pub(crate) async fn serve(connection: Connection, inbox: Inbox) {
    let mut permits = Permits::new(inbox.calls_max);
    loop {
        tokio::select! {
            call = connection.quinn().accept_bi() => {
                let Ok((send, recv)) = call else { return };
                let (work, open) = connection.begin_call();
                if let Some(permitted) = permits.handle_opened(open) {
                    connection.quinn().set_max_concurrent_bi_streams(VarInt::from_u32(permitted));
                }
                tokio::spawn(read_call(send, recv, work, inbox.streams.clone()));
            }
            message = connection.quinn().accept_uni() => {
                let Ok(recv) = message else { return };
                tokio::spawn(read_message(recv, connection.clone(), inbox.gossip.clone()));
            }
            datagram = connection.quinn().read_datagram() => {
                let Ok(datagram) = datagram else { return };
                take_datagram(datagram, &connection, &inbox.gossip);
            }
        }
    }
}

async fn read_call(
    send: SendStream,
    mut recv: RecvStream,
    work: WorkGuard,
    streams: mpsc::Sender<IncomingStream>,
) {
    let peer = work.connection().peer().clone();
    let header = read_header(&mut recv).await;
    let stream = UnansweredStream::new(send, recv, work);
    let header = match header {
        Ok(header) if header.kind.is_call() => Ok(header),
        Ok(_) => Err(Refusal::new(RefusalReason::UnsupportedKind, "this kind of stream has one direction")),
        Err(ReadHeaderError::Header(error)) => Err(error.refusal()),
        Err(ReadHeaderError::Gone) => return,
    };
    let header = match header {
        Ok(header) => header,
        Err(refusal) => {
            tracing::debug!(peer = %peer.id, %refusal, "refused a stream");
            return stream.answer(refusal).await;
        }
    };
    if let Err(error) = streams.try_send(IncomingStream { peer, header, stream }) {
        let (incoming, refusal) = match error {
            TrySendError::Full(incoming) => {
                (incoming, Refusal::new(RefusalReason::Overloaded, "too many streams wait here already"))
            }
            TrySendError::Closed(incoming) => {
                (incoming, Refusal::new(RefusalReason::Draining, "this node is stopping"))
            }
        };
        incoming.stream.answer(refusal).await;
    }
}

async fn read_message(mut recv: RecvStream, connection: Connection, gossip: mpsc::Sender<Received>) {
    let kind = match read_header(&mut recv).await {
        Ok(header) => header.kind,
        Err(ReadHeaderError::Gone) => return,
        Err(ReadHeaderError::Header(error)) => {
            return reject_message(&mut recv, &connection, &error.refusal());
        }
    };
    match kind {
        StreamKind::Gossip => read_gossip(recv, &connection, &gossip).await,
        StreamKind::Welcome => drop(connection.mark(WELCOMED, true)),
        StreamKind::Goodbye => drop(connection.mark(PEER_LEFT, true)),
        StreamKind::Tcp { .. }
        | StreamKind::Http1 { .. }
        | StreamKind::Http2 { .. }
        | StreamKind::Http1Messages { .. }
        | StreamKind::Http2Messages { .. } => {
            let refusal = Refusal::new(RefusalReason::UnsupportedKind, "a call needs both directions");
            reject_message(&mut recv, &connection, &refusal);
        }
    }
}

async fn read_gossip(mut recv: RecvStream, connection: &Connection, gossip: &mpsc::Sender<Received>) {
    let message = match tokio::time::timeout(MESSAGE_TIMEOUT, recv.read_to_end(MESSAGE_BYTES_MAX)).await {
        Ok(Ok(message)) => message,
        Ok(Err(quinn::ReadToEndError::TooLong)) => return telemetry::gossip_dropped("oversized"),
        Ok(Err(quinn::ReadToEndError::Read(_))) | Err(_) => return telemetry::gossip_dropped("truncated"),
    };
    hand_on(message, Delivery::Reliable, connection, gossip);
}

fn take_datagram(datagram: Bytes, connection: &Connection, gossip: &mpsc::Sender<Received>) {
    match Datagram::decode(datagram) {
        Datagram::Probe => {}
        // Copied: a slice would hold the whole packet, or all that came with it, while it waits.
        Datagram::Gossip(message) => hand_on(message.to_vec(), Delivery::Once, connection, gossip),
        Datagram::Unknown => telemetry::datagram_ignored(),
    }
}

fn hand_on(message: Vec<u8>, delivery: Delivery, connection: &Connection, gossip: &mpsc::Sender<Received>) {
    connection.note_use();
    let Ok(place) = gossip.try_reserve() else {
        return telemetry::gossip_dropped("receive_queue_full");
    };
    telemetry::gossip_message(Direction::Inbound, delivery, &message);
    let peer = connection.peer();
    place.send(Received { from: peer.address, peer: peer.id.clone(), message });
}

/// There is no way back on such a stream; the stop's code is all the sender hears.
fn reject_message(recv: &mut RecvStream, connection: &Connection, refusal: &Refusal) {
    telemetry::stream_refused(refusal.reason);
    tracing::debug!(peer = %connection.peer().id, %refusal, "stopped a stream");
    let _ = recv.stop(VarInt::from_u32(stream_code::REFUSED));
}

async fn read_header(recv: &mut RecvStream) -> Result<StreamHeader, ReadHeaderError> {
    match tokio::time::timeout(HEADER_TIMEOUT, read_header_unbounded(recv)).await {
        Ok(header) => header,
        Err(_) => Err(ReadHeaderError::Gone),
    }
}

async fn read_header_unbounded(recv: &mut RecvStream) -> Result<StreamHeader, ReadHeaderError> {
    let mut first = [0; PREAMBLE_BYTES];
    recv.read_exact(&mut first).await.map_err(cut_short)?;
    let preamble = Preamble::decode(first).map_err(ReadHeaderError::Header)?;
    let mut body = vec![0; preamble.body_bytes()];
    recv.read_exact(&mut body).await.map_err(cut_short)?;
    StreamHeader::decode(preamble, &body).map_err(ReadHeaderError::Header)
}

fn cut_short(error: ReadExactError) -> ReadHeaderError {
    match error {
        ReadExactError::FinishedEarly(bytes) => {
            ReadHeaderError::Header(HeaderError::Malformed(format!("it ends after {bytes} bytes")))
        }
        ReadExactError::ReadError(_) => ReadHeaderError::Gone,
    }
}
