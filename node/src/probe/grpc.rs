//! `grpc.health.v1.Health/Check` over cleartext HTTP/2, on a connection of its own.
//!
//! The h2 crate and not hyper's client on top of it: the connection is driven by the question's
//! own future, so nothing outlives the question.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Answer;

/// The answer is one number; a server that says more is not asked for it.
const ANSWER_BYTES_MAX: usize = 4 * 1024;

/// gRPC's code for a method, or service, that a server does not have.
const UNIMPLEMENTED: &str = "12";

/// The same for a name that the health service does not know.
const NOT_FOUND: &str = "5";

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    #[prost(enumeration = "Status", tag = "1")]
    status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum Status {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

/// SERVING of `service` (empty: the whole server) is good.
pub(super) async fn ask(io: impl AsyncRead + AsyncWrite + Unpin, host: &str, service: &str) -> Answer {
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .max_header_list_size(ANSWER_BYTES_MAX as u32)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(|error| broken(&error))?;
    let mut exchange = std::pin::pin!(exchange(sender, host, service));
    tokio::select! {
        biased;
        answer = exchange.as_mut() => answer,
        ended = connection => match ended {
            // What it has received is still to be read.
            Ok(()) => exchange.await,
            Err(error) => Err(broken(&error)),
        },
    }
}

async fn exchange(sender: SendRequest<Bytes>, host: &str, service: &str) -> Answer {
    let mut sender = sender.ready().await.map_err(|error| broken(&error))?;
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("http://{host}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "starling-probe")
        .body(())
        .map_err(|error| error.to_string())?;
    let (answer, mut body) = sender.send_request(request, false).map_err(|error| broken(&error))?;
    body.send_data(question(service), true).map_err(|error| broken(&error))?;
    judge(receive(answer).await?, service)
}

/// The one message, behind gRPC's prefix: not compressed, its length.
fn question(service: &str) -> Bytes {
    let message = CheckRequest { service: service.to_owned() }.encode_to_vec();
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(&message);
    framed.freeze()
}

/// What a server said: its gRPC status and its message.
struct Said {
    http: StatusCode,
    grpc: Option<String>,
    body: Bytes,
}

async fn receive(answer: ResponseFuture) -> Result<Said, String> {
    let (head, mut body) = answer.await.map_err(|error| broken(&error))?.into_parts();
    let status = |headers: &HeaderMap| {
        headers.get("grpc-status").map(|status| String::from_utf8_lossy(status.as_bytes()).into_owned())
    };
    let mut received = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| broken(&error))?;
        let _ = body.flow_control().release_capacity(data.len());
        received.extend_from_slice(&data);
        if received.len() > ANSWER_BYTES_MAX {
            return Err(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
    }
    let trailers = body.trailers().await.map_err(|error| broken(&error))?;
    let grpc = trailers.as_ref().and_then(status).or_else(|| status(&head.headers));
    Ok(Said { http: head.status, grpc, body: received.freeze() })
}

fn judge(said: Said, service: &str) -> Answer {
    let name = if service.is_empty() { "the server" } else { service };
    match said.grpc.as_deref() {
        _ if said.http != StatusCode::OK => Err(format!("it answered {} instead of gRPC", said.http)),
        Some("0") => match status_of(said.body) {
            Some(Status::Serving) => Ok(()),
            Some(other) => Err(format!("{name} is {}", other.name())),
            None => Err("its answer is no grpc.health.v1.HealthCheckResponse".to_owned()),
        },
        Some(UNIMPLEMENTED) => Err("UNIMPLEMENTED: it does not serve grpc.health.v1.Health; register \
                                    the health service there, or probe by tcp = true"
            .to_owned()),
        Some(NOT_FOUND) => Err(format!("its health service does not know {name}")),
        Some(code) => Err(format!("it answered gRPC status {code}")),
        None => Err("it answered without a gRPC status".to_owned()),
    }
}

fn status_of(mut body: Bytes) -> Option<Status> {
    if body.len() < 5 || body.get_u8() != 0 || body.get_u32() as usize != body.len() {
        return None;
    }
    Status::try_from(CheckResponse::decode(body).ok()?.status).ok()
}

fn broken(error: &h2::Error) -> String {
    format!("the workload did not answer in HTTP/2: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(http: u16, grpc: Option<&str>, body: &'static [u8]) -> Said {
        let http = StatusCode::from_u16(http).expect("a status");
        Said { http, grpc: grpc.map(str::to_owned), body: Bytes::from_static(body) }
    }

    #[test]
    fn the_question_is_framed_as_grpc_wants() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0A, 2, b'a', b'b']);
    }

    #[test]
    fn only_serving_is_good_and_the_rest_says_why() {
        assert_eq!(judge(said(200, Some("0"), b"\0\0\0\0\x02\x08\x01"), ""), Ok(()));
        // A field that a later version may add is passed over.
        assert_eq!(judge(said(200, Some("0"), b"\0\0\0\0\x04\x08\x01\x10\x07"), ""), Ok(()));
        for (said, why) in [
            (said(200, Some("0"), b"\0\0\0\0\x02\x08\x02"), "the server is NOT_SERVING"),
            (said(200, Some("0"), b"\0\0\0\0\0"), "the server is UNKNOWN"),
            (said(200, Some("0"), b"\0\0\0\0\x02\x08\x63"), "is no grpc.health.v1"),
            (said(200, Some("0"), b"\x01\0\0\0\x02\x08\x01"), "is no grpc.health.v1"),
            (said(200, Some("0"), b"\0\0\0\0\x09\x08\x01"), "is no grpc.health.v1"),
            (said(200, Some("0"), b""), "is no grpc.health.v1"),
            (said(200, Some("12"), b""), "UNIMPLEMENTED"),
            (said(200, Some("5"), b""), "does not know the server"),
            (said(200, Some("14"), b""), "gRPC status 14"),
            (said(200, None, b"\0\0\0\0\x02\x08\x01"), "without a gRPC status"),
            (said(404, None, b""), "404 Not Found instead of gRPC"),
        ] {
            let reason = judge(said, "").expect_err(why);
            assert!(reason.contains(why), "{reason} should say {why}");
        }
    }
}
