//! The workload behind a sidecar: a small HTTP server that says its name and who asks.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Context as _;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::proxy::own_headers::PEER;

/// Carries the workload's name in an answer.
pub(super) const NAME: &str = "x-demo-workload";

/// Its own sidecar is its only client, and keeps connections.
const CONNECTIONS_MAX: usize = 512;

/// Serves until the process ends.
pub(super) async fn serve(listen: SocketAddr, name: String) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let name = name.clone();
                let service = service_fn(move |request| {
                    let name = name.clone();
                    async move { Ok::<_, Infallible>(answer(&name, request).await) }
                });
                let server = hyper::server::conn::http1::Builder::new();
                connections.spawn(server.serve_connection(TokioIo::new(stream), service));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(name: &str, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    // A body that is left unread costs the connection.
    while let Some(Ok(_)) = request.body_mut().frame().await {}
    let caller = request.headers().get(PEER).and_then(|peer| peer.to_str().ok());
    let line = match caller {
        Some(caller) => format!("{name} answers {caller}\n"),
        None => format!("{name} answers somebody on this machine\n"),
    };
    let mut response = Response::new(Full::from(line));
    if let Ok(name) = name.parse() {
        response.headers_mut().insert(NAME, name);
    }
    response
}
