//! An HTTP server (1.1 and 2) that tells what it was asked.
//!
//! | path | answer |
//! |---|---|
//! | `/seen` | the request as JSON: method, target, version, headers, length of its body, trailers |
//! | `/echo` | the request's body, as it comes, and its trailers |
//! | `/bytes/N` | N bytes, in chunks |
//! | `/head/N` | a header of N bytes |
//! | `/status/N` | that status, no body |
//! | `/wait` | 200, once the test calls [`Http::release`] |
//! | `/rude` | headers that end at a hop, and some that only the mesh may say |
//! | others | its name, after a while if [`Http::works_for`] says so, with a status by [`Http::answers_with`] |

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, TRAILER};
use http::{Request, Response, Version};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::tcp::sized_bytes;
use super::tls::ServerTls;

/// More than any node passes on.
const HEAD_BYTES_MAX: u32 = 128 * 1024;

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// A running server; dropped, it stops.
pub struct Http {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    name: String,
    connections: AtomicUsize,
    waiting: AtomicUsize,
    gate: Semaphore,
    work_millis: AtomicU64,
    version: Option<Version>,
    status: AtomicU16,
}

impl Http {
    /// Starts one at a port of `ip` that the kernel chooses; `name` is in its answers.
    pub async fn start(ip: Ipv4Addr, name: &str) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        Self::start_on(listener, name)
    }

    /// Starts one on a bound port.
    pub fn start_on(listener: TcpListener, name: &str) -> Self {
        Self::start_with(listener, name, None, None)
    }

    /// Starts one on a bound port that speaks one version of HTTP and no other.
    pub fn start_speaking(listener: TcpListener, name: &str, version: Version) -> Self {
        Self::start_with(listener, name, None, Some(version))
    }

    /// Starts one that speaks TLS at a port of `ip` that the kernel chooses.
    pub async fn start_tls(ip: Ipv4Addr, name: &str, tls: ServerTls) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        Self::start_with(listener, name, Some(tls), None)
    }

    fn start_with(
        listener: TcpListener,
        name: &str,
        tls: Option<ServerTls>,
        version: Option<Version>,
    ) -> Self {
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            connections: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            work_millis: AtomicU64::new(0),
            version,
            status: AtomicU16::new(200),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone(), tls));
        Self { address, shared, accepting }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections it has accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Requests for `/wait` that have arrived so far.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::SeqCst)
    }

    /// Lets every request for `/wait` go on.
    pub fn release(&self) {
        self.shared.gate.close();
    }

    /// Has requests for no path of the table take so long, so that some are always under way.
    pub fn works_for(&self, duration: Duration) {
        let millis = u64::try_from(duration.as_millis()).expect("no age");
        self.shared.work_millis.store(millis, Ordering::SeqCst);
    }

    /// Has requests for no path of the table answered with this status.
    pub fn answers_with(&self, status: u16) {
        self.shared.status.store(status, Ordering::SeqCst);
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Option<ServerTls>) {
    // Connections end with the listener.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let (shared, tls) = (shared.clone(), tls.clone());
        connections.spawn(async move {
            match tls {
                None => serve(stream, shared).await,
                // A client that goes away is its own test's business.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, shared).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<Shared>) {
    let version = shared.version;
    let service = service_fn(|request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&shared, request).await) }
    });
    let io = TokioIo::new(stream);
    match version {
        None => {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().max_header_list_size(HEAD_BYTES_MAX);
            let _ = builder.serve_connection_with_upgrades(io, service).await;
        }
        Some(Version::HTTP_2) => {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(io, service).await;
        }
        Some(_) => {
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.serve_connection(io, service).with_upgrades().await;
        }
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let number = || path.rsplit('/').next().and_then(|number| number.parse::<usize>().ok());
    match path.split('/').nth(1).unwrap_or_default() {
        "seen" => seen(shared, request).await,
        "echo" => echo(request),
        "bytes" => Response::new(chunks(number().expect("/bytes/N"))),
        "head" => {
            let large = "a".repeat(number().expect("/head/N"));
            Response::builder().header("x-large", large).body(full("")).expect("an answer")
        }
        "status" => {
            let status = u16::try_from(number().expect("/status/N")).expect("a status");
            Response::builder().status(status).body(full("")).expect("an answer")
        }
        "wait" => {
            shared.waiting.fetch_add(1, Ordering::SeqCst);
            let _closed = shared.gate.acquire().await;
            Response::new(full(shared.name.clone()))
        }
        "rude" => Response::builder()
            .header("connection", "x-private")
            .header("x-private", "for this hop")
            .header("keep-alive", "timeout=5")
            .header("x-public", "for everybody")
            .header("x-starling-flags", "NR")
            .header("x-starling-unsent", "1")
            .body(full("rude\n"))
            .expect("an answer"),
        _ => {
            let millis = shared.work_millis.load(Ordering::SeqCst);
            if millis > 0 {
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            let status = shared.status.load(Ordering::SeqCst);
            Response::builder().status(status).body(full(shared.name.clone())).expect("an answer")
        }
    }
}

fn echo(mut request: Request<Incoming>) -> Answer {
    // HTTP/1.1 carries trailers that were announced.
    let announced = request.headers_mut().remove(TRAILER);
    let mut answer = Response::new(request.into_body().boxed());
    answer.headers_mut().extend(announced.map(|announced| (TRAILER, announced)));
    answer
}

async fn seen(shared: &Shared, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let body = body.collect().await.ok();
    let trailers = body.as_ref().and_then(|body| body.trailers()).map(pairs).unwrap_or_default();
    let trailers = json!(trailers);
    let length = body.map_or(0, |body| body.to_bytes().len());
    let seen = json!({
        "workload": shared.name,
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "version": format!("{:?}", head.version),
        "headers": pairs(&head.headers),
        "length": length,
        "trailers": trailers,
    });
    Response::new(full(seen.to_string()))
}

fn pairs(headers: &HeaderMap) -> Vec<(&str, Cow<'_, str>)> {
    headers.iter().map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()))).collect()
}

/// `bytes` bytes of [`sized_bytes`], as a body of unknown length.
fn chunks(bytes: usize) -> BoxBody<Bytes, hyper::Error> {
    const CHUNK: usize = 64 * 1024;
    let whole = Bytes::from(sized_bytes(CHUNK));
    let pieces = (0..bytes.div_ceil(CHUNK)).map(move |index| {
        let piece = whole.slice(..CHUNK.min(bytes - index * CHUNK));
        Ok(Frame::data(piece))
    });
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(pieces)))
}

fn full(text: impl Into<Bytes>) -> BoxBody<Bytes, hyper::Error> {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}
