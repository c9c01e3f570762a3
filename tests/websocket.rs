//! WebSocket through two nodes, by a fixed port and by name, in HTTP/1.1 and in HTTP/2 (RFC 8441) on
//! either side.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http2::handshake;
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use starling_tests::workload::{Tcp, sized_bytes};
use starling_tests::{Mesh, Node, UNPROBED, within};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

struct World {
    _workload: Tcp,
    _server: Node,
    caller: Node,
    _mesh: Mesh,
}

impl World {
    async fn new() -> Self {
        Self::before(echo).await
    }

    /// Before a workload that has each connection served by `talk`.
    async fn before<F>(talk: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mesh = Mesh::new();
        let workload = Tcp::start(mesh.ip(), talk).await;
        let server = mesh.node("server").serves_as("chat", workload.address(), UNPROBED).start().await;
        let caller = mesh.node("caller").calls("chat").start().await;
        caller.finds("chat", 1).await;
        Self { _workload: workload, _server: server, caller, _mesh: mesh }
    }
}

/// Says every message back; a close is answered by the library.
async fn echo(stream: TcpStream) {
    let Ok(socket) = accept_async(stream).await else { return };
    echo_in(socket).await;
}

async fn echo_in(mut socket: WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>) {
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

async fn talk(mut socket: WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>) {
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

/// A socket in HTTP/2, as one stream of its connection.
async fn open_http2(address: SocketAddr, host: &str) -> (StatusCode, Option<WebSocketStream<Tunnel>>) {
    open_http2_for("websocket", address, host).await
}

async fn open_http2_for(
    protocol: &'static str,
    address: SocketAddr,
    host: &str,
) -> (StatusCode, Option<WebSocketStream<Tunnel>>) {
    let stream = TcpStream::connect(address).await.expect("the node's port accepts");
    let (mut sender, mut connection) =
        handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    // Until the node's SETTINGS say that it takes sockets; hyper reads them in a task of its own.
    while !connection.is_extended_connect_protocol_enabled() {
        let polled = tokio::time::timeout(SETTINGS, &mut connection).await;
        assert!(polled.is_err(), "the connection ended");
    }
    tokio::spawn(connection);
    let asked = Request::connect(format!("http://{host}/chat")).header("sec-websocket-version", "13");
    let asked = asked.extension(Protocol::from_static(protocol)).body(Empty::new()).expect("a request");
    let mut answer = within("an answer", sender.send_request(asked)).await.expect("a head");
    let status = answer.status();
    if !status.is_success() {
        return (status, None);
    }
    let tunnel = TokioIo::new(hyper::upgrade::on(&mut answer).await.expect("a tunnel"));
    // The connection's other streams need it no longer than the socket does.
    tokio::spawn(async move {
        let _sender = sender;
        std::future::pending::<()>().await;
    });
    (status, Some(WebSocketStream::from_raw_socket(tunnel, Role::Client, None).await))
}

/// A look at what has been read.
const SETTINGS: Duration = Duration::from_millis(20);

type Tunnel = TokioIo<hyper::upgrade::Upgraded>;

/// A workload that takes sockets in HTTP/2, and nothing else.
async fn serve_http2(stream: TcpStream) {
    let service = service_fn(|mut request: Request<Incoming>| async move {
        if request.extensions().get::<Protocol>().is_none_or(|protocol| protocol.as_str() != "websocket") {
            return Response::builder().status(400).body(Empty::<Bytes>::new());
        }
        tokio::spawn(async move {
            let tunnel = hyper::upgrade::on(&mut request).await.expect("a tunnel");
            echo_in(WebSocketStream::from_raw_socket(TokioIo::new(tunnel), Role::Server, None).await).await;
        });
        Response::builder().body(Empty::new())
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.enable_connect_protocol().serve_connection(TokioIo::new(stream), service).await;
}

#[tokio::test]
async fn a_socket_in_http2_reaches_a_workload_of_http1() {
    let world = World::new().await;
    for (address, host) in
        [(world.caller.outbound("chat"), "any.example"), (world.caller.http_proxy(), "chat.mesh")]
    {
        talk(open_http2(address, host).await.1.expect("open")).await;
    }
    let (status, _) = open_http2_for("connect-udp", world.caller.http_proxy(), "chat.mesh").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "no tunnel for what is no stream of bytes");
    let (status, socket) = open_http2(world.caller.http_proxy(), "ghost.mesh").await;
    assert!(status == StatusCode::NOT_FOUND && socket.is_none(), "{status}");
}

#[tokio::test]
async fn a_socket_reaches_a_workload_that_takes_them_in_http2_only() {
    let world = World::before(serve_http2).await;
    let address = world.caller.outbound("chat");
    talk(open(address, "chat.example").await.expect("open")).await;
    talk(open_http2(address, "chat.example").await.1.expect("open")).await;
    talk(open(world.caller.http_proxy(), "chat.mesh").await.expect("open")).await;
}

#[tokio::test]
async fn a_workload_of_http2_that_takes_no_sockets_says_so() {
    let world = World::before(async |stream| {
        let service = service_fn(async |_| Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())));
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    })
    .await;
    let address = world.caller.outbound("chat");
    let Err(Error::Http(answer)) = open(address, "chat.example").await else { panic!("refused") };
    assert_eq!(answer.headers()["x-starling-flags"], "UF");
    let (status, _) = open_http2(address, "chat.example").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

/// Any 2xx would open the socket in HTTP/2.
#[tokio::test]
async fn an_answer_that_is_no_switch_opens_no_socket() {
    let mesh = Mesh::new();
    let workload = starling_tests::workload::Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let (status, _) = open_http2(caller.http_proxy(), "web.mesh").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

/// What a client says right after asking to switch, without waiting for the answer.
#[tokio::test]
async fn what_is_said_early_is_not_lost() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
        while !heard.windows(4).any(|end| end == b"\r\n\r\n") {
            let read = stream.read(&mut buffer).await.expect("a head");
            heard.extend_from_slice(&buffer[..read]);
        }
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nearly answer;";
        stream.write_all(answer.as_bytes()).await.expect("written");
        tokio::io::copy(&mut stream.split().0, &mut tokio::io::sink()).await.expect("read");
    })
    .await;
    let _server = mesh.node("server").serves_as("chat", workload.address(), UNPROBED).start().await;
    let caller = mesh.node("caller").calls("chat").start().await;
    caller.finds("chat", 1).await;
    let mut client = TcpStream::connect(caller.outbound("chat")).await.expect("the port accepts");
    let asked = "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nearly words";
    client.write_all(asked.as_bytes()).await.expect("written");
    client.shutdown().await.expect("the end of it");
    let mut heard = Vec::new();
    within("the end", client.read_to_end(&mut heard)).await.expect("read");
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.starts_with("HTTP/1.1 101 ") && heard.ends_with("\r\n\r\nearly answer;"), "{heard}");
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
