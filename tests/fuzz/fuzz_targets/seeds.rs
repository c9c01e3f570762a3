//! Not a target: writes the seed corpora, `tests/fuzz/run --seeds`. They are bytes of our own encoders,
//! and the same each time it runs.
#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use starling_fuzz::{IDENTITIES, Message, OWN_MAP, WALL, World, join, known, known_name, listener, said};
use starling_gossip::codec;
use starling_gossip::fuzzing::{Listener, everything_said};
use starling_gossip::publisher::Said;
use starling_gossip::signature::SealedRecord;
use starling_transport::header::{Answer, Refusal, RefusalReason, StreamHeader, StreamKind};

fuzz_target!(|_input: &[u8]| {
    stream_headers();
    messages();
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
        ("http2", StreamKind::Http2 { service: "web".parse().expect("a name"), instance: instance.clone() }),
        (
            "http1_messages",
            StreamKind::Http1Messages { service: "web".parse().expect("a name"), instance: instance.clone() },
        ),
        ("http2_messages", StreamKind::Http2Messages { service: "web".parse().expect("a name"), instance }),
    ];
    for (name, kind) in kinds {
        write("stream_header", name, StreamHeader::new(kind).encode().expect("a header"));
    }
    write("stream_header", "accepted", Answer::Accepted.encode());
    let refusal = Refusal::new(RefusalReason::NoSuchInstance, "no such instance of this service here");
    write("stream_header", "refused", Answer::Refused(refusal).encode());
}

/// Those that `tests/fixtures` holds all programs to, one after the other.
fn messages() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/messages-1");
    let read = |name: &str| fs::read(directory.join(name)).expect("a fixture");
    let (request, short) = (read("request"), read("request-without-a-body"));
    write("messages", "http1", [&[0], short.as_slice(), &short].concat());
    write("messages", "http2", [&[1], request.as_slice(), &short].concat());
    write("messages", "http2-in-pieces", [&[7], request.as_slice(), &request].concat());
    write("messages", "answers", [&[1], read("answer-without-a-body").as_slice(), &read("answer")].concat());
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
    let world = World::new();
    let known = known(&world);
    let name = known_name(&known[0]);
    let other = name.as_str();
    let mut one = listener(&world);
    let mut another =
        Listener::new(OWN_MAP + 1, ([192, 0, 2, 10], 7400).into(), world.bundle(), WALL, &known);
    let syn = another.speak().expect("a Syn");
    let syn_ack = one.hear(&syn).expect("an answer");
    write("gossip_message", "exchange", join(&[syn.clone(), syn_ack]));
    write("gossip_message", "bad-cluster", join(&[Message::new(3).finish()]));
    let foreign = Message::new(0).digest(&[(other, 2)]).cluster("elsewhere").finish();
    write("gossip_message", "foreign-cluster", join(&[foreign]));
    let own = format!("{OWN_MAP:016x}");
    let named = Message::new(1).digest(&[(other, 4), (&own, 0)]).delta(&[]).finish();
    let values = [("n", "AAAA"), ("i/main", "BBBB"), ("l", "CCCC")];
    let news = Message::new(2).delta(&[(other, &values)]).finish();
    let empty = Message::new(2).delta(&[(other, &[]), (&own, &[])]).finish();
    let overwritten = Message::new(2).delta(&[(&own, &values)]).finish();
    write("gossip_message", "news", join(&[named.clone(), news.clone(), syn.clone()]));
    write("gossip_message", "no-values", join(&[named.clone(), empty, syn.clone()]));
    write("gossip_message", "overwritten", join(&[named, overwritten, news, syn]));
    let sealed = said(&world, 1).into_iter().filter_map(|said| match said {
        Said::Node(sealed) | Said::Instance(_, sealed) => Some(sealed.to_bytes()),
        Said::Renewal(_) => None,
    });
    let sealed: Vec<_> = sealed.collect();
    for (name, message) in everything_said(&sealed) {
        write("gossip_message", name, join(&[message]));
    }
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
    for (name, path) in [
        ("dots", "a/./b/../%2e%2E//c/.."),
        ("encoded", "%61%7e%c3%a4/%20;v=1/x%25"),
        ("refused", "a%2fb%5c%00"),
        ("data", "a%2fb/..%5c;v=..%3B/%2F"),
    ] {
        write("path", name, path);
    }
    for (name, value) in [("small", "20u"), ("largest", "99999999H")] {
        write("grpc_timeout", name, value);
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
