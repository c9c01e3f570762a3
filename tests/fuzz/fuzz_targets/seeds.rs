//! Not a target: writes the seed corpora, `tests/fuzz/run --seeds`. They are bytes of our own encoders,
//! and the same each time it runs.
#![no_main]

use std::fs;
use std::path::Path;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use starling_fuzz::{IDENTITIES, Message, OWN_MAP, WALL, World, join};
use starling_gossip::clock::Clock;
use starling_gossip::codec;
use starling_gossip::fuzzing::Listener;
use starling_gossip::publisher::{NodeDescription, Publisher, Said};
use starling_gossip::record::{Health, Instance, Locality, Protocol};
use starling_gossip::signature::SealedRecord;
use starling_transport::header::{Answer, Refusal, RefusalReason, StreamHeader, StreamKind};

fuzz_target!(|_input: &[u8]| {
    stream_headers();
    records();
    gossip_messages();
    certificates();
    texts();
});

fn write(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&directory).expect("a directory");
    fs::write(directory.join(name), bytes).expect("written");
}

fn stream_headers() {
    let (service, instance) = ("cart.shop".parse().expect("a name"), "cart-1".to_owned());
    let kinds = [
        ("gossip", StreamKind::Gossip),
        ("welcome", StreamKind::Welcome),
        ("goodbye", StreamKind::Goodbye),
        ("tcp", StreamKind::Tcp { service, instance: instance.clone() }),
        ("http1", StreamKind::Http1 { service: "web".parse().expect("a name"), instance: instance.clone() }),
        ("http2", StreamKind::Http2 { service: "web".parse().expect("a name"), instance }),
    ];
    for (name, kind) in kinds {
        write("stream_header", name, StreamHeader::new(kind).encode().expect("a header"));
    }
    write("stream_header", "accepted", Answer::Accepted.encode());
    let refusal = Refusal::new(RefusalReason::NoSuchInstance, "no such instance of this service here");
    write("stream_header", "refused", Answer::Refused(refusal).encode());
}

/// What one node says in its life, in order.
fn said(world: &World, signer: usize) -> Vec<Said> {
    let description = NodeDescription {
        name: format!("node-{signer}").parse().expect("a name"),
        addresses: vec![([192, 0, 2, 9], 7400).into(), "[2001:db8::1]:7400".parse().expect("an address")],
        locality: Locality { region: "eu".parse().ok(), zone: "eu-1".parse().ok(), site: None },
        program: "starling/0.1.0".parse().expect("a label"),
        lease: Duration::from_secs(120),
        renew: Duration::from_secs(5),
    };
    let id: starling_gossip::identity::SpiffeId = IDENTITIES[signer].parse().expect("an identity");
    let instance = |health| Instance {
        service: id.announces().expect("a service"),
        protocol: Protocol::Http,
        version: "v2".parse().ok(),
        tags: [("track".parse().expect("a label"), "canary".parse().expect("a label"))].into(),
        weight: 100,
        health,
        since_unix_millis: WALL.unix_millis,
    };
    let svid = world_svid(world, signer);
    let now = Clock::System.now();
    let mut publisher = Publisher::new(svid, description, WALL.unix_millis, [7; 32], now);
    let label = || "main".parse().expect("a label");
    publisher.set_instance(label(), Some(instance(Health::Unknown)));
    publisher.set_instance(label(), Some(instance(Health::Healthy)));
    publisher.handle_timeout(publisher.poll_timeout(), || [8; 32]);
    publisher.set_instance(label(), None);
    publisher.leave();
    std::iter::from_fn(|| publisher.poll_said()).collect()
}

fn world_svid(world: &World, signer: usize) -> std::sync::Arc<starling_gossip::svid::Svid> {
    let svid = &world.svids[signer];
    let again = starling_gossip::svid::Svid::new(svid.chain().to_vec(), svid.private_key().clone_key());
    std::sync::Arc::new(again.expect("an SVID"))
}

fn records() {
    let world = World::new();
    for signer in 0..IDENTITIES.len() {
        let mut story = Vec::new();
        for (number, said) in said(&world, signer).into_iter().enumerate() {
            let sealed = match &said {
                Said::Node(sealed) | Said::Instance(_, sealed) => sealed.to_bytes(),
                Said::Renewal(renewal) => codec::encode(renewal),
            };
            write("record", &format!("{signer}-{number}"), &sealed);
            story.push(match said {
                Said::Node(sealed) | Said::Instance(_, sealed) => unsigned(signer, &sealed),
                Said::Renewal(renewal) => {
                    let number = u8::try_from(signer).expect("few");
                    [vec![2, number], codec::encode(&renewal)].concat()
                }
            });
        }
        write("catalogue", &format!("life-{signer}"), join(&story));
        story.insert(1, vec![200, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        story.rotate_left(1);
        write("catalogue", &format!("out-of-order-{signer}"), join(&story));
    }
}

fn unsigned(signer: usize, sealed: &SealedRecord) -> Vec<u8> {
    let record = sealed.unverified().expect("our own");
    [vec![u8::try_from(signer).expect("few")], codec::encode(&record)].concat()
}

fn gossip_messages() {
    const OTHER: &str = "00000000000000bb";
    let mut one = Listener::new(OWN_MAP, ([192, 0, 2, 9], 7400).into());
    let mut other = Listener::new(OTHER, ([192, 0, 2, 9], 7400).into());
    let syn = other.speak().expect("a Syn");
    let syn_ack = one.hear(&syn).expect("an answer");
    let ack = other.hear(&syn_ack).expect("an answer");
    write("gossip_message", "exchange", join(&[syn.clone(), syn_ack, ack]));
    write("gossip_message", "bad-cluster", join(&[Message::new(3).finish()]));
    let foreign = Message::new(0).digest(&[(OTHER, 2)]).cluster("elsewhere").finish();
    write("gossip_message", "foreign-cluster", join(&[foreign]));
    let known = Message::new(1).digest(&[(OTHER, 4), (OWN_MAP, 0)]).delta(&[]).finish();
    let values = [("n", "AAAA"), ("i/main", "BBBB"), ("l", "CCCC")];
    let news = Message::new(2).delta(&[(OTHER, &values)]).finish();
    let empty = Message::new(2).delta(&[(OTHER, &[]), (OWN_MAP, &[])]).finish();
    let overwritten = Message::new(2).delta(&[(OWN_MAP, &values)]).finish();
    write("gossip_message", "news", join(&[known.clone(), news.clone(), syn.clone()]));
    write("gossip_message", "no-values", join(&[known.clone(), empty, syn.clone()]));
    write("gossip_message", "overwritten", join(&[known, overwritten, news, syn]));
}

fn certificates() {
    let world = World::new();
    let prefixed = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    for (number, svid) in world.svids.iter().enumerate() {
        let chain: Vec<Vec<u8>> = svid.chain().iter().map(|one| one.to_vec()).collect();
        write("certificate", &format!("chain-{number}"), prefixed(0, &join(&chain)));
    }
    write("certificate", "bundle", prefixed(1, world.root_pem.as_bytes()));
    write("certificate", "no-svid", prefixed(2, world.root_pem.as_bytes()));
    for (number, id) in IDENTITIES.iter().enumerate() {
        write("certificate", &format!("id-{number}"), prefixed(3, id.as_bytes()));
    }
    let list = "# stolen\nspiffe://acme/svc/web\n0a:1b:2c\n\
                e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";
    write("certificate", "revoked", prefixed(4, list.as_bytes()));
}

fn texts() {
    let plain = "/path\nhost: payments.mesh:7401\naccept: */*\nx-starling-peer: spiffe://acme/svc/admin\n";
    let hop = "http://cart.shop.mesh/\nconnection: close, X-Private, te\nx-private: 1\nkeep-alive: timeout=5\n\
               te: trailers\nproxy-authorization: x\n";
    let upgrade = "/\nhost: Web.Mesh.\nconnection: Upgrade\nupgrade: websocket\nx_starling_peer: me\n";
    for (name, text) in [("plain", plain), ("hop-by-hop", hop), ("upgrade", upgrade)] {
        write("http", name, text);
    }
    write("configuration", "full.toml", include_str!("../../../node/src/config/tests/full.toml"));
    let small =
        "[mesh]\nseeds = [\"a.example:7400\"]\n[[service]]\nname = \"web\"\naddress = \"127.0.0.1:80\"\n";
    write("configuration", "small.toml", small);
    write("configuration", "environment", format!("{small}\0NODE__NAME=web-1"));
    write(
        "configuration",
        "wrong.toml",
        "[nod]\n[mesh]\nseeds = [\"a\"]\n[[service]]\nname = \"a b\"\nport = 99999\n",
    );
}
