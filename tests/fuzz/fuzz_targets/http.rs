//! Whatever headers a client sends, exactly one `x-starling-peer` leaves, with the proved identity, and
//! nothing that ends at a hop passes it. The input is a request's head, roughly: a line, then headers.
#![no_main]

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Version};
use libfuzzer_sys::fuzz_target;
use starling::fuzzing::{headers_at_caller, headers_at_workload, service_of};
use starling_gossip::identity::SpiffeId;

const PROVED: &str = "spiffe://acme/svc/proved";

/// hyper's own limit of headers is 100.
const HEADERS_MAX: usize = 100;

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    let uri = lines.next().unwrap_or_default();
    let headers: HeaderMap = lines.take(HEADERS_MAX).filter_map(header).collect();
    for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
        let peer: SpiffeId = PROVED.parse().expect("an identity");
        let sent = headers_at_workload(headers.clone(), version, &peer);
        check_hop(&sent);
        let told: Vec<_> = sent.iter().filter(|(name, _)| is_own(name)).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0.as_str(), "x-starling-peer");
        assert_eq!(told[0].1.as_bytes(), PROVED.as_bytes());
    }
    let answered = headers_at_caller(headers.clone());
    check_hop(&answered);
    assert!(!answered.keys().any(is_own), "a workload does not speak for the mesh");
    if let Ok(mut request) = Request::builder().uri(uri).body(()) {
        *request.headers_mut() = headers;
        if let Some(service) = service_of(&request) {
            assert!(!service.is_empty() && !service.bytes().any(|byte| byte.is_ascii_uppercase()));
        }
    }
});

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
}

/// As a CGI program would read the name.
fn is_own(name: &HeaderName) -> bool {
    name.as_str().replace('_', "-").starts_with("x-starling-")
}

fn check_hop(headers: &HeaderMap) {
    for name in ["keep-alive", "proxy-connection", "proxy-authorization"] {
        assert!(!headers.contains_key(name), "{name} ends here");
    }
    let one = |name: &str| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    assert!(one("te").is_empty() || one("te") == [b"trailers"]);
    assert!(one("connection").is_empty() || one("connection") == [b"upgrade"]);
    assert_eq!(one("upgrade").len(), one("connection").len(), "an upgrade is named, and nothing else");
}
