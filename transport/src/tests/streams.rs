//! What a stream promises.

use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::harness::{Ca, Node, eventually, tcp, within};
use crate::answer::AnswerError;
use crate::connection::OpenError;
use crate::header::RefusalReason;
use crate::limits::{
    CALLS_PER_CONNECTION_AT_FIRST, CALLS_PER_CONNECTION_MAX, CONNECTION_RECEIVE_WINDOW_BYTES,
    INCOMING_STREAMS_MAX, STREAM_RECEIVE_WINDOW_BYTES, Windows,
};
use crate::stream::MeshStream;

async fn pair(web: &Node, payments: &Node) -> (MeshStream, MeshStream) {
    let connection = web.dial(payments).await.expect("connected");
    let mut caller = connection.open(&tcp()).await.expect("a stream");
    let callee = payments.incoming().await.stream.accept().await.expect("the caller is there");
    within("the answer", caller.accepted()).await.expect("accepted");
    (caller, callee)
}

#[tokio::test]
async fn bytes_flow_both_ways_and_each_way_ends_alone() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let (mut caller, mut callee) = pair(&web, &payments).await;
    caller.write_all(b"question").await.expect("written");
    caller.shutdown().await.expect("ended");
    let mut question = Vec::new();
    within("the question", callee.read_to_end(&mut question)).await.expect("a clean end");
    assert_eq!(question, b"question");
    let parts = [IoSlice::new(b"an"), IoSlice::new(b""), IoSlice::new(b"swer")];
    assert_eq!(callee.write_vectored(&parts).await.expect("written"), 6);
    callee.shutdown().await.expect("ended");
    let mut answer = String::new();
    within("the answer", caller.read_to_string(&mut answer)).await.expect("a clean end");
    assert_eq!(answer, "answer");
}

#[tokio::test]
async fn halves_carry_bulk_without_copies() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let (caller, callee) = pair(&web, &payments).await;
    let (mut send, mut answers) = caller.into_split();
    let (mut echo, mut recv) = callee.into_split();
    let whole = Bytes::from((0..5_000_000u32).map(|n| n as u8).collect::<Vec<_>>());
    let sent = whole.clone();
    tokio::spawn(async move {
        send.write_chunk(sent).await.expect("written");
        send.shutdown().await.expect("ended");
    });
    tokio::spawn(async move {
        let mut bufs = [const { Bytes::new() }; 16];
        while let Some(count) = recv.read_chunks(&mut bufs).await.expect("read") {
            for chunk in &mut bufs[..count] {
                echo.write_chunk(std::mem::take(chunk)).await.expect("written");
            }
        }
        echo.shutdown().await.expect("ended");
    });
    let mut back = Vec::new();
    while let Some(chunk) = within("a chunk", answers.read_chunk(64 * 1024)).await.expect("read") {
        back.extend_from_slice(&chunk);
    }
    assert!(back == whole, "{} bytes came back", back.len());
}

/// Whoever fills the connection is stopped there, and once it is read all goes on.
#[tokio::test]
async fn unread_streams_hold_no_more_than_the_window() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let connection = web.dial(&payments).await.expect("connected");
    let written = Arc::new(AtomicU64::new(0));
    let streams = CONNECTION_RECEIVE_WINDOW_BYTES / STREAM_RECEIVE_WINDOW_BYTES + 3;
    let (mut callers, mut callees, mut header_bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..streams {
        callers.push(connection.open(&tcp()).await.expect("a stream"));
        header_bytes += tcp().encode().expect("a header").len() as u64;
        callees.push(payments.incoming().await.stream.accept().await.expect("there"));
    }
    for mut caller in callers {
        let written = written.clone();
        tokio::spawn(async move {
            while let Ok(bytes) = caller.write(&[7; 10_000]).await {
                written.fetch_add(bytes as u64, Ordering::SeqCst);
            }
        });
    }
    let window = u64::from(CONNECTION_RECEIVE_WINDOW_BYTES);
    let sent = || written.load(Ordering::SeqCst) + header_bytes;
    eventually("the window is full", || sent() >= window).await;
    let late = connection.open(&tcp()).await.err().expect("no room for a header");
    assert!(matches!(late, OpenError::Stalled { .. }), "{late}");
    assert_eq!(sent(), window, "as much was sent as is permitted");
    drop(callees);
    connection.open(&tcp()).await.expect("room again");
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset_not_an_end() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let (mut caller, mut callee) = pair(&web, &payments).await;
    caller.write_all(b"half of it").await.expect("written");
    let mut half = [0; 10];
    within("some bytes", callee.read_exact(&mut half)).await.expect("read");
    drop(caller);
    let error = within("the reset", callee.read(&mut half)).await.expect_err("no end of file");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let refused = within("the stop", async {
        loop {
            if let Err(error) = callee.write_all(&[0; 1024]).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(refused.await.kind(), ErrorKind::BrokenPipe);
    drop(callee);
    eventually("nothing counts as work", || !web.endpoint.pool().is_busy()).await;
}

#[tokio::test]
async fn an_unanswered_stream_is_reset() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let connection = web.dial(&payments).await.expect("connected");
    let mut caller = connection.open(&tcp()).await.expect("a stream");
    drop(payments.incoming().await);
    let error = within("the reset", caller.accepted()).await.expect_err("not accepted");
    assert!(
        matches!(error, AnswerError::Lost(ref lost) if lost.kind() == ErrorKind::ConnectionReset),
        "{error}"
    );
}

#[tokio::test]
async fn a_refusal_says_why() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let connection = web.dial(&payments).await.expect("connected");
    let mut caller = connection.open(&tcp()).await.expect("a stream");
    payments.incoming().await.stream.refuse(RefusalReason::Denied, "rule no-web").await;
    match within("the answer", caller.accepted()).await {
        Err(AnswerError::Refused(refusal)) => {
            assert_eq!((refusal.reason, refusal.detail.as_str()), (RefusalReason::Denied, "rule no-web"));
        }
        other => panic!("{other:?}"),
    }
    let error = caller.read(&mut [0; 1]).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "whoever only reads hears it too");
}

#[tokio::test]
async fn more_than_fits_is_refused_and_nothing_else_suffers() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let connection = web.dial(&payments).await.expect("connected");
    let mut callers = Vec::new();
    for _ in 0..INCOMING_STREAMS_MAX + 8 {
        callers.push(connection.open(&tcp()).await.expect("a stream"));
    }
    let mut overloaded = 0;
    within("eight refusals", async {
        let mut answers = tokio::task::JoinSet::new();
        for mut caller in callers {
            answers.spawn(async move { caller.accepted().await });
        }
        while overloaded < 8 {
            if let Some(Ok(Err(AnswerError::Refused(refusal)))) = answers.join_next().await {
                assert_eq!(refusal.reason, RefusalReason::Overloaded);
                overloaded += 1;
            }
        }
    })
    .await;
    payments.incoming().await.stream.accept().await.expect("those that wait are served");
    assert!(connection.is_usable());
}

#[tokio::test]
async fn more_streams_than_the_peer_permits_is_an_error() {
    const MEMORY_BYTES: u64 = 16 * 1024 * 1024;
    let permitted = Windows::within(Some(MEMORY_BYTES)).calls_max;
    assert!(permitted < CALLS_PER_CONNECTION_MAX, "{permitted}: a node with little memory permits less");
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node_within("payments", MEMORY_BYTES));
    let connection = web.dial(&payments).await.expect("connected");
    let mut open = Vec::new();
    for _ in 0..permitted {
        open.push((connection.open(&tcp()).await.expect("a stream"), payments.incoming().await));
    }
    let error = connection.open(&tcp()).await.err().expect("one too many");
    assert!(matches!(error, OpenError::TooManyStreams { .. }), "{error}");
    drop(open);
    within("room again", async { while connection.open(&tcp()).await.is_err() {} }).await;
}

#[tokio::test]
async fn a_peer_that_fills_its_connection_is_permitted_more() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let connection = web.dial(&payments).await.expect("connected");
    let mut open = Vec::new();
    for _ in 0..CALLS_PER_CONNECTION_AT_FIRST * 8 {
        open.push((connection.open(&tcp()).await.expect("a stream"), payments.incoming().await));
    }
}
