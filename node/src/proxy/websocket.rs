//! PURE: a WebSocket asked for in the other version of HTTP: the extended CONNECT of RFC 8441, and the
//! `Upgrade` of RFC 6455.
//!
//! Through the mesh one always goes as an `Upgrade`, on a stream of its own, so that it holds nobody up.
//! Either sidecar tells it in HTTP/2 where its program speaks that. The handshake's key has no place
//! in HTTP/2 (RFC 8441, section 5): whoever leaves HTTP/2 makes one and checks what it is answered with.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::ext::Protocol;

use crate::balance::Chance;
use crate::proxy::failure::{Failure, Flag};
use crate::proxy::translate::{Untold, join_cookies};

const WEBSOCKET: &str = "websocket";

/// Says nothing to anybody (RFC 6455, section 1.3).
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What belongs to the handshake of HTTP/1.1 alone.
const HANDSHAKE: [HeaderName; 4] = [CONNECTION, UPGRADE, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_ACCEPT];

/// What a handshake must be answered with.
pub(crate) struct Handshake {
    accept: HeaderValue,
}

/// Tells `request` as an `Upgrade`, if it is an extended CONNECT for a WebSocket.
pub(crate) fn leave_http2<B>(request: &mut Request<B>, chance: &Chance) -> Option<Result<Handshake, Untold>> {
    if request.method() != Method::CONNECT
        || request.extensions().get::<Protocol>()?.as_ref() != WEBSOCKET.as_bytes()
    {
        return None;
    }
    request.extensions_mut().remove::<Protocol>();
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    let random = [chance.bits(), chance.bits()].map(u64::to_be_bytes).concat();
    let key = HeaderValue::try_from(STANDARD.encode(random)).expect("letters and digits");
    let headers = request.headers_mut();
    if let Err(untold) = join_cookies(headers) {
        return Some(Err(untold));
    }
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    headers.insert(SEC_WEBSOCKET_KEY, key.clone());
    Some(Ok(Handshake { accept: accept_of(&key) }))
}

/// Tells `request` as an extended CONNECT, if it is an `Upgrade` to a WebSocket.
pub(crate) fn enter_http2<B>(request: &mut Request<B>) -> Option<Handshake> {
    let asks = request.headers().get(UPGRADE)?.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes());
    let key = request.headers().get(SEC_WEBSOCKET_KEY).filter(|_| asks)?;
    let handshake = Handshake { accept: accept_of(key) };
    HANDSHAKE.iter().for_each(|name| drop(request.headers_mut().remove(name)));
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from_static(WEBSOCKET));
    Some(handshake)
}

impl Handshake {
    /// Tells the answer to an `Upgrade` to whoever asked in HTTP/2. Any 2xx would open the socket there,
    /// so one that is no switch is none to them.
    pub(crate) fn answer_in_http2<B>(&self, response: &mut Response<B>) -> Result<(), Failure> {
        let refused = |what| Err(Failure::new(Flag::ConnectFailure, what));
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                if response.headers().get(SEC_WEBSOCKET_ACCEPT) != Some(&self.accept) {
                    return refused("the workload answers another WebSocket handshake than this one");
                }
                *response.status_mut() = StatusCode::OK;
                HANDSHAKE.iter().for_each(|name| drop(response.headers_mut().remove(name)));
                Ok(())
            }
            status if status.is_success() => refused("the workload does not take WebSockets here"),
            _ => Ok(()),
        }
    }

    /// Tells the answer to an extended CONNECT to whoever asked in HTTP/1.1.
    pub(crate) fn answer_in_http1<B>(self, response: &mut Response<B>) {
        if response.status().is_success() {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
            headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        }
    }
}

/// RFC 6455, section 4.2.2.
fn accept_of(key: &HeaderValue) -> HeaderValue {
    let hash = digest::digest(
        &digest::SHA1_FOR_LEGACY_USE_ONLY,
        &[key.as_bytes().trim_ascii(), KEY_SUFFIX].concat(),
    );
    HeaderValue::try_from(STANDARD.encode(hash)).expect("letters and digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_own_key_has_the_standards_answer() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept_of(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_socket_is_the_same_in_both_versions() {
        let chance = Chance::new(1);
        let mut asked = Request::connect("http://web.mesh/chat").version(Version::HTTP_2);
        asked = asked.header("sec-websocket-version", "13").header("cookie", "a=1").header("cookie", "b=2");
        asked = asked.extension(Protocol::from_static("websocket"));
        let mut asked = asked.body(()).expect("a request");
        let out =
            leave_http2(&mut asked, &chance).expect("a socket").map_err(|_| "cookies").expect("it is told");
        assert_eq!(asked.headers()["cookie"], "a=1; b=2");
        asked.headers_mut().remove("cookie");
        assert_eq!((asked.method(), asked.version()), (&Method::GET, Version::HTTP_11));
        assert_eq!(
            (&asked.headers()["upgrade"], asked.headers().len()),
            (&HeaderValue::from_static("websocket"), 4)
        );
        let back = enter_http2(&mut asked).expect("a socket");
        assert_eq!((asked.method(), asked.headers().len()), (&Method::CONNECT, 1));
        assert_eq!(asked.extensions().get::<Protocol>().map(Protocol::as_str), Some("websocket"));
        let mut answer = Response::new(());
        back.answer_in_http1(&mut answer);
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        out.answer_in_http2(&mut answer).expect("the answer to it");
        assert_eq!((answer.status(), answer.headers().len()), (StatusCode::OK, 0));
        assert!(
            leave_http2(&mut Request::connect("web.mesh:80").body(()).expect("a request"), &chance).is_none()
        );
    }

    #[test]
    fn only_the_switch_that_was_asked_for_opens_a_socket() {
        let handshake = Handshake { accept: HeaderValue::from_static("right") };
        let opened = |status: u16, accept: &str| {
            let answer = Response::builder().status(status).header(SEC_WEBSOCKET_ACCEPT, accept);
            let mut answer = answer.body(()).expect("an answer");
            handshake.answer_in_http2(&mut answer).map(|()| answer.status().as_u16()).ok()
        };
        assert_eq!(opened(101, "right"), Some(200));
        assert_eq!(opened(101, "wrong"), None);
        assert_eq!(opened(200, "right"), None);
        assert_eq!(opened(403, "right"), Some(403));
    }
}
