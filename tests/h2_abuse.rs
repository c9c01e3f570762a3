//! Floods of HTTP/2, frame by frame, from a local client at its sidecar and from a workload at its own:
//! memory stays bounded, and everybody else is served.
//!
//! Each flood runs for as many bytes as it takes to see growth, or until its connection is ended.

use std::net::SocketAddr;
use std::time::Duration;

use starling_gossip::clock::Clock;
use starling_tests::workload::{Http, Tcp};
use starling_tests::{Mesh, Node, UNPROBED, get, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types and flags (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// What a flood sends at most, in as many seconds.
const FLOOD_BYTES: usize = 48 * 1024 * 1024;
const FLOOD: Duration = Duration::from_secs(6);

/// A node's resident memory may grow by this during a flood: one connection may hold an eighth of
/// [`SMALL`]'s.
const GROWTH_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A request beside a flood is answered within this.
const SERVED: Duration = Duration::from_secs(10);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// `GET /` of `web.mesh`, with HPACK's static table (RFC 7541, appendix A).
fn get_block() -> Vec<u8> {
    [&[0x82, 0x84, 0x86, 0x41, 8][..], b"web.mesh"].concat()
}

/// A literal that is put into the dynamic table.
fn indexed(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        // An integer of a seven-bit prefix.
        let mut bytes = match text.len() {
            short @ 0..127 => vec![short as u8],
            long => {
                let (mut bytes, mut rest) = (vec![127], long - 127);
                while rest >= 128 {
                    bytes.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                bytes.push(rest as u8);
                bytes
            }
        };
        bytes.extend(text.as_bytes());
        bytes
    };
    [vec![0x40], text(name), text(value)].concat()
}

/// Of a machine of that size: what a connection may hold follows it.
const SMALL: &str = "[limits]\nmemory_max = \"256MiB\"";

/// One piece of a flood after the other; the number is the piece's.
type Flood = fn(u32) -> Vec<u8>;

/// What clients do to servers.
fn client_floods() -> Vec<(&'static str, Flood)> {
    vec![
        ("rapid reset", |number| {
            let id = number * 2 + 1;
            let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, id, &get_block());
            bytes.extend(frame(RST_STREAM, 0, id, &8u32.to_be_bytes()));
            bytes
        }),
        ("CONTINUATION without end", |number| match number {
            0 => frame(HEADERS, 0, 1, &get_block()),
            _ => frame(CONTINUATION, 0, 1, &indexed("x-more", &"a".repeat(8000))),
        }),
        ("empty CONTINUATION", |number| match number {
            0 => frame(HEADERS, 0, 1, &get_block()),
            _ => frame(CONTINUATION, 0, 1, &[]),
        }),
        ("empty DATA", |number| match number {
            0 => frame(HEADERS, END_HEADERS, 1, &[&[0x83, 0x84, 0x86, 0x41, 8][..], b"web.mesh"].concat()),
            _ => frame(DATA, 0, 1, &[]),
        }),
        ("SETTINGS", |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("PING", |number| frame(PING, 0, 0, &u64::from(number).to_be_bytes())),
        ("WINDOW_UPDATE of nothing", |_| frame(WINDOW_UPDATE, 0, 0, &0u32.to_be_bytes())),
        ("header bomb", |number| {
            // One large entry in the table, named four thousand times: 16 MB of headers in 4 KB.
            let id = number * 2 + 1;
            let mut block = get_block();
            block.extend(indexed("x-bomb", &"a".repeat(4000)));
            block.extend([0xBE; 4000]);
            frame(HEADERS, END_HEADERS | END_STREAM, id, &block)
        }),
        ("large head", |number| {
            let id = number * 2 + 1;
            let mut block = get_block();
            block.extend(indexed("x-large", &"a".repeat(15_000)));
            frame(HEADERS, END_HEADERS | END_STREAM, id, &block)
        }),
        ("requests that nobody reads the answers of", |number| {
            frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &get_block())
        }),
    ]
}

/// What servers do to clients, on the stream of a first request.
fn server_floods() -> Vec<(&'static str, Flood)> {
    vec![
        ("CONTINUATION without end", |number| match number {
            0 => frame(HEADERS, 0, 1, &[0x88]),
            _ => frame(CONTINUATION, 0, 1, &indexed("x-more", &"a".repeat(8000))),
        }),
        ("empty DATA", |number| match number {
            0 => frame(HEADERS, END_HEADERS, 1, &[0x88]),
            _ => frame(DATA, 0, 1, &[]),
        }),
        ("SETTINGS", |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("PING", |number| frame(PING, 0, 0, &u64::from(number).to_be_bytes())),
        ("1xx without end", |_| frame(HEADERS, END_HEADERS, 1, &[0x08, 3, b'1', b'0', b'3'])),
        ("header bomb", |_| {
            let mut block = vec![0x88];
            block.extend(indexed("x-bomb", &"a".repeat(4000)));
            block.extend([0xBE; 4000]);
            frame(HEADERS, END_HEADERS, 1, &block)
        }),
        ("DATA beyond every window", |number| match number {
            0 => frame(HEADERS, END_HEADERS, 1, &[0x88]),
            _ => frame(DATA, 0, 1, &[0; 16_000]),
        }),
        ("resets of streams that are not", |number| {
            frame(RST_STREAM, 0, number * 2 + 1, &8u32.to_be_bytes())
        }),
    ]
}

/// Sends a flood until it has had its time or is cut off; says how much was sent.
async fn flood(stream: &mut TcpStream, pieces: Flood) -> usize {
    let (mut number, mut sent, began) = (0, 0, Clock::System.now());
    while sent < FLOOD_BYTES && (Clock::System.now() - began) < FLOOD {
        let mut bytes = Vec::new();
        // Many at a time, as who means harm would; stream numbers end at 2^31.
        while bytes.len() < 64 * 1024 {
            bytes.extend(pieces(number));
            number += 1;
        }
        match tokio::time::timeout(Duration::from_secs(1), stream.write_all(&bytes)).await {
            Ok(Ok(())) => sent += bytes.len(),
            // Who reads no more is bounded as well as who hangs up.
            Ok(Err(_)) | Err(_) => break,
        }
    }
    sent
}

/// Asks for something else beside what goes on, for as long as `busy` takes.
async fn served_beside<T>(address: SocketAddr, busy: impl Future<Output = T>) -> T {
    let serve = async {
        loop {
            let began = Clock::System.now();
            assert_eq!(get(address, "other.mesh", "/").await.text(), "other");
            assert!((Clock::System.now() - began) < SERVED, "{:?}", (Clock::System.now() - began));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        done = busy => done,
        () = serve => unreachable!("it goes on"),
    }
}

fn check_memory(node: &Node, before: u64, what: &str, sent: usize) {
    let after = node.anonymous_bytes();
    let grown = after.saturating_sub(before);
    eprintln!("{what}: {sent} bytes sent, {} KiB grown to {} KiB", grown / 1024, after / 1024);
    assert!(grown < GROWTH_BYTES_MAX, "{what}: grown by {grown} bytes after {sent}");
}

#[tokio::test]
async fn a_local_client_costs_its_sidecar_nothing_but_its_own_connection() {
    let mesh = Mesh::new();
    let (web, other) = (Http::start(mesh.ip(), "web").await, Http::start(mesh.ip(), "other").await);
    let _servers = [
        mesh.node("web").serves_as("web", web.address(), UNPROBED).start().await,
        mesh.node("other").serves_as("other", other.address(), UNPROBED).start().await,
    ];
    let caller = mesh.node("caller").calls("web").calls("other").sections(SMALL).start().await;
    caller.finds("web", 1).await;
    caller.finds("other", 1).await;
    let (address, beside) = (caller.outbound("web"), caller.outbound("other"));
    for (what, pieces) in client_floods() {
        let before = caller.anonymous_bytes();
        let sent = served_beside(beside, async {
            let mut stream = TcpStream::connect(address).await.expect("the port accepts");
            stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.expect("written");
            flood(&mut stream, pieces).await
        })
        .await;
        check_memory(&caller, before, what, sent);
        assert_eq!(get(address, "web.mesh", "/").await.text(), "web", "{what}: the next client is served");
    }
}

#[tokio::test]
async fn a_workload_costs_its_sidecar_nothing_but_its_own_connection() {
    for (what, pieces) in server_floods() {
        let mesh = Mesh::new();
        let other = Http::start(mesh.ip(), "other").await;
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        let mut told = told;
        let hostile = Tcp::start(mesh.ip(), move |mut stream| {
            let tell = tell.clone();
            async move {
                let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat();
                if stream.write_all(&settings).await.is_err() || !hears_request(&mut stream).await {
                    return;
                }
                let sent = flood(&mut stream, pieces).await;
                let _ = tell.send(sent);
            }
        })
        .await;
        // One node with both, as an agent has: who is flooded must serve the other.
        let server = mesh
            .node("server")
            .identity("spiffe://acme/svc/other")
            .serves_as("other", other.address(), UNPROBED)
            .start()
            .await;
        let victim =
            mesh.node("victim").serves_as("web", hostile.address(), UNPROBED).sections(SMALL).start().await;
        let caller = mesh.node("caller").calls("web").calls("other").sections(SMALL).start().await;
        caller.finds("web", 1).await;
        caller.finds("other", 1).await;
        let before = (victim.anonymous_bytes(), caller.anonymous_bytes());
        let (address, beside) = (caller.outbound("web"), caller.outbound("other"));
        let sent = served_beside(beside, async {
            let asking = tokio::spawn(async move { ask_http2(address).await });
            let sent = within("the flood's end", told.recv()).await.expect("a flood");
            asking.abort();
            sent
        })
        .await;
        check_memory(&victim, before.0, &format!("{what}, at the callee"), sent);
        check_memory(&caller, before.1, &format!("{what}, at the caller"), sent);
        drop(server);
    }
}

/// Whether a request has come, after the client's preface.
async fn hears_request(stream: &mut TcpStream) -> bool {
    let mut preface = [0; PREFACE.len()];
    if stream.read_exact(&mut preface).await.is_err() {
        return false;
    }
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return false;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if stream.read_exact(&mut vec![0; length]).await.is_err() {
            return false;
        }
        if head[3] == HEADERS {
            return true;
        }
    }
}

/// A client of HTTP/2 that asks once and reads what comes.
async fn ask_http2(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.expect("the port accepts");
    let asked = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &get_block()),
    ];
    stream.write_all(&asked.concat()).await.expect("written");
    let mut buffer = vec![0; 64 * 1024];
    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}
