//! One large transfer through two nodes, checked by a digest: up, down, and both at once.
//!
//! 256 MiB in each, or as many as `STARLING_TESTS_TRANSFER_MIB` says. Nothing of it is kept: it is made,
//! carried, digested and forgotten, a block at a time.

use std::net::SocketAddr;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::hash::Context;
use starling_gossip::clock::Clock;
use starling_tests::workload::{Tcp, sized_bytes};
use starling_tests::{Mesh, Node, process};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

const BLOCK_BYTES: usize = 256 * 1024;

const MIB: u64 = 1024 * 1024;

/// How much goes each way.
fn transfer_bytes() -> u64 {
    let told = std::env::var("STARLING_TESTS_TRANSFER_MIB");
    told.map_or(256, |text| text.parse().expect("a number of MiB")) * MIB
}

/// SHA-256, as TLS has it.
fn digest() -> Box<dyn Context> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3");
    suite.common.hash_provider.start()
}

/// Sends so many bytes, no two blocks of them alike, ends, and gives their digest.
async fn send(mut to: impl AsyncWrite + Unpin, bytes: u64) -> Vec<u8> {
    let (mut block, mut sent) = (sized_bytes(BLOCK_BYTES), digest());
    for number in 0..bytes / BLOCK_BYTES as u64 {
        block[..8].copy_from_slice(&number.to_le_bytes());
        sent.update(&block);
        to.write_all(&block).await.expect("sent");
    }
    to.shutdown().await.expect("ended");
    sent.finish().as_ref().to_vec()
}

/// Hears to the end, and gives how many bytes there were and their digest.
async fn hear(mut from: impl AsyncRead + Unpin) -> (u64, Vec<u8>) {
    let (mut block, mut heard, mut bytes) = (vec![0; BLOCK_BYTES], digest(), 0);
    loop {
        let count = from.read(&mut block).await.expect("a clean end");
        if count == 0 {
            return (bytes, heard.finish().as_ref().to_vec());
        }
        heard.update(&block[..count]);
        bytes += count as u64;
    }
}

/// What each end says after its part.
type Part = (u64, Vec<u8>);

/// One end of a transfer: sends `bytes`, hears what comes, and gives the digests of both.
async fn take_part(stream: TcpStream, bytes: u64) -> (Vec<u8>, Part) {
    let (from, to) = stream.into_split();
    let sending = tokio::spawn(send(to, bytes));
    let heard = hear(from).await;
    (sending.await.expect("sent"), heard)
}

/// Carries so much up and so much down, and prints what that cost.
async fn transfer(
    what: &str,
    nodes: [&Node; 2],
    address: SocketAddr,
    workload: &mut Workload,
    sizes: [u64; 2],
) {
    let [up, down] = sizes;
    let clock = Clock::System;
    let spent = || nodes.iter().map(|node| process::processor_time(node.pid())).sum::<Duration>();
    let (began, before) = (clock.now(), spent());
    workload.says.send(down).expect("a workload");
    let stream = TcpStream::connect(address).await.expect("the fixed port accepts");
    let (client_sent, client_heard) = take_part(stream, up).await;
    let (workload_sent, workload_heard) = workload.parts.recv().await.expect("a workload's part");
    assert!(workload_heard == (up, client_sent), "{what}: other bytes went up");
    assert!(client_heard == (down, workload_sent), "{what}: other bytes came down");
    let (took, cost) = (clock.now() - began, spent() - before);
    let gib = (up + down) as f64 / (1024 * MIB) as f64;
    println!(
        "{what}: {gib} GiB in {took:.1?}, {:.0} MB/s, {:.2} s of processor time per GiB",
        (up + down) as f64 / 1e6 / took.as_secs_f64(),
        cost.as_secs_f64() / gib,
    );
}

/// A workload that is told how much its next caller is to hear.
struct Workload {
    says: tokio::sync::mpsc::UnboundedSender<u64>,
    parts: tokio::sync::mpsc::UnboundedReceiver<(Vec<u8>, Part)>,
    tcp: Tcp,
}

async fn workload(mesh: &Mesh) -> Workload {
    let (says, says_next) = tokio::sync::mpsc::unbounded_channel();
    let (tell, parts) = tokio::sync::mpsc::unbounded_channel();
    let says_next = std::sync::Arc::new(tokio::sync::Mutex::new(says_next));
    let tcp = Tcp::start(mesh.ip(), move |stream| {
        let (says_next, tell) = (says_next.clone(), tell.clone());
        async move {
            let bytes = says_next.lock().await.recv().await.expect("told");
            let _ = tell.send(take_part(stream, bytes).await);
        }
    })
    .await;
    Workload { says, parts, tcp }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_a_large_transfer_arrives_up_down_and_both_ways_at_once() {
    let mesh = Mesh::new();
    let mut workload = workload(&mesh).await;
    let keys = "protocol = \"tcp\"\n[service.probe]\noff = true";
    let server = mesh.node("server").serves_as("db", workload.tcp.address(), keys).start().await;
    let caller = mesh.node("caller").calls("db").start().await;
    caller.finds("db", 1).await;
    let (nodes, bytes) = ([&caller, &server], transfer_bytes());
    for (what, sizes) in [("up", [bytes, 0]), ("down", [0, bytes]), ("both ways", [bytes; 2])] {
        transfer(what, nodes, caller.outbound("db"), &mut workload, sizes).await;
    }
}
