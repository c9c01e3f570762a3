//! Local listeners: a fixed port for one service, and one port for HTTP by name.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use starling_gossip::record::Protocol;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tracing::{debug, info, warn};

use crate::config::Timeouts;
use crate::live::{HOLD, HOLD_STEP};
use crate::proxy::aside::Aside;
use crate::proxy::body::{AnswerBody, RequestBody};
use crate::proxy::failure::{self, Failure, Flag};
use crate::proxy::forward::Underway;
use crate::proxy::gate::{Gate, Held, Pass};
use crate::proxy::gathered::{Gathered, Turns};
use crate::proxy::heads::{HEAD_BYTES_MAX, HEADERS_MAX};
use crate::proxy::local_socket::{self, LocalSocket};
use crate::proxy::outbound::Outbound;
use crate::proxy::outbound_tcp::Reached;
use crate::proxy::overdue::{BreakOff, Overdue, Watch, Watches};
use crate::proxy::tunnel::Switched;
use crate::proxy::workload::Plain;
use crate::proxy::{headers, name, refusal, tunnel, websocket};
use crate::sockets::Sockets;
use crate::upstream::hop::HopBody;

/// After an accept failed for want of descriptors, others end meanwhile.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A client that speaks first does so at once.
const FIRST_BYTES: Duration = Duration::from_secs(1);

/// A client whose connection was accepted just before a stopping node accepts no more has so long to
/// send its request.
const FIRST_REQUEST: Duration = Duration::from_millis(250);

/// A connection that has been asked to end, and has no request under way, has so long to do it: as
/// long as a request's head may take. A client that reads nothing never does.
const FAREWELL: Duration = Duration::from_secs(10);

/// What a local listener serves.
#[derive(Clone)]
pub(crate) enum Serves {
    /// One service or a part of one, by its route's name, as HTTP or TCP by what its instances speak, within
    /// these times.
    Service(Arc<str>, Timeouts),
    /// HTTP, by the name in each request; and tunnels by `CONNECT`.
    ByName(Timeouts),
}

/// A bound local listener.
pub(crate) struct Listener {
    pub(crate) socket: LocalSocket,
    /// May change; a connection keeps what it began with. `None` where nothing is served any more, at a socket that
    /// whoever passed it keeps open: who connects is told at once.
    pub(crate) serves: Arc<ArcSwapOption<Serves>>,
    pub(crate) outbound: Arc<Outbound>,
    /// Who may connect, and for how long.
    pub(crate) clients: Clients,
}

/// The local connections of all listeners; cheap to clone.
#[derive(Clone)]
pub(crate) struct Clients {
    /// How many there are.
    pub(crate) connections: Gate,
    /// How many there are with those to workloads.
    pub(crate) descriptors: Gate,
    /// Which of them hold their place in vain.
    pub(crate) watches: Watches,
    /// Those that are being told that there is no room.
    pub(crate) refusals: Gate,
}

impl Listener {
    /// Accepts until the node stops. What has not been accepted then waits, if somebody else holds
    /// the socket too, for the process that comes after this one.
    pub(crate) async fn run(self) {
        let mut in_trouble = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.clients.connections.closed() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok(client) => {
                    if std::mem::take(&mut in_trouble) {
                        info!(listen = %self.socket, "accepting local connections again");
                    }
                    self.admit(client);
                }
                Err(error) => {
                    // Without descriptors every attempt fails at once; one line for all of them.
                    if !std::mem::replace(&mut in_trouble, true) {
                        warn!(%error, "cannot accept local connections; trying again");
                    }
                    metrics::counter!("starling_local_accept_errors_total").increment(1);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, client: Plain) {
        let Some(serves) = self.serves.load_full() else {
            return tunnel::reset_plain_unless_ended(&client);
        };
        if let (Some(pass), Some(descriptor)) =
            (self.clients.connections.enter(), self.clients.descriptors.enter())
        {
            let held = Held::new(pass, Some(descriptor)).coming_from(local_socket::source(&client));
            return self.start(client, Serves::clone(&serves), held);
        }
        metrics::counter!("starling_local_refused_total", "flag" => Flag::Overflow.as_str()).increment(1);
        let speaks_http = match &*serves {
            Serves::ByName(_) => true,
            Serves::Service(service, _) => self.outbound.speaks(service) == Some(Protocol::Http),
        };
        match self.clients.refusals.enter() {
            Some(pass) if speaks_http => {
                tokio::spawn(async move {
                    let _pass = pass;
                    refusal::tell(client).await;
                });
            }
            _ => tunnel::reset_plain_unless_ended(&client),
        }
    }

    fn start(&self, client: Plain, serves: Serves, held: Held) {
        let (outbound, clients) = (self.outbound.clone(), self.clients.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = serve(client, serves, outbound, clients, held.clone()) => {}
                () = Aside::new(held.cut()) => debug!("local connection cut off: memory is critical"),
            }
        });
    }
}

async fn serve(client: Plain, serves: Serves, outbound: Arc<Outbound>, clients: Clients, held: Held) {
    let is_http = match &serves {
        Serves::ByName(_) => true,
        Serves::Service(service, _) => match outbound.will_speak(service).await {
            Some(protocol) => protocol == Protocol::Http,
            None => begins_like_http(&client).await,
        },
    };
    // Each on the heap: a connection that carries bytes needs no room for HTTP.
    match &serves {
        Serves::Service(service, timeouts) if !is_http => {
            Box::pin(outbound.carry(service, client, timeouts.idle_of_connections())).await;
        }
        _ => Box::pin(serve_http(client, serves, outbound, clients, held)).await,
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
async fn begins_like_http(client: &Plain) -> bool {
    let mut first = [0; 3];
    match tokio::time::timeout(FIRST_BYTES, local_socket::peek(client, &mut first)).await {
        Ok(Ok(count)) => count > 0 && first[..count].iter().all(u8::is_ascii_uppercase),
        Ok(Err(_)) | Err(_) => false,
    }
}

async fn serve_http(
    client: impl AsyncRead + AsyncWrite + BreakOff + Unpin + Send + 'static,
    serves: Serves,
    outbound: Arc<Outbound>,
    clients: Clients,
    held: Held,
) {
    let (client, watch) = clients.watches.watch(client);
    let connections = clients.connections.clone();
    let watch = Arc::new(watch);
    let service = {
        let watch = watch.clone();
        // One count of references for each request, not one for each of these.
        let shared = Arc::new((serves, outbound.clone(), clients, held));
        service_fn(move |mut request: Request<Incoming>| {
            let mut uploading = None;
            if request.method() == Method::CONNECT && request.version() == Version::HTTP_2 {
                // The connection lives on beside its tunnels. One of HTTP/1.1 becomes its tunnel, which hears
                // of the client's end at once.
                request.extensions_mut().insert(Arc::new(watch.begin_request()));
            } else if request.version() < Version::HTTP_2 && !request.body().is_end_stream() {
                uploading = Some(watch.begin_request());
            }
            let (shared, mut busy) = (shared.clone(), watch.begin_request());
            let request = Box::new(request.map(|body| RequestBody::new(HopBody::from(body), uploading)));
            busy.ends_with_connection = request.version() <= Version::HTTP_10;
            let is_http2 = request.version() == Version::HTTP_2;
            // On the heap: hyper moves a request's future a dozen times, and this one is large. Its room is there before
            // it is made: what `Box::pin` is given lies on the stack, and all of it would be copied.
            Box::into_pin(Box::write(Box::new_uninit(), async move {
                let (serves, outbound, clients, held) = &*shared;
                let mut response = answer_and_end(serves, outbound, clients, held, request).await;
                response.body_mut().guard_mut().busy = Some(busy);
                if is_http2 { failure::reset_or(response) } else { Ok(response) }
            }))
        })
    };
    let builder = http_builder(&outbound);
    let (client, writer) = Gathered::new(client);
    let connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(client), service));
    let mut turns = Turns::new(connection, writer);
    let asked_to_end = Aside::new(async {
        tokio::select! {
            overdue = watch.overdue() => Some(overdue),
            () = retires(&connections) => None,
        }
    });
    let mut ended = tokio::select! {
        biased;
        ended = &mut turns => Some(ended),
        overdue = asked_to_end => {
            if let Some(overdue) = overdue {
                debug!(?overdue, "local HTTP connection closed: it holds its place in vain");
                if overdue == Overdue::Head {
                    return;
                }
            }
            None
        }
    };
    if ended.is_none() {
        turns.connection().graceful_shutdown();
        ended = end_of(turns, &watch).await;
    }
    if let Some(Err(error)) = ended {
        debug!(%error, "local HTTP connection ended");
    }
}

/// How a connection that has been asked to end does so; `None` if it does not, without a request
/// under way.
async fn end_of<C: Future + Unpin>(mut connection: C, watch: &Watch) -> Option<C::Output> {
    // As many turns as the requests under way take.
    loop {
        if let Ok(ended) = tokio::time::timeout(FAREWELL, &mut connection).await {
            return Some(ended);
        }
        if !watch.is_busy() {
            debug!("local HTTP connection closed: asked to end, it did not");
            return None;
        }
    }
}

fn http_builder(outbound: &Outbound) -> auto::Builder<TokioExecutor> {
    let streams_max = u32::try_from(outbound.gate.limit()).unwrap_or(u32::MAX);
    let streams_max = streams_max.min(outbound.windows.streams());
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // It bounds what is kept for a slow client, too.
    builder.http1().max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
    builder
        .http2()
        .max_concurrent_streams(streams_max)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .enable_connect_protocol()
        .initial_stream_window_size(outbound.windows.stream_bytes)
        .initial_connection_window_size(outbound.windows.connection_bytes);
    builder
}

/// Resolves when a connection has had its time to end by itself.
async fn retires(connections: &Gate) {
    connections.closed().await;
    tokio::time::sleep(FIRST_REQUEST).await;
}

/// Answers; an HTTP/1 connection of a draining node ends with its answer, instead of losing a race
/// between the client's next request and our end. So does one whose request was ambiguous: nobody
/// knows where the next begins.
async fn answer_and_end(
    serves: &Serves,
    outbound: &Arc<Outbound>,
    clients: &Clients,
    held: &Held,
    request: Underway,
) -> Response<AnswerBody> {
    let keeps = request.version() >= Version::HTTP_2 || request.method() == Method::CONNECT;
    let mut response = match request.method() {
        // On the heap: no request's future needs room for it.
        &Method::CONNECT => Box::pin(answer_connect(serves, outbound, clients, held, request)).await,
        _ => answer(serves, outbound, clients, held, request).await,
    };
    let keeps = keeps || response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let ends = response.headers().get(&headers::FLAGS).is_some_and(|flag| flag == Flag::Malformed.as_str());
    if (ends || clients.connections.is_draining()) && !keeps {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Answers a CONNECT: for a WebSocket, or for a tunnel.
async fn answer_connect(
    serves: &Serves,
    outbound: &Arc<Outbound>,
    clients: &Clients,
    held: &Held,
    mut request: Underway,
) -> Response<AnswerBody> {
    let left = websocket::leave_http2(&mut request, &outbound.chance).transpose();
    let Ok(left) = left else {
        return Failure::new(Flag::Malformed, "the request's cookies cannot be told in HTTP/1.1")
            .answer(false);
    };
    let Some(handshake) = left else {
        if request.extensions().get::<hyper::ext::Protocol>().is_some() {
            // What it would carry (`connect-udp` and others) is no byte stream.
            let other = "of the extended CONNECT's protocols there is \"websocket\" only";
            return Failure::new(Flag::Malformed, other).answer(false);
        }
        return answer(serves, outbound, clients, held, request).await;
    };
    let mut response = answer(serves, outbound, clients, held, request).await;
    match handshake.answer_in_http2(&mut response) {
        Ok(()) => response,
        Err(failure) => failure.answer(false),
    }
}

async fn answer(
    serves: &Serves,
    outbound: &Arc<Outbound>,
    clients: &Clients,
    held: &Held,
    request: Underway,
) -> Response<AnswerBody> {
    let (service, timeouts) = match serves {
        Serves::Service(service, timeouts) => {
            return outbound.handle(service, request, held, timeouts).await;
        }
        Serves::ByName(timeouts) => (name::service_of(&request), timeouts),
    };
    match service {
        Ok(service) if request.method() == Method::CONNECT => {
            Box::pin(connect(outbound, clients, held, (&service, timeouts), request)).await
        }
        Ok(service) => outbound.handle(&service, request, held, timeouts).await,
        Err(failure) => failure.answer(headers::is_grpc(request.headers())),
    }
}

/// `CONNECT service.mesh:port` opens a tunnel (RFC 9110, section 9.3.6); the port is ignored, for
/// a service has no other than its instances'. Inside a tunnel to an HTTP service HTTP is spoken, and
/// read, like anywhere: its workload is told who calls.
async fn connect(
    outbound: &Arc<Outbound>,
    clients: &Clients,
    held: &Held,
    (service, timeouts): (&str, &Timeouts),
    mut request: Underway,
) -> Response<AnswerBody> {
    let switched = Switched::take(&mut request);
    if outbound.speaks(service) == Some(Protocol::Http) {
        return match outbound.enter() {
            Ok(pass) => {
                let (serves, clients) = (Serves::Service(service.into(), *timeouts), clients.clone());
                tokio::spawn(serve_tunnel(switched, serves, outbound.clone(), clients, (pass, held.clone())));
                Response::new(tunnel::no_body())
            }
            Err(failure) => failure.answer(false),
        };
    }
    match outbound.reach(service, held.source()).await {
        Ok(mut reached) => {
            let (held, idle) = (held.clone(), timeouts.idle_of_connections());
            tokio::spawn(async move {
                let Ok((client, _busy)) = switched.made().await else { return };
                let mut client = TokioIo::new(client);
                let Reached { stream, exchange, .. } = &mut reached;
                let carried = tunnel::carry_held(&mut client, stream, exchange, None, idle, &held).await;
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
    switched: Switched,
    serves: Serves,
    outbound: Arc<Outbound>,
    clients: Clients,
    (pass, held): (Pass, Held),
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let _pass = pass;
        if let Ok((client, _busy)) = switched.made().await {
            tokio::select! {
                () = serve_http(TokioIo::new(client), serves, outbound, clients, held.clone()) => {}
                () = held.cut() => debug!("tunnel cut off: memory is critical"),
            }
        }
    })
}

/// Takes or binds a local listener, or says which key of the configuration is in the way.
pub(crate) async fn bind(address: SocketAddr, key: &str, sockets: &mut Sockets) -> io::Result<TcpListener> {
    if let Some(passed) = sockets.tcp(address, key) {
        return TcpListener::from_std(passed);
    }
    TcpListener::bind(address).await.map_err(|error| {
        let hint = "choose a free port, or stop the program that holds it";
        io::Error::new(error.kind(), format!("{key}: cannot listen on {address}: {error}; {hint}"))
    })
}
