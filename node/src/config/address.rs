//! Addresses as people write them: `host:port`, an IPv6 address in brackets, or `unix:/path`; where
//! a workload speaks TLS, `https://host:port` or `tls://host:port`.
//!
//! Names are not resolved here; whoever dials resolves them, again and again.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use super::limits::{DNS_NAME_BYTES_MAX, UNIX_PATH_BYTES_MAX};
use super::mistake::{Wrong, wrong};

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Which machine.
    pub host: Host,
    /// Which port of it.
    pub port: u16,
}

/// A machine, by address or by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
    /// A DNS name, syntactically sound.
    Name(String),
}

/// Where a workload listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkloadAddress {
    /// A TCP port, usually on this machine.
    Tcp(HostPort),
    /// A TCP port whose workload speaks TLS.
    Tls {
        /// What is inside.
        scheme: TlsScheme,
        /// Where.
        at: HostPort,
    },
    /// A Unix domain socket, by absolute path.
    Unix(PathBuf),
}

/// What a workload speaks inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsScheme {
    /// HTTP: 1.1 or 2, by ALPN.
    Https,
    /// Anything.
    Tls,
}

impl WorkloadAddress {
    /// Host and port, if it has them.
    pub(crate) fn host_port(&self) -> Option<&HostPort> {
        match self {
            Self::Tcp(at) | Self::Tls { at, .. } => Some(at),
            Self::Unix(_) => None,
        }
    }
}

impl TlsScheme {
    /// As in an address.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Tls => "tls",
        }
    }
}

impl HostPort {
    /// Whether somebody can connect to it: a real port, a real address.
    pub(super) fn check_dialable(&self) -> Result<(), Wrong> {
        if self.port == 0 {
            return wrong("port 0 cannot be connected to", "write the port that the other side listens on");
        }
        match self.host {
            Host::Ip(ip) if ip.is_unspecified() => {
                wrong(format!("{ip} means every address and cannot be connected to"), "write one address")
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for HostPort {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        if let Some((scheme, rest)) = text.split_once("://") {
            let host_port = rest.trim_end_matches('/');
            return wrong(format!("{scheme}:// does not belong here"), format!("write {host_port:?}"));
        }
        let (host, port) = split(text)?;
        let port = match port.parse::<u32>() {
            Ok(port) if port <= u32::from(u16::MAX) => port as u16,
            Ok(_) => return wrong(format!("port {port} does not exist"), "ports go from 1 to 65535"),
            Err(_) => {
                return wrong(format!("{port:?} is not a port"), "ports are numbers from 1 to 65535");
            }
        };
        Ok(Self { host: parse_host(host)?, port })
    }
}

/// Host and port as texts. Brackets around IPv6 stay with the host.
fn split(text: &str) -> Result<(&str, &str), Wrong> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return wrong(format!("{text:?} has no port"), format!("write \"[{text}]:7400\", with its port"));
    }
    let after_brackets = text.find(']').unwrap_or(0);
    match text[after_brackets..].rfind(':') {
        Some(colon) => {
            let colon = after_brackets + colon;
            Ok((&text[..colon], &text[colon + 1..]))
        }
        None => wrong(format!("{text:?} has no port"), format!("write \"{text}:7400\", with its port")),
    }
}

fn parse_host(host: &str) -> Result<Host, Wrong> {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match inner.parse::<Ipv6Addr>() {
            Ok(ip) => Ok(Host::Ip(ip.into())),
            Err(_) => wrong(format!("{inner:?} is not an IPv6 address"), "write for instance \"[::1]:7400\""),
        };
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return match ip {
            IpAddr::V4(_) => Ok(Host::Ip(ip)),
            IpAddr::V6(_) => {
                wrong("an IPv6 address with a port needs brackets", format!("write \"[{host}]:…\""))
            }
        };
    }
    if host.is_empty() {
        return wrong("the host is missing", "write an address or name before the colon");
    }
    // Names like 10.0.0.300 are mistyped addresses: no top-level domain is a number.
    let looks_like_ip = host.rsplit('.').next().is_some_and(|end| end.bytes().all(|b| b.is_ascii_digit()));
    let good_label = |label: &str| {
        let good = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(good) && !label.starts_with('-')
    };
    let labels = host.strip_suffix('.').unwrap_or(host);
    if looks_like_ip || host.len() > DNS_NAME_BYTES_MAX || !labels.split('.').all(good_label) {
        return wrong(
            format!("{host:?} is neither an IP address nor a DNS name"),
            "write for instance \"10.0.0.5:7400\" or \"seed.example:7400\"",
        );
    }
    Ok(Host::Name(host.to_owned()))
}

impl FromStr for WorkloadAddress {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        for scheme in [TlsScheme::Https, TlsScheme::Tls] {
            let after = text.strip_prefix(scheme.as_str()).and_then(|rest| rest.strip_prefix("://"));
            if let Some(host_port) = after {
                return Ok(Self::Tls { scheme, at: parse_behind(scheme, host_port)? });
            }
        }
        let Some(path) = text.strip_prefix("unix:") else {
            let address: HostPort = text.parse()?;
            address.check_dialable()?;
            return Ok(Self::Tcp(address));
        };
        unix_path(path).map(Self::Unix)
    }
}

/// The path behind `unix:`.
pub(super) fn unix_path(path: &str) -> Result<PathBuf, Wrong> {
    if !path.starts_with('/') {
        return wrong(format!("{path:?} is not an absolute path"), "write \"unix:/run/app.sock\"");
    }
    if path.len() > UNIX_PATH_BYTES_MAX {
        let limit = format!("use a path of at most {UNIX_PATH_BYTES_MAX} bytes");
        return wrong(format!("a socket's path cannot have {} bytes", path.len()), limit);
    }
    Ok(path.into())
}

/// An address, and no whole URL.
fn parse_behind(scheme: TlsScheme, text: &str) -> Result<HostPort, Wrong> {
    let scheme = scheme.as_str();
    if let Some((host_port, _path)) = text.split_once('/') {
        return wrong("an address has no path", format!("write \"{scheme}://{host_port}\""));
    }
    if !text.contains(':') {
        return wrong(
            format!("{text:?} has no port"),
            format!("write \"{scheme}://{text}:443\", with its port"),
        );
    }
    let address: HostPort = text.parse()?;
    address.check_dialable()?;
    Ok(address)
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl fmt::Display for WorkloadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Tls { scheme, at } => write!(f, "{}://{at}", scheme.as_str()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
