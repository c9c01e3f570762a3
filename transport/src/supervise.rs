//! One task per connection: notices silence, sees unused connections out.
//!
//! It decides nothing itself: counters go into [`crate::silence`] and [`crate::retirement`], and
//! what they say is done. While the connection is idle it sleeps.

use std::sync::Arc;

use quinn::{ConnectionStats, VarInt};
use tokio::sync::watch;

use starling_gossip::clock::{Clock, Instant};

use crate::connection::{CLOSED, Connection, DOUBTED, GONE, LEAVING, PEER_LEFT, SILENT, SUPERSEDED};
use crate::header::{StreamHeader, StreamKind};
use crate::knock::Knock;
use crate::limits::SILENCE_TICK;
use crate::retirement::{Retirement, Situation, Step};
use crate::silence::{Doubt, Sample, Silence};
use crate::telemetry;

/// Codes with which a connection is closed (RFC 9000, section 19.19, application codes).
pub(crate) mod close_code {
    /// Nobody needs it any more.
    pub(crate) const UNUSED: u32 = 0;
    /// The node goes away.
    pub(crate) const SHUTDOWN: u32 = 1;
    /// Too many connections.
    pub(crate) const OVERLOADED: u32 = 2;
    /// The dialler gave up.
    pub(crate) const ABANDONED: u32 = 3;
    /// The peer's identity is believed no more.
    pub(crate) const REVOKED: u32 = 4;
    /// The peer sent more than it may; for a while we have nothing to do with it.
    pub(crate) const SHUNNED: u32 = 5;
    /// The peer has not answered for so long that it is taken for dead.
    pub(crate) const SILENT: u32 = 6;
}

/// What a peer hears with [`close_code::SHUNNED`].
pub(crate) const SHUNNED_REASON: &str = "you sent more than you may";

/// Watches `connection` until it is closed. `changes` hears of silence and of its end, `doubt_others` what
/// silence says about the peer's other connections.
pub(crate) async fn supervise(
    connection: Connection,
    clock: Clock,
    changes: Arc<watch::Sender<u64>>,
    doubt_others: impl Fn(Doubt),
) {
    telemetry::connection_opened();
    let mut silence = Silence::new(sample(&connection, false, false), clock.now());
    let mut retirement = Retirement::default();
    let mut knock = None;
    let closed = connection.quinn().closed();
    tokio::pin!(closed);
    loop {
        let tell = Tell { changes: &changes, doubt_others: &doubt_others };
        let due = look(&connection, &mut silence, &mut retirement, &mut knock, clock.now(), &tell);
        tokio::select! {
            why = &mut closed => {
                tracing::debug!(peer = %connection.peer().id, address = %connection.peer().address, %why, "connection closed");
                break;
            }
            () = connection.woken() => {}
            () = sleep_until(due) => {}
        }
    }
    connection.mark(CLOSED, true);
    telemetry::connection_closed();
    changes.send_modify(|count| *count += 1);
}

/// Who hears of what a look finds.
struct Tell<'t, D> {
    changes: &'t watch::Sender<u64>,
    doubt_others: &'t D,
}

/// One look; says when the next is due.
fn look(
    connection: &Connection,
    silence: &mut Silence,
    retirement: &mut Retirement,
    knock: &mut Option<Knock>,
    now: Instant,
    tell: &Tell<'_, impl Fn(Doubt)>,
) -> Option<Instant> {
    let touched = connection.take_touch();
    let refused = knock.as_ref().is_some_and(Knock::ask);
    let verdict = silence.handle_sample(sample(connection, touched, refused), now);
    // Before anybody hears of the silence, and looks for another connection.
    if connection.is_responsive()
        && let Some(doubt) = silence.doubt()
    {
        (tell.doubt_others)(doubt);
    }
    if connection.mark(SILENT, !verdict.responsive) {
        tell.changes.send_modify(|count| *count += 1);
        let peer = connection.peer();
        if verdict.responsive {
            tracing::info!(peer = %peer.id, address = %peer.address, "peer answers again");
        } else {
            telemetry::peer_unresponsive();
            tracing::info!(peer = %peer.id, address = %peer.address, "peer does not answer");
        }
    }
    connection.mark(DOUBTED, verdict.doubted);
    if verdict.gone {
        let peer = connection.peer();
        tracing::info!(peer = %peer.id, address = %peer.address, refused, "peer is taken for dead");
        connection.mark(GONE, true);
        connection.close(close_code::SILENT, "you have fallen silent");
    }
    match verdict.responsive {
        true => *knock = None,
        false if knock.is_none() && connection.is_busy() => *knock = Knock::at(connection.peer().address),
        false => {}
    }
    if verdict.probe {
        connection.probe();
    }
    retire(connection, retirement, now);
    let due = earlier(silence.poll_timeout(), retirement.poll_timeout());
    if due.is_none_or(|due| due > now + SILENCE_TICK) && !connection.park() {
        return Some(now + SILENCE_TICK);
    }
    due
}

fn retire(connection: &Connection, retirement: &mut Retirement, now: Instant) {
    let flags = connection.flags_now();
    let situation = Situation {
        busy: connection.is_busy(),
        used: connection.take_use(),
        superseded: flags & SUPERSEDED != 0,
        peer_left: flags & PEER_LEFT != 0,
    };
    match retirement.handle_situation(situation, now) {
        Step::Stay => {}
        Step::SayGoodbye => {
            connection.mark(LEAVING, true);
            tokio::spawn(say(connection.clone(), StreamKind::Goodbye));
        }
        Step::Close => connection.quinn().close(VarInt::from_u32(close_code::UNUSED), b"unused"),
    }
}

/// Sends one of the empty announcements. A connection that does not take it is lost anyway.
pub(crate) async fn say(connection: Connection, kind: StreamKind) {
    let header = StreamHeader::new(kind).encode().expect("announcements have no target");
    if let Ok(mut send) = connection.quinn().open_uni().await
        && send.write_all(&header).await.is_ok()
    {
        let _ = send.finish();
    }
}

fn sample(connection: &Connection, touched: bool, refused: bool) -> Sample {
    let stats = connection.quinn().stats();
    Sample {
        datagrams_received: stats.udp_rx.datagrams,
        eliciting_frames_sent: eliciting_frames_sent(&stats),
        stream_frames: stats.frame_tx.stream.wrapping_add(stats.frame_rx.stream),
        rtt: stats.path.rtt,
        busy: connection.is_busy(),
        touched,
        refused,
        doubt: connection.take_doubt(),
    }
}

/// All frames but ACK, PADDING and CONNECTION_CLOSE (RFC 9002, section 2), without those of MTU probes.
fn eliciting_frames_sent(stats: &ConnectionStats) -> u64 {
    let sent = &stats.frame_tx;
    let frames = sent.ack_frequency
        + sent.crypto
        + sent.data_blocked
        + sent.datagram
        + u64::from(sent.handshake_done)
        + sent.immediate_ack
        + sent.max_data
        + sent.max_stream_data
        + sent.max_streams_bidi
        + sent.max_streams_uni
        + sent.new_connection_id
        + sent.new_token
        + sent.path_challenge
        + sent.path_response
        + sent.ping
        + sent.reset_stream
        + sent.retire_connection_id
        + sent.stream_data_blocked
        + sent.streams_blocked_bidi
        + sent.streams_blocked_uni
        + sent.stop_sending
        + sent.stream;
    // An MTU probe is a PING in a packet that may be too large for the path, with an IMMEDIATE_ACK where the peer knows it.
    let probes = stats.path.sent_plpmtud_probes;
    frames.saturating_sub(probes + probes.min(sent.immediate_ack))
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
