//! How endpoints are chosen, as a caller's configuration says.

use std::fmt;

use http::HeaderName;

/// By what the next endpoint is chosen, among the nearest that can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Of two drawn by weight, the one that is likelier to answer soon: the time that its answers take of
    /// late, times the work it has. For whatever answers at all alike.
    #[default]
    PeakEwma,
    /// Of two drawn by weight, the one with less work under way. Where answers take very different times
    /// by their nature, not by who gives them.
    LeastRequest,
    /// Each in turn. Where every request costs the same, or calls are few.
    RoundRobin,
    /// By a hash of something of the request, so that the same goes to the same endpoint. For caches.
    ConsistentHash(HashOn),
}

/// What of a request decides where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// A header's value.
    Header(HeaderName),
    /// A cookie's value.
    Cookie(String),
    /// The address that the caller connects from.
    Source,
    /// The path, without a query.
    Path,
}

impl Policy {
    /// As in the configuration.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::PeakEwma => "peak_ewma",
            Self::LeastRequest => "least_request",
            Self::RoundRobin => "round_robin",
            Self::ConsistentHash(_) => "consistent_hash",
        }
    }

    /// What of a request it needs to know.
    pub(crate) fn hash_on(&self) -> Option<&HashOn> {
        match self {
            Self::ConsistentHash(on) => Some(on),
            Self::PeakEwma | Self::LeastRequest | Self::RoundRobin => None,
        }
    }
}

impl fmt::Display for HashOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Source => f.write_str("source"),
            Self::Path => f.write_str("path"),
        }
    }
}
