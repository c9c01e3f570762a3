//! Certificates, chains, bundles and identities, as peers and files bring them. The first byte says
//! which.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use starling_fuzz::{IDENTITIES, WALL, World, pieces};
use starling_gossip::identity::{NodeName, ServiceName, SpiffeId, TrustDomain};
use starling_gossip::revocation::Revocations;
use starling_gossip::svid::{Svid, TrustBundle, Usage};

static WORLD: LazyLock<World> = LazyLock::new(World::new);
static BUNDLE: LazyLock<TrustBundle> = LazyLock::new(|| WORLD.bundle());

fuzz_target!(|input: &[u8]| {
    let Some((kind, body)) = input.split_first() else { return };
    match kind {
        0 => {
            let chain: Vec<_> = pieces(body).take(8).map(CertificateDer::from).collect();
            for usage in [Usage::Client, Usage::Server] {
                if let Ok(found) = BUNDLE.verify(&chain, usage, WALL) {
                    assert!(IDENTITIES.contains(&found.id.as_str()), "{} was never issued", found.id);
                }
            }
        }
        1 => {
            let Ok(bundle) = TrustBundle::from_pem("acme".parse().expect("a domain"), body) else { return };
            assert!(!bundle.roots().is_empty());
            let _ = bundle.verify(WORLD.svids[0].chain(), Usage::Server, WALL);
        }
        2 => drop(Svid::from_pem(body, body)),
        4 => {
            let Ok(revoked) = Revocations::parse(body) else { return };
            let (id, chain) = (WORLD.svids[0].id(), WORLD.svids[0].chain());
            let listed = revoked.lists(id, chain);
            let bundle = WORLD.bundle().without(revoked);
            assert_eq!(bundle.verify(chain, Usage::Server, WALL).is_err(), listed);
        }
        _ => {
            let Ok(text) = std::str::from_utf8(body) else { return };
            if let Ok(id) = text.parse::<SpiffeId>() {
                assert_eq!(id.to_string(), text);
                assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
                assert!(id.is_in(&id.trust_domain()));
                assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
                assert!(id.announces().is_none_or(|service| id.may_announce(&service)));
            }
            let _ = (text.parse::<TrustDomain>(), text.parse::<ServiceName>(), text.parse::<NodeName>());
        }
    }
});
