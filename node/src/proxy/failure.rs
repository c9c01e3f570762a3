//! The one place that turns failures of the mesh into answers.
//!
//! Every answer made by the mesh carries `server: starling`, a line saying what failed and whose
//! fault it is, and the response flag that Envoy's access log would show. gRPC clients get the
//! matching gRPC status instead of an HTTP one.

use h2::Reason;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, SERVER};
use http::{Response, StatusCode};

use crate::proxy::body::AnswerBody;
use crate::proxy::headers::FLAGS;

/// When whoever was refused for want of room may ask again, in seconds: the least that can be said. Work
/// is short, and there is room as soon as some ends.
pub(crate) const RETRY_AFTER_SECONDS: &str = "1";

/// What went wrong with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Which kind.
    pub(crate) flag: Flag,
    /// One line for people: what failed, and whose fault it is.
    pub(crate) detail: String,
    /// The code of the reset that the upstream meant for the caller, where it came before any answer.
    pub(crate) reset: Option<Reset>,
}

/// A reset of an HTTP/2 stream, passed on instead of an answer: for gRPC its code is a status (gRPC,
/// "HTTP2 Transport Mapping", "Errors"). As an error of a service, hyper resets the stream with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reset(pub(crate) Reason);

/// What a server sends for `answer`: itself, or the reset that it stands for. Only for HTTP/2: an error
/// of a service would end a whole connection of HTTP/1.1.
pub(crate) fn reset_or(answer: Response<AnswerBody>) -> Result<Response<AnswerBody>, h2::Error> {
    match answer.extensions().get::<Reset>() {
        Some(Reset(reason)) => Err(h2::Error::from(*reason)),
        None => Ok(answer),
    }
}

/// The kinds of failure; shown by the names of Envoy's response flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flag {
    /// NR: nobody announces the service, or the request names none.
    NoRoute,
    /// UH: it is announced, and nobody can take work.
    NoHealthyUpstream,
    /// UF: a node or its workload refused, or cannot be reached.
    ConnectFailure,
    /// UC: the upstream connection ended before the answer's end.
    ConnectionEnded,
    /// UO: a limit of a node.
    Overflow,
    /// UT: it took longer than it may.
    TimedOut,
    /// RBAC: the callee does not let this caller in.
    Denied,
    /// DPE: the caller's request cannot be understood or passed on.
    Malformed,
    /// LOOP: the request has passed too many sidecars.
    Loop,
}

impl Flag {
    /// As in the header, logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "NR",
            Self::NoHealthyUpstream => "UH",
            Self::ConnectFailure => "UF",
            Self::ConnectionEnded => "UC",
            Self::Overflow => "UO",
            Self::TimedOut => "UT",
            Self::Denied => "RBAC",
            Self::Malformed => "DPE",
            Self::Loop => "LOOP",
        }
    }

    /// The HTTP status, as Envoy answers.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoHealthyUpstream | Self::ConnectFailure | Self::ConnectionEnded | Self::Overflow => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Loop => StatusCode::LOOP_DETECTED,
        }
    }

    /// The gRPC status code for the same (gRPC: "HTTP to gRPC status code mapping"), but for what that
    /// has one status of HTTP for and gRPC two codes: a limit and a deadline.
    fn grpc_status(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::NoRoute => "12", // UNIMPLEMENTED
            Self::NoHealthyUpstream | Self::ConnectFailure | Self::ConnectionEnded => "14", // UNAVAILABLE
            Self::Overflow => "8", // RESOURCE_EXHAUSTED
            Self::TimedOut => "4", // DEADLINE_EXCEEDED
            Self::Denied => "7",   // PERMISSION_DENIED
            Self::Malformed | Self::Loop => "13", // INTERNAL
        })
    }
}

impl Failure {
    /// A failure of kind `flag`.
    pub(crate) fn new(flag: Flag, detail: impl Into<String>) -> Self {
        Self { flag, detail: detail.into(), reset: None }
    }

    /// The answer a client gets.
    pub(crate) fn answer(&self, for_grpc: bool) -> Response<AnswerBody> {
        let mut response = Response::new(AnswerBody::own(String::new()));
        if let Some(reset) = self.reset {
            response.extensions_mut().insert(reset);
        }
        let headers = response.headers_mut();
        headers.insert(SERVER, HeaderValue::from_static("starling"));
        headers.insert(FLAGS.clone(), HeaderValue::from_static(self.flag.as_str()));
        if self.flag == Flag::Overflow {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        if for_grpc {
            // A "trailers-only" answer: the status travels in the one header block there is.
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.extend(self.grpc_trailers());
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            let line = format!("starling: {}: {}\n", self.flag.as_str(), self.detail);
            *response.body_mut() = AnswerBody::own(line);
            *response.status_mut() = self.flag.status();
        }
        response
    }

    /// What ends a gRPC answer: its status.
    pub(crate) fn grpc_trailers(&self) -> HeaderMap {
        let pairs = [("grpc-status", self.flag.grpc_status()), ("grpc-message", self.grpc_message())];
        pairs.map(|(name, value)| (HeaderName::from_static(name), value)).into_iter().collect()
    }

    /// gRPC messages are percent-encoded; our details are ASCII, anything else is replaced.
    fn grpc_message(&self) -> HeaderValue {
        let plain = |c: char| if c.is_ascii_graphic() && c != '%' || c == ' ' { c } else { '?' };
        let text: String = self.detail.chars().map(plain).collect();
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("failed"))
    }
}
