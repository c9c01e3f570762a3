//! A pool against a callee that says what a test wants it to say.

use std::net::{Ipv4Addr, SocketAddr};

use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming as IncomingBody;
use hyper_util::rt::TokioIo;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use starling_gossip::clock::Clock;
use starling_gossip::svid::{Svid, TrustBundle};
use starling_transport::credentials::Credentials;
use starling_transport::endpoint::{Endpoint, Incoming};
use starling_transport::header::{RefusalReason, StreamHeader, StreamKind};
use starling_transport::limits::Windows;
use starling_transport::pool::Target;
use starling_transport::stream::{RecvHalf, reset_code};
use starling_transport::verify::Expected;
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::sync::oneshot;

use super::*;
use crate::ca::Authority;
use crate::messages::frame::{Kind, PREAMBLE_BYTES, Preamble};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const PATIENCE: Duration = Duration::from_secs(10);

const INSIDE: Place = Place::Inside;
const END: Place = Place::Last { keeps: false };
const KEEPS: Place = Place::Last { keeps: true };

/// Two nodes, and the connection between them.
struct Pair {
    connection: Connection,
    callee: Incoming,
    pool: Arc<MessagePool>,
    _endpoints: [Endpoint; 2],
}

struct Opener(Connection);

impl OpenMessages for Opener {
    async fn open(&self, _: HttpVersion) -> Result<Opened, ConnectFailure> {
        let (service, instance) = ("web".parse().expect("a name"), "web".to_owned());
        let header = StreamHeader::new(StreamKind::Http1Messages { service, instance });
        let stream = self.0.open(&header).await;
        let stream = stream.map_err(|error| ConnectFailure::Unreachable(error.to_string()))?;
        Ok(Opened { stream, connection: self.0.clone() })
    }
}

/// A stream as its callee has it.
struct Called {
    send: SendHalf,
    recv: RecvHalf,
}

impl Pair {
    async fn new() -> Self {
        let wall = Clock::System.wall();
        let authority = Authority::new("acme".parse().expect("a domain"), wall).expect("an authority");
        let bind = |name: &str| {
            let id = format!("spiffe://acme/svc/{name}").parse().expect("an identity");
            let issued = authority.issue(&id, DAY, wall).expect("a certificate");
            let svid = Svid::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).expect("an SVID");
            let bundle =
                TrustBundle::from_pem(authority.domain().clone(), authority.certificate_pem().as_bytes());
            let credentials = Credentials::new(svid, bundle.expect("a bundle"), Clock::System).expect("good");
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            Endpoint::bind(any, credentials, Windows::within(None), StdRng::seed_from_u64(1)).expect("bound")
        };
        let ((caller, _), (web, callee)) = (bind("caller"), bind("web"));
        let target = Target { address: web.local_addr(), expected: Expected::Anybody };
        let connection = caller.pool().connect(&target).await.expect("connected");
        Self { connection, callee, pool: MessagePool::new(HttpVersion::Http1, 8), _endpoints: [caller, web] }
    }

    /// Sends a request; nobody gives it up.
    fn send(&self, request: Underway) -> Waiting {
        let (pool, opener) = (self.pool.clone(), Opener(self.connection.clone()));
        Waiting(tokio::spawn(async move { pool.send(&opener, request, &mut None, || false).await }))
    }

    /// The next stream, accepted.
    async fn accept(&mut self) -> Called {
        let incoming = tokio::time::timeout(PATIENCE, self.callee.streams.recv()).await;
        let stream = incoming.expect("in time").expect("an endpoint").stream.accept().await.expect("there");
        let (send, recv) = stream.into_split();
        Called { send, recv }
    }

    async fn refuse(&mut self, reason: RefusalReason) {
        let incoming = tokio::time::timeout(PATIENCE, self.callee.streams.recv()).await;
        incoming.expect("in time").expect("an endpoint").stream.refuse(reason, "for a test").await;
    }

    fn idle(&self) -> usize {
        self.pool.lock().len()
    }
}

/// Who waits for an answer.
struct Waiting(JoinHandle<Result<Answered, SendError>>);

impl Waiting {
    async fn ended(self) -> Result<Answered, SendError> {
        tokio::time::timeout(PATIENCE, self.0).await.expect("in time").expect("no panic")
    }

    async fn answer(self) -> http::Response<HopBody> {
        self.ended().await.map_err(|error| error.failure).expect("an answer").response
    }

    async fn failure(self) -> SendError {
        self.ended().await.err().expect("no answer")
    }
}

impl Called {
    /// Reads one frame.
    async fn frame(&mut self) -> (Preamble, Bytes) {
        let mut preamble = [0; PREAMBLE_BYTES];
        let preamble = Preamble::decode(self.read(&mut preamble).await).expect("a frame");
        let mut bytes = vec![0; preamble.bytes as usize];
        self.read(bytes.as_mut_slice()).await;
        (preamble, Bytes::from(bytes))
    }

    async fn read<B: AsMut<[u8]> + ?Sized>(&mut self, room: &mut B) -> [u8; PREAMBLE_BYTES] {
        let room = room.as_mut();
        let mut read = 0;
        while read < room.len() {
            let chunk = tokio::time::timeout(PATIENCE, self.recv.read_chunk(room.len() - read)).await;
            let chunk = chunk.expect("in time").expect("not reset").expect("not ended");
            room[read..read + chunk.len()].copy_from_slice(&chunk);
            read += chunk.len();
        }
        room.first_chunk().copied().unwrap_or_default()
    }

    /// Reads a request to its end; gives its body.
    async fn request(&mut self) -> Bytes {
        let mut body = BytesMut::new();
        loop {
            let (preamble, bytes) = self.frame().await;
            if preamble.kind == Kind::Data {
                body.extend_from_slice(&bytes);
            }
            if preamble.place.is_last() {
                return body.freeze();
            }
        }
    }

    async fn say(&mut self, bytes: impl Into<Bytes>) {
        self.send.write_chunk(bytes.into()).await.expect("written");
    }

    /// Answers with 200, and that is all.
    async fn answer(&mut self, place: Place) {
        self.say(ok(place)).await;
    }

    /// With which code the caller gives its direction up.
    async fn reset(&mut self) -> Option<u64> {
        loop {
            match tokio::time::timeout(PATIENCE, self.recv.read_chunk(1024)).await.expect("in time") {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(error) => return reset_code(&error),
            }
        }
    }
}

fn frame(kind: Kind, place: Place, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short");
    [Preamble { kind, place, bytes: length }.encode().as_slice(), bytes].concat()
}

/// The head of an answer: 200, no reason, and headers.
fn head_of(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut head = vec![0, 200, 0, u8::try_from(headers.len()).expect("few")];
    for (name, value) in headers {
        head.push(u8::try_from(name.len()).expect("short"));
        head.extend_from_slice(name.as_bytes());
        head.push(u8::try_from(value.len() << 1).expect("short"));
        head.extend_from_slice(value.as_bytes());
    }
    head
}

fn ok(place: Place) -> Vec<u8> {
    frame(Kind::Head, place, &head_of(&[]))
}

fn get() -> Underway {
    Box::new(Request::get("/").body(RequestBody::Empty).expect("a request"))
}

/// A POST as hyper hands it on, whose body is `said` bytes long and begins with `body`; its client may say the rest.
async fn post(said: usize, body: &'static [u8]) -> (Underway, DuplexStream) {
    let (mut client, server) = tokio::io::duplex(4096);
    let (give, given) = oneshot::channel::<Request<IncomingBody>>();
    let give = Mutex::new(Some(give));
    tokio::spawn(async move {
        let service = hyper::service::service_fn(move |request| {
            let give = give.lock().expect("no panic").take().expect("one request");
            drop(give.send(request));
            std::future::pending::<Result<http::Response<Full<Bytes>>, std::convert::Infallible>>()
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).await
    });
    let head = format!("POST / HTTP/1.1\r\ncontent-length: {said}\r\n\r\n");
    client.write_all(&[head.as_bytes(), body].concat()).await.expect("written");
    let request = given.await.expect("a request");
    (Box::new(request.map(|body| RequestBody::new(HopBody::Http(body), None))), client)
}

async fn body_of(request: Underway) -> Bytes {
    let collected = tokio::time::timeout(PATIENCE, request.into_body().collect()).await.expect("in time");
    collected.map(|body| body.to_bytes()).unwrap_or_default()
}

#[tokio::test]
async fn a_stream_carries_another_request_if_its_callee_says_so() {
    let mut pair = Pair::new().await;
    let first = pair.send(get());
    let mut called = pair.accept().await;
    called.request().await;
    called.answer(KEEPS).await;
    assert_eq!(first.answer().await.status(), StatusCode::OK);
    assert_eq!(pair.idle(), 1);
    let second = pair.send(get());
    called.request().await;
    called.answer(END).await;
    second.answer().await;
    assert_eq!(pair.idle(), 0, "it was the last on its stream");
    assert_eq!(called.reset().await, None, "which is ended cleanly");
    let third = pair.send(get());
    let mut called = pair.accept().await;
    called.answer(KEEPS).await;
    third.answer().await;
}

#[tokio::test]
async fn what_a_callee_refuses_comes_back_whole() {
    let mut pair = Pair::new().await;
    let (request, _client) = post(5, b"hello").await;
    let sent = pair.send(request);
    pair.refuse(RefusalReason::Draining).await;
    let SendError { failure: SendFailure::Connect(_), unsent: Some(request) } = sent.failure().await else {
        panic!("nothing was sent")
    };
    let sent = pair.send(request);
    let mut called = pair.accept().await;
    assert_eq!(called.request().await, "hello");
    called.send.reset(reset_with(Reason::REFUSED_STREAM));
    let SendError { failure: SendFailure::Unprocessed(_), unsent: Some(request) } = sent.failure().await
    else {
        panic!("it was not processed")
    };
    assert_eq!(body_of(request).await, "hello");
}

#[tokio::test]
async fn what_changes_something_is_not_sent_again_when_its_stream_is_lost() {
    let mut pair = Pair::new().await;
    for is_used in [false, true] {
        let kept = if is_used {
            let first = pair.send(get());
            let mut called = pair.accept().await;
            called.request().await;
            called.answer(KEEPS).await;
            first.answer().await;
            Some(called)
        } else {
            None
        };
        let (request, _client) = post(5, b"hello").await;
        let sent = pair.send(request);
        let mut called = match kept {
            Some(called) => called,
            None => pair.accept().await,
        };
        assert_eq!(called.request().await, "hello");
        drop(called);
        let SendError { failure, unsent } = sent.failure().await;
        assert!(unsent.is_none(), "who knows what became of it");
        assert_eq!(matches!(failure, SendFailure::Stale(_)), is_used, "{failure}");
    }
    assert!(pair.callee.streams.try_recv().is_err());
}

#[tokio::test]
async fn a_reset_says_why_both_ways() {
    let mut pair = Pair::new().await;
    let sent = pair.send(get());
    let mut called = pair.accept().await;
    called.request().await;
    called.send.reset(reset_with(Reason::ENHANCE_YOUR_CALM));
    let failed = sent.failure().await.failure;
    assert_eq!(failed.reset_code(), Some(Reason::ENHANCE_YOUR_CALM), "{failed:?}");

    let sent = pair.send(get());
    let mut called = pair.accept().await;
    called.request().await;
    sent.0.abort();
    assert_eq!(called.reset().await, Some(u64::from(reset_with(Reason::CANCEL))), "nobody waits any more");

    let sent = pair.send(get());
    let mut called = pair.accept().await;
    called.request().await;
    called.answer(INSIDE).await;
    let mut body = sent.answer().await.into_body();
    called.say(frame(Kind::Data, INSIDE, b"half")).await;
    body.frame().await.expect("data").expect("whole");
    drop(body);
    assert_eq!(called.reset().await, Some(u64::from(reset_with(Reason::CANCEL))), "nobody reads any more");
    let refused = async {
        while called.send.write_chunk(frame(Kind::Data, INSIDE, b"more").into()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("it takes no more");
    assert_eq!(pair.idle(), 0);

    let (request, _client) = post(5, b"hello").await;
    let sent = pair.send(request);
    let mut called = pair.accept().await;
    assert_eq!(called.request().await, "hello");
    sent.0.abort();
    assert_eq!(
        called.reset().await,
        Some(u64::from(reset_with(Reason::CANCEL))),
        "though all of it was sent"
    );
}

#[tokio::test]
async fn what_came_before_an_answer_broke_off_is_read_and_then_why_it_did() {
    let mut pair = Pair::new().await;
    let sent = pair.send(get());
    let mut called = pair.accept().await;
    called.request().await;
    let code = u32::from(Reason::REFUSED_STREAM).to_be_bytes();
    called
        .say([ok(INSIDE), frame(Kind::Data, INSIDE, b"half"), frame(Kind::Broken, END, &code)].concat())
        .await;
    let mut body = sent.answer().await.into_body();
    let data = body.frame().await.expect("data").expect("whole").into_data();
    assert_eq!(data.ok(), Some("half".into()));
    let Some(Err(HopError::Message(error))) = body.frame().await else { panic!("it has no end") };
    assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM));
    assert_eq!(pair.idle(), 0);
}

#[tokio::test]
async fn an_answer_says_its_length_once() {
    for (said, is_one) in
        [(["4", "4"].as_slice(), true), (&["4, 4"], true), (&["4"], true), (&["4", "5"], false)]
    {
        let mut answer = http::Response::new(());
        for length in said {
            answer.headers_mut().append("content-length", length.parse().expect("a value"));
        }
        head::join_lengths(answer.headers_mut());
        let mut frame = head::encode_answer(&answer, INSIDE, None);
        let frame = frame.split_off(PREAMBLE_BYTES).freeze();
        let read = head::decode_answer(frame.clone(), HttpVersion::Http1, INSIDE, false);
        assert_eq!(read.is_ok_and(|(_, length)| length == Some(4)), is_one, "{said:?}");
        // There is no body to take for another's.
        assert!(head::decode_answer(frame, HttpVersion::Http1, END, true).is_ok());
    }
}

#[tokio::test]
async fn what_is_no_answer_is_passed_on_as_none() {
    let mut pair = Pair::new().await;
    let length = |length| frame(Kind::Head, KEEPS, &head_of(&[("content-length", length)]));
    let inside = |headers: &[(&str, &str)]| frame(Kind::Head, INSIDE, &head_of(headers));
    let data = |place, bytes: &[u8]| frame(Kind::Data, place, bytes);
    for (what, bytes) in [
        ("a length without a body", length("3")),
        ("a length that is none", length("+0")),
        ("an interim one", frame(Kind::Head, KEEPS, &[0, 100, 0, 0])),
        ("no status", frame(Kind::Head, KEEPS, &[255, 255, 0, 0])),
        ("data without a head", data(KEEPS, b"abc")),
        ("no frame", vec![0x7f; 64]),
        ("a header that is two", frame(Kind::Head, KEEPS, &head_of(&[("x-a", "b\r\nx-c: d")]))),
        ("a name that is none", frame(Kind::Head, KEEPS, &head_of(&[("X A", "b")]))),
    ] {
        let sent = pair.send(get());
        let mut called = pair.accept().await;
        called.request().await;
        called.say(bytes).await;
        let SendError { failure, unsent } = sent.failure().await;
        assert!(matches!(failure, SendFailure::Broken(_)) && unsent.is_none(), "{what}: {failure}");
        assert_eq!(pair.idle(), 0, "{what}");
    }
    for (what, bytes) in [
        ("more than it says", [inside(&[("content-length", "2")]), data(KEEPS, b"abc")].concat()),
        ("less than it says", [inside(&[("content-length", "4")]), data(KEEPS, b"abc")].concat()),
        ("a second head", [inside(&[]), ok(KEEPS)].concat()),
        ("nothing, again and again", [inside(&[]), data(INSIDE, b""), data(KEEPS, b"a")].concat()),
    ] {
        let sent = pair.send(get());
        let mut called = pair.accept().await;
        called.request().await;
        called.say(bytes).await;
        let answered = sent.answer().await;
        assert!(answered.into_body().collect().await.is_err(), "{what}");
        assert_eq!(pair.idle(), 0, "{what}");
    }
}

#[tokio::test]
async fn an_answer_before_its_request_was_sent_leaves_the_rest_to_its_callee() {
    let mut pair = Pair::new().await;
    let (request, mut client) = post(10, b"hello").await;
    let sent = pair.send(request);
    let mut called = pair.accept().await;
    called.frame().await;
    called.answer(INSIDE).await;
    let mut body = sent.answer().await.into_body();
    called.say(frame(Kind::Data, KEEPS, b"early")).await;
    while body.frame().await.is_some_and(|frame| frame.is_ok()) {}
    assert!(body.is_end_stream() && pair.idle() == 0, "half a request is on it");
    client.write_all(b"world").await.expect("written");
    assert_eq!(called.request().await, "helloworld", "the callee may want it all the same");
}

#[tokio::test]
async fn a_request_whose_caller_breaks_off_is_reset_and_is_its_callers_fault() {
    let mut pair = Pair::new().await;
    let (request, client) = post(10, b"hello").await;
    let sent = pair.send(request);
    let mut called = pair.accept().await;
    called.frame().await;
    drop(client);
    let SendFailure::Broken(error) = sent.failure().await.failure else { panic!("broken") };
    assert!(error.is_callers(), "{error}");
    assert!(called.reset().await.is_some(), "no end that could be taken for one");
}
