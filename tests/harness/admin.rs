//! Asking a node's admin API, as people and scrapers do.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::wait::within;

/// A node's admin port.
#[derive(Clone, Copy, Debug)]
pub struct Admin {
    address: SocketAddr,
}

/// What it answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub text: String,
    /// The body, if it is JSON; else `Null`.
    pub json: Value,
}

impl Admin {
    /// At `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is at `path`.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[]).await
    }

    /// What is at `path`; `None` if nobody answers.
    pub async fn try_get(&self, path: &str) -> Option<Answer> {
        let stream = TcpStream::connect(self.address).await.ok()?;
        exchange(stream, self.request("GET", path, &[])).await
    }

    /// Any request; of `headers`, a `host` replaces the usual one.
    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let stream = TcpStream::connect(self.address).await.expect("the admin port accepts");
        exchange(stream, self.request(method, path, headers)).await.expect("an answer")
    }

    /// A request by the node's Unix socket.
    pub async fn ask_by_socket(&self, socket: &Path, method: &str, path: &str) -> Answer {
        self.send_by_socket(socket, method, path, "").await
    }

    /// The same with a body.
    pub async fn send_by_socket(&self, socket: &Path, method: &str, path: &str, body: &str) -> Answer {
        let stream = UnixStream::connect(socket).await.expect("the admin socket accepts");
        let request = self.request(method, path, &[]).map(|_| Full::from(body.to_owned()));
        exchange(stream, request).await.expect("an answer")
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(path).header("connection", "close");
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", self.address.to_string());
        }
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(Full::default()).expect("a request")
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Option<Answer> {
    within("the admin API's answer", async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.ok()?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let text = String::from_utf8_lossy(&body).into_owned();
        Some(Answer { status: head.status, headers: head.headers, text, json })
    })
    .await
}
