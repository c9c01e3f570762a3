//! A member that speaks the transport's protocol by itself, and need not be honest.

use std::net::SocketAddr;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use starling_gossip::clock::Clock;
use starling_gossip::svid::{Svid, TrustBundle};
use starling_transport::credentials::Credentials;
use starling_transport::endpoint::{Endpoint, Incoming};
use starling_transport::limits::Windows;

use crate::mesh::Mesh;

/// Proof of being `id`, as the mesh's authority gives it.
pub fn credentials(mesh: &Mesh, id: &str) -> Credentials {
    let issued = mesh.issue(id);
    let svid = Svid::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).expect("an SVID");
    let bundle = TrustBundle::from_pem(svid.id().trust_domain(), mesh.trust_bundle().as_bytes());
    Credentials::new(svid, bundle.expect("a bundle"), Clock::System).expect("good credentials")
}

/// Who has them, at `listen`.
pub fn member(mesh: &Mesh, id: &str, listen: SocketAddr) -> (Endpoint, Incoming) {
    Endpoint::bind(listen, credentials(mesh, id), Windows::within(None), StdRng::seed_from_u64(1))
        .expect("bound")
}
