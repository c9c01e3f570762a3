//! PURE: which service a request by name means.

use http::Request;
use http::header::HOST;

use crate::proxy::failure::{Failure, Flag};

/// `payments.mesh` is the service `payments`.
const SUFFIX: &str = ".mesh";

/// The service that a request's authority names: its target's if it has one (RFC 9112, section
/// 3.2.2), else its `Host`.
pub(crate) fn service_of<B>(request: &Request<B>) -> Result<String, Failure> {
    let host = match request.uri().host() {
        Some(host) => host,
        None => {
            let header = request.headers().get(HOST).and_then(|value| value.to_str().ok());
            let authority = header.ok_or_else(|| {
                Failure::new(Flag::NoRoute, "the request names no host; ask for http://SERVICE.mesh/")
            })?;
            without_port(authority)
        }
    };
    // Hosts have no case (RFC 3986, section 3.2.2), and a dot at the end means "absolute".
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let service = name.strip_suffix(SUFFIX).filter(|service| !service.is_empty());
    service.map(str::to_owned).ok_or_else(|| {
        Failure::new(
            Flag::NoRoute,
            format!("{host:?} is no name of this mesh; services are called SERVICE{SUFFIX}"),
        )
    })
}

/// The name of `service` as a host.
pub(crate) fn host_of(service: &str) -> String {
    format!("{service}{SUFFIX}")
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_names_the_service() {
        let named = |uri: &str, host: &str| {
            let request = Request::builder().uri(uri).header(HOST, host).body(()).expect("request");
            service_of(&request).map_err(|failure| failure.flag)
        };
        assert_eq!(named("/", "payments.mesh").as_deref(), Ok("payments"));
        assert_eq!(named("/", "payments.mesh:7401").as_deref(), Ok("payments"));
        assert_eq!(named("/", "cart.shop.mesh").as_deref(), Ok("cart.shop"));
        assert_eq!(named("http://payments.mesh/x", "other.mesh").as_deref(), Ok("payments"));
        assert_eq!(named("/", "Payments.MESH.").as_deref(), Ok("payments"));
        assert_eq!(named("/", "payments"), Err(Flag::NoRoute));
        assert_eq!(named("/", ".mesh"), Err(Flag::NoRoute));
        assert_eq!(named("/", "127.0.0.1:7401"), Err(Flag::NoRoute));
    }
}
