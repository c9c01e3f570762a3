//! Local listeners: a fixed port for one service, and one port for HTTP by name.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use starling_gossip::identity::ServiceName;
use starling_gossip::record::Protocol;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use crate::live::{HOLD, HOLD_STEP};
use crate::proxy::body::AnswerBody;
use crate::proxy::failure::Flag;
use crate::proxy::gate::{Gate, Pass};
use crate::proxy::outbound::Outbound;
use crate::proxy::{headers, name, tunnel};
use crate::upstream::http2::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};

/// After an accept failed for want of descriptors, others end meanwhile.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A client that speaks first does so at once.
const FIRST_BYTES: Duration = Duration::from_secs(1);

/// What a local listener serves.
#[derive(Clone)]
pub(crate) enum Serves {
    /// One service, as HTTP or TCP by what its instances speak.
    Service(ServiceName),
    /// HTTP, by the name in each request; and tunnels by `CONNECT`.
    ByName,
}

/// A bound local listener.
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) serves: Serves,
    pub(crate) outbound: Arc<Outbound>,
    /// Local connections.
    pub(crate) connections: Gate,
}

impl Listener {
    /// Accepts until it is dropped.
    pub(crate) async fn run(self) {
        loop {
            let (client, from) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a local connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.connections.enter() {
                Some(pass) => self.start(client, pass),
                None => {
                    debug!(%from, flag = Flag::Overflow.as_str(), "local connection refused: as many as allowed");
                    tunnel::reset(&client);
                }
            }
        }
    }

    fn start(&self, client: TcpStream, pass: Pass) {
        let (serves, outbound) = (self.serves.clone(), self.outbound.clone());
        // Requests are small and wait for answers; Nagle's algorithm would hold them back.
        let _ = client.set_nodelay(true);
        tokio::spawn(async move {
            let _pass = pass;
            let is_http = match &serves {
                Serves::ByName => true,
                Serves::Service(service) => match outbound.will_speak(service.as_str()).await {
                    Some(protocol) => protocol == Protocol::Http,
                    None => begins_like_http(&client).await,
                },
            };
            match &serves {
                Serves::Service(service) if !is_http => outbound.carry(service.as_str(), client).await,
                _ => serve_http(TokioIo::new(client), serves, outbound).await,
            }
        });
    }
}

impl Outbound {
    /// What a service's instances speak, if any are known.
    fn speaks(&self, service: &str) -> Option<Protocol> {
        self.table.load().route(service).map(|route| route.route.protocol)
    }

    /// The same, once it is known: a program that starts together with its sidecar calls before
    /// the mesh has been heard.
    async fn will_speak(&self, service: &str) -> Option<Protocol> {
        let end = self.clock.now() + HOLD;
        loop {
            let protocol = self.speaks(service);
            if protocol.is_some() || self.clock.now() >= end {
                return protocol;
            }
            tokio::time::sleep(HOLD_STEP).await;
        }
    }
}

/// Whether a client of a service that nobody announces speaks HTTP, and so understands an answer.
/// One that waits for the server to speak first does not.
async fn begins_like_http(client: &TcpStream) -> bool {
    let mut first = [0; 3];
    match tokio::time::timeout(FIRST_BYTES, client.peek(&mut first)).await {
        Ok(Ok(count)) => count > 0 && first[..count].iter().all(u8::is_ascii_uppercase),
        Ok(Err(_)) | Err(_) => false,
    }
}

async fn serve_http(
    client: impl Read + Write + Unpin + Send + 'static,
    serves: Serves,
    outbound: Arc<Outbound>,
) {
    let streams_max = u32::try_from(outbound.gate.limit()).unwrap_or(u32::MAX);
    let service = service_fn(move |request: Request<Incoming>| {
        let (serves, outbound) = (serves.clone(), outbound.clone());
        async move { Ok::<_, Infallible>(answer(&serves, &outbound, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .max_concurrent_streams(streams_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    if let Err(error) = builder.serve_connection_with_upgrades(client, service).await {
        debug!(%error, "local HTTP connection ended");
    }
}

async fn answer(
    serves: &Serves,
    outbound: &Arc<Outbound>,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    let service = match serves {
        Serves::Service(service) => return outbound.handle(service.as_str(), request).await,
        Serves::ByName => name::service_of(&request),
    };
    match service {
        Ok(service) if request.method() == Method::CONNECT => connect(outbound, &service, request).await,
        Ok(service) => outbound.handle(&service, request).await,
        Err(failure) => failure.answer(headers::is_grpc(request.headers())),
    }
}

/// `CONNECT service.mesh:port` opens a tunnel (RFC 9110, section 9.3.6); the port is ignored, for
/// a service has no other than its instances'. Inside a tunnel to an HTTP service HTTP is spoken, and
/// read, like anywhere: its workload is told who calls.
async fn connect(
    outbound: &Arc<Outbound>,
    service: &str,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    if let (Some(Protocol::Http), Ok(name)) = (outbound.speaks(service), service.parse()) {
        return match outbound.enter() {
            Ok(pass) => {
                tokio::spawn(serve_tunnel(request, Serves::Service(name), outbound.clone(), pass));
                Response::new(tunnel::no_body())
            }
            Err(failure) => failure.answer(false),
        };
    }
    match outbound.reach(service).await {
        Ok(mut reached) => {
            tokio::spawn(async move {
                let Ok(client) = hyper::upgrade::on(request).await else { return };
                let mut client = TokioIo::new(client);
                let carried = tunnel::carry(&mut client, reached.stream, &mut reached.exchange).await;
                if let Err(error) = carried {
                    debug!(%error, "tunnel broken");
                    tunnel::reset_upgraded(client.into_inner());
                }
            });
            Response::new(tunnel::no_body())
        }
        Err(failure) => failure.answer(false),
    }
}

/// Boxed, because a tunnel is served by the listener's code, which opens tunnels.
fn serve_tunnel(
    request: Request<Incoming>,
    serves: Serves,
    outbound: Arc<Outbound>,
    pass: Pass,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let _pass = pass;
        if let Ok(client) = hyper::upgrade::on(request).await {
            serve_http(client, serves, outbound).await;
        }
    })
}

/// Binds a local listener, or says which key of the configuration is in the way.
pub(crate) async fn bind(address: SocketAddr, key: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = "choose a free port, or stop the program that holds it";
        io::Error::new(error.kind(), format!("{key}: cannot listen on {address}: {error}; {hint}"))
    })
}
