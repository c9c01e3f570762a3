//! The admin API: what a node shows, and the few things it can be told.
//!
//! Reading is open on loopback; actions need the Unix socket's owner or the token. Requests that a
//! web page could have made are refused (`guard`). Field names are stable ([`view`]).

mod guard;
mod instances;
pub mod members;
pub mod routes;
mod stall;
pub mod view;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, SERVER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;

use crate::app::Shown;
use crate::config::Config;
use crate::drain::Shutdown;
use crate::proxy::gate::Gate;
use crate::proxy::listener;
use crate::reload::Outcome;
use crate::sockets::Sockets;
use crate::unix_socket::{Access, OwnedSocket};
use guard::{Caller, Guard, Refused};
use stall::Stalling;

/// Connections that ask at a time, by the port: people, a scraper, an orchestrator's probes.
const PORT_CONNECTIONS_MAX: usize = 64;

/// The same by the socket, whose owner nobody at the port can shut out.
const SOCKET_CONNECTIONS_MAX: usize = 16;

/// Those that are told at a time that they are too many.
const REFUSALS_MAX: usize = 16;

/// All of them, for who counts descriptors.
pub(crate) const CONNECTIONS_MAX: usize = PORT_CONNECTIONS_MAX + SOCKET_CONNECTIONS_MAX + REFUSALS_MAX;

/// A client that is slower with its request head is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may take nothing of its answer. The largest are some hundred kilobytes of metrics.
const WRITE_STALL_LIMIT: Duration = Duration::from_secs(10);

/// How long a client that is one too many has to take its answer.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// That answer.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    content-length: 49\r\nconnection: close\r\n\r\n{\"error\":\"too many connections; try again later\"}";

/// The bound admin API.
pub(crate) struct Admin {
    port: TcpListener,
    socket: Option<OwnedSocket>,
    state: Arc<State>,
}

struct State {
    shown: Shown,
    guard: Guard,
    /// By the port.
    connections: Gate,
    /// By the socket: whoever crowds the port does not shut the owner out.
    socket_connections: Gate,
    /// Connections that are told that there are too many.
    refusals: Gate,
}

impl Admin {
    /// Binds the port and the socket.
    pub(crate) async fn bind(
        config: &Config,
        token: watch::Receiver<Option<String>>,
        shown: Shown,
        sockets: &mut Sockets,
    ) -> anyhow::Result<Self> {
        let port = listener::bind(config.admin.listen, "admin.listen", sockets).await?;
        let bind = |path| OwnedSocket::bind(path, "admin.socket", Access::Umask, sockets);
        let socket = config.admin.socket.as_deref().map(bind).transpose()?;
        let state = State {
            shown,
            guard: Guard::new(token),
            connections: Gate::new(PORT_CONNECTIONS_MAX),
            socket_connections: Gate::new(SOCKET_CONNECTIONS_MAX),
            refusals: Gate::new(REFUSALS_MAX),
        };
        Ok(Self { port, socket, state: Arc::new(state) })
    }

    /// Answers until it is dropped.
    pub(crate) async fn run(self) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.port.accept() => if let Some((stream, from)) = or_pause(accepted).await {
                    let local = stream.local_addr().is_ok_and(|local| local.ip().is_loopback());
                    let caller = Caller::Port { loopback: local && from.ip().is_loopback() };
                    connections.spawn(serve(stream, caller, self.state.clone()));
                },
                accepted = accept_unix(self.socket.as_ref()) => if let Some((stream, uid)) = or_pause(accepted).await {
                    let caller = Caller::Socket { owner: guard::may_act(uid) };
                    connections.spawn(serve(stream, caller, self.state.clone()));
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// Without descriptors every attempt fails at once; others must get their turn.
async fn or_pause<T>(accepted: io::Result<T>) -> Option<T> {
    if accepted.is_err() {
        tokio::time::sleep(listener::ACCEPT_PAUSE).await;
    }
    accepted.ok()
}

async fn accept_unix(socket: Option<&OwnedSocket>) -> io::Result<(tokio::net::UnixStream, u32)> {
    let Some(socket) = socket else { return std::future::pending().await };
    let (stream, _) = socket.listener().accept().await?;
    let uid = stream.peer_cred()?.uid();
    Ok((stream, uid))
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, caller: Caller, state: Arc<State>) {
    let gate = match caller {
        Caller::Port { .. } => &state.connections,
        Caller::Socket { .. } => &state.socket_connections,
    };
    let Some(_pass) = gate.enter() else { return refuse_connection(io, &state.refusals).await };
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(state.answer(caller, request).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) =
        builder.serve_connection(TokioIo::new(Stalling::new(io, WRITE_STALL_LIMIT)), service).await
    {
        debug!(%error, "admin connection ended");
    }
}

/// Says that there are too many, as long as there are not too many to be told so.
async fn refuse_connection(mut io: impl AsyncRead + AsyncWrite + Unpin, refusals: &Gate) {
    let Some(_pass) = refusals.enter() else { return };
    let tell = async {
        io.write_all(TOO_MANY).await?;
        io.shutdown().await?;
        // Closing with a request unread would take the answer back (a TCP reset).
        let mut request = [0; 4096];
        while io.read(&mut request).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(REFUSAL_LIMIT, tell).await;
}

impl State {
    async fn answer(&self, caller: Caller, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().trim_end_matches('/').to_owned();
        let path = path.as_str();
        let is_action = request.method() != Method::GET && request.method() != Method::HEAD;
        if let Err(refused) = self.guard.check(caller, request.headers(), path, is_action) {
            return refuse(&refused);
        }
        match path.strip_prefix("/v1/instances/") {
            Some(rest) if is_action => instances::act(self, request, rest).await,
            None if is_action => self.act(request.method(), path).await,
            _ => self.show(path).await,
        }
    }

    async fn show(&self, path: &str) -> Response<Full<Bytes>> {
        let shown = &self.shown;
        match path {
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" if shown.drain.is_draining() => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            "/ready" => text(StatusCode::OK, "ready\n"),
            "/metrics" => text(StatusCode::OK, shown.metrics.render()),
            "/v1/node" => answer(&view::node(shown)),
            "/v1/members" => answer(&members::members(shown).await),
            "/v1/convergence" => answer(&members::convergence(shown).await),
            "/v1/services" => answer(&view::services(shown)),
            "/v1/instances" => answer(&view::local_instances(shown)),
            "/v1/routes" => answer(&routes::routes(shown)),
            _ => {
                let of = |prefix: &str| path.strip_prefix(prefix);
                let one = match (of("/v1/services/"), of("/v1/routes/")) {
                    (Some(name), _) => view::service(shown, name).map(|view| answer(&view)),
                    (_, Some(name)) => routes::route(shown, name).map(|view| answer(&view)),
                    _ => None,
                };
                one.unwrap_or_else(|| not_found(path))
            }
        }
    }

    async fn act(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let shutdown = match (method, path) {
            (&Method::POST, "/v1/reload") => return self.reload().await,
            (&Method::POST, "/v1/drain") => Shutdown::Drain,
            (&Method::POST, "/v1/leave") => Shutdown::Leave,
            _ => return not_found(path),
        };
        self.shown.drain.request(shutdown);
        let mut response = answer(&json!({ "ok": true }));
        *response.status_mut() = StatusCode::ACCEPTED;
        response
    }
}

impl State {
    async fn reload(&self) -> Response<Full<Bytes>> {
        let Some(outcome) = self.shown.reload.reload().await else {
            let mut response = answer(&json!({ "ok": false, "error": "the node is stopping" }));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return response;
        };
        let mut response = answer(&outcome.to_json());
        *response.status_mut() = match outcome {
            Outcome::Applied { .. } => StatusCode::OK,
            Outcome::Mistaken(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Outcome::Failed(_) => StatusCode::CONFLICT,
        };
        response
    }
}

fn answer(value: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(value).unwrap_or_default();
    typed(StatusCode::OK, "application/json", body)
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    typed(status, "text/plain; version=0.0.4; charset=utf-8", body.into().into_bytes())
}

fn refuse(refused: &Refused) -> Response<Full<Bytes>> {
    let mut response = answer(&json!({ "error": refused.to_string() }));
    *response.status_mut() = refused.status();
    response
}

fn not_found(path: &str) -> Response<Full<Bytes>> {
    let mut response = answer(&json!({ "error": format!("nothing is known at {path}") }));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn typed(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(SERVER, HeaderValue::from_static("starling"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_too_many_is_told_so() {
        let (mut client, server) = tokio::io::duplex(1024);
        tokio::spawn(async move { refuse_connection(server, &Gate::new(1)).await });
        let mut told = String::new();
        client.read_to_string(&mut told).await.expect("told");
        let (head, body) = told.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}: {}", body.len());
    }
}
