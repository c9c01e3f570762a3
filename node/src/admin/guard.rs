//! PURE: who may ask the admin API what.
//!
//! A web page in somebody's browser can send requests to loopback. It cannot choose the `Host`
//! that the browser sends (but for names that resolve here: DNS rebinding), and cross-site actions
//! carry an `Origin`; so both are checked.

use std::net::{IpAddr, SocketAddr};

use http::StatusCode;
use http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use tokio::sync::watch;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// By the port.
    Port {
        /// From this machine.
        loopback: bool,
    },
    /// By the Unix socket.
    Socket {
        /// From the user that runs the node, or root.
        owner: bool,
    },
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// A `Host` that is not this machine.
    #[error("the Host header names another machine; ask for 127.0.0.1 or localhost")]
    ForeignHost,
    /// Sent on behalf of a web page.
    #[error("requests of web pages (with an Origin) are refused")]
    WebPage,
    /// From elsewhere, without the token.
    #[error("from another machine, send the token: Authorization: Bearer TOKEN")]
    TokenNeeded,
    /// An action by somebody who may only look.
    #[error("actions need the admin socket's owner, or the token: Authorization: Bearer TOKEN")]
    MayNotAct,
}

impl Refused {
    /// The HTTP status.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::ForeignHost | Self::WebPage | Self::MayNotAct => StatusCode::FORBIDDEN,
            Self::TokenNeeded => StatusCode::UNAUTHORIZED,
        }
    }
}

/// Knows the token.
pub(super) struct Guard {
    /// May be another one after a reload.
    token: watch::Receiver<Option<String>>,
}

impl Guard {
    pub(super) fn new(token: watch::Receiver<Option<String>>) -> Self {
        Self { token }
    }

    /// Whether the request may pass.
    pub(super) fn check(
        &self,
        caller: Caller,
        headers: &HeaderMap,
        path: &str,
        is_action: bool,
    ) -> Result<(), Refused> {
        let has_token = self.has_token(headers);
        if headers.contains_key(ORIGIN) {
            return Err(Refused::WebPage);
        }
        // A token is no secret of a web page, and a remote caller uses whatever name reaches us.
        if !has_token && matches!(caller, Caller::Port { .. }) && !is_own_host(headers) {
            return Err(Refused::ForeignHost);
        }
        // An orchestrator's probes know no token.
        let is_open = matches!(path, "/live" | "/ready");
        if caller == (Caller::Port { loopback: false }) && !has_token && !is_open {
            return Err(Refused::TokenNeeded);
        }
        if is_action && !has_token && caller != (Caller::Socket { owner: true }) {
            return Err(Refused::MayNotAct);
        }
        Ok(())
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        match (&*self.token.borrow(), shown.and_then(|value| value.strip_prefix(b"Bearer "))) {
            (Some(token), Some(shown)) => is_equal(token.as_bytes(), shown),
            _ => false,
        }
    }
}

/// Whether the user `uid` may act: the one who runs the node, or root.
pub(super) fn may_act(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// An address or `localhost`, with or without a port. Names could be made to resolve here by
/// somebody else.
fn is_own_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_address =
        host.parse::<SocketAddr>().is_ok() || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_address || name == "localhost" || host == "localhost"
}

/// Takes as long whatever differs, so that a token cannot be guessed byte by byte.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Caller = Caller::Port { loopback: true };
    const REMOTE: Caller = Caller::Port { loopback: false };
    const OWNER: Caller = Caller::Socket { owner: true };
    const STRANGER: Caller = Caller::Socket { owner: false };

    fn check(caller: Caller, pairs: &[(&'static str, &str)], is_action: bool) -> Result<(), Refused> {
        let pair = |(name, value): &(&'static str, &str)| {
            (http::HeaderName::from_static(name), value.parse().expect("value"))
        };
        let headers = pairs.iter().map(pair).collect();
        Guard::new(watch::channel(Some("secret".into())).1).check(caller, &headers, "/v1/node", is_action)
    }

    #[test]
    fn reading_is_open_on_loopback_and_acting_is_not() {
        for host in ["127.0.0.1:7402", "localhost:7402", "localhost", "[::1]:7402", "10.0.0.9"] {
            assert_eq!(check(PORT, &[("host", host)], false), Ok(()), "{host}");
            assert_eq!(check(PORT, &[("host", host)], true), Err(Refused::MayNotAct), "{host}");
        }
        assert_eq!(check(OWNER, &[("host", "starling")], true), Ok(()));
        assert_eq!(check(STRANGER, &[("host", "starling")], true), Err(Refused::MayNotAct));
        assert_eq!(check(STRANGER, &[("host", "starling")], false), Ok(()));
    }

    #[test]
    fn a_web_page_gets_nothing() {
        assert_eq!(check(PORT, &[("host", "evil.example")], false), Err(Refused::ForeignHost));
        assert_eq!(check(PORT, &[], false), Err(Refused::ForeignHost));
        let from_page = [("host", "127.0.0.1:7402"), ("origin", "http://evil.example")];
        assert_eq!(check(PORT, &from_page, false), Err(Refused::WebPage));
        assert_eq!(check(PORT, &from_page, true), Err(Refused::WebPage));
    }

    #[test]
    fn the_token_opens_everything_and_a_wrong_one_nothing() {
        let right = [("host", "node-7.example"), ("authorization", "Bearer secret")];
        let wrong = [("host", "10.0.0.9"), ("authorization", "Bearer secreT")];
        assert_eq!(check(REMOTE, &right, true), Ok(()));
        assert_eq!(check(REMOTE, &wrong, false), Err(Refused::TokenNeeded));
        assert_eq!(check(PORT, &wrong, true), Err(Refused::MayNotAct));
    }
}
