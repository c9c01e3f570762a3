//! WebSocket through two nodes, by a fixed port and by name.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use starling_tests::workload::{Tcp, sized_bytes};
use starling_tests::{Mesh, Node, UNPROBED, within};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

struct World {
    _workload: Tcp,
    _server: Node,
    caller: Node,
    _mesh: Mesh,
}

impl World {
    async fn new() -> Self {
        let mesh = Mesh::new();
        let workload = Tcp::start(mesh.ip(), echo).await;
        let server = mesh.node("server").serves_as("chat", workload.address(), UNPROBED).start().await;
        let caller = mesh.node("caller").calls("chat").start().await;
        caller.finds("chat", 1).await;
        Self { _workload: workload, _server: server, caller, _mesh: mesh }
    }
}

/// Says every message back; a close is answered by the library.
async fn echo(stream: TcpStream) {
    let Ok(mut socket) = accept_async(stream).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

async fn open(address: SocketAddr, host: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let stream = TcpStream::connect(address).await.expect("the node's port accepts");
    let uri = format!("ws://{host}/chat");
    Ok(within("the handshake", client_async(uri, stream)).await?.0)
}

async fn talk(mut socket: WebSocketStream<TcpStream>) {
    let large = Message::binary(sized_bytes(1024 * 1024));
    for message in [Message::text("hello"), Message::binary(vec![0, 255]), large, Message::text("")] {
        socket.send(message.clone()).await.expect("sent");
        let heard = within("an echo", socket.next()).await.expect("not the end").expect("a message");
        assert!(heard == message, "another message of {} bytes", heard.len());
    }
    let goodbye = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
    socket.close(Some(goodbye.clone())).await.expect("closed");
    let answer = within("the answer to a close", socket.next()).await.expect("an answer").expect("a message");
    assert_eq!(answer, Message::Close(Some(goodbye)));
    assert!(within("the end", socket.next()).await.is_none(), "closed means closed");
}

#[tokio::test]
async fn a_socket_opens_talks_and_closes_by_a_fixed_port() {
    let world = World::new().await;
    talk(open(world.caller.outbound("chat"), "chat.example").await.expect("open")).await;
}

#[tokio::test]
async fn a_socket_opens_talks_and_closes_by_name() {
    let world = World::new().await;
    talk(open(world.caller.http_proxy(), "chat.mesh").await.expect("open")).await;
}

#[tokio::test]
async fn a_socket_to_nobody_is_refused_by_the_mesh() {
    let world = World::new().await;
    let Err(Error::Http(answer)) = open(world.caller.http_proxy(), "ghost.mesh").await else {
        panic!("nobody is there to agree");
    };
    assert_eq!(answer.status().as_u16(), 404);
    assert_eq!(answer.headers()["x-starling-flags"], "NR");
}

#[tokio::test]
async fn a_server_that_hangs_up_ends_the_socket() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |stream| {
        let mut socket = accept_async(stream).await.expect("a handshake");
        let _one = socket.next().await;
    })
    .await;
    let _server = mesh.node("server").serves_as("chat", workload.address(), UNPROBED).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("chat", 1).await;
    let mut socket = open(caller.http_proxy(), "chat.mesh").await.expect("open");
    socket.send(Message::text("go")).await.expect("sent");
    let ended = within("the end", socket.next()).await;
    assert!(matches!(ended, None | Some(Err(_))), "{ended:?}");
}

#[tokio::test]
async fn a_switch_to_http2_is_not_offered_to_the_workload() {
    let mesh = Mesh::new();
    let workload = starling_tests::workload::Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut asked = starling_tests::request(http::Method::GET, "web.mesh", "/seen", "");
    for (name, value) in [
        ("connection", "upgrade, http2-settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
    ] {
        asked.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    let mut proxy = starling_tests::HttpConnection::open(caller.http_proxy()).await;
    let seen = proxy.send(asked).await.json();
    for name in ["upgrade", "http2-settings", "connection"] {
        assert_eq!(starling_tests::head_of(&seen, name), [""; 0], "{name}");
    }
}
