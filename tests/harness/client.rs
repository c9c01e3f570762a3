//! Programs in front of a node: an HTTP client that shows everything and decides nothing.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::wait::within;

/// A request's body: whole, or as it comes.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// One kept-alive HTTP/1.1 connection.
pub struct HttpConnection {
    sender: SendRequest<Body>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    /// Status, version and headers.
    pub head: http::response::Parts,
    /// The whole body.
    pub body: Bytes,
}

impl HttpConnection {
    /// Connects to `address`.
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the node's port accepts");
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection.with_upgrades());
        Self { sender }
    }

    /// Sends `request` and gives the answer as it begins. Fails if the connection has ended.
    pub async fn begin(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        within("the connection to be free", self.sender.ready()).await?;
        within("the head of an answer", self.sender.send_request(request)).await
    }

    /// Sends `request` and reads the whole answer.
    pub async fn send(&mut self, request: Request<Body>) -> Reply {
        let response = self.begin(request).await.expect("an answer");
        Reply::read(response).await
    }

    /// Whether the other end keeps it open.
    pub async fn is_open(&mut self) -> bool {
        within("the connection's word", self.sender.ready()).await.is_ok()
    }
}

impl Reply {
    /// Reads an answer to its end.
    pub async fn read(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = within("the end of an answer", body.collect()).await.expect("a whole body").to_bytes();
        Self { head, body }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// A header's value; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// A request for `path` of `host`, with a body that is there already.
pub fn request(method: Method, host: &str, path: &str, body: impl Into<Bytes>) -> Request<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
    Request::builder().method(method).uri(path).header("host", host).body(body).expect("a request")
}

/// A plain request by a connection of its own.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Reply {
    HttpConnection::open(address).await.send(request(Method::GET, host, path, "")).await
}

/// Opens a tunnel by `CONNECT`; gives the answer's head and, if it is a success, the tunnel.
pub async fn connect_tunnel(
    proxy: SocketAddr,
    authority: &str,
) -> (http::response::Parts, Option<TokioIo<hyper::upgrade::Upgraded>>) {
    let mut connection = HttpConnection::open(proxy).await;
    let response = connection.begin(request(Method::CONNECT, authority, authority, "")).await;
    let mut response = response.expect("an answer");
    let tunnel = match response.status().is_success() {
        true => Some(TokioIo::new(hyper::upgrade::on(&mut response).await.expect("a tunnel"))),
        false => None,
    };
    (response.into_parts().0, tunnel)
}

/// The headers that a workload has seen, from the JSON that [`crate::workload::Http`] answers.
pub fn head_of<'a>(seen: &'a Value, name: &str) -> Vec<&'a str> {
    let pairs = seen["headers"].as_array().expect("headers");
    pairs.iter().filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect()
}
