//! What the fuzz targets share: a certificate authority whose keys follow from constants, so that
//! committed seeds stay good, and a way of cutting one input into several pieces.

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519,
    SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::time::Duration;

use starling_gossip::clock::{Clock, WallTime};
use starling_gossip::fuzzing::Listener;
use starling_gossip::identity::SpiffeId;
use starling_gossip::publisher::{NodeDescription, Publisher, Said};
use starling_gossip::record::{Health, Instance, Locality, Protocol, Record};
use starling_gossip::signature::SealedRecord;
use starling_gossip::svid::{Svid, TrustBundle};

/// What the calendar says: 2026-01-01 00:00 UTC.
pub const WALL: WallTime = WallTime { unix_millis: 1_767_225_600_000 };

/// The identities that sign for the fuzzer.
pub const IDENTITIES: [&str; 2] = ["spiffe://acme/svc/web", "spiffe://acme/ns/shop/sa/cart"];

/// A root, and what it issued.
pub struct World {
    pub root_pem: String,
    pub svids: Vec<Svid>,
}

impl World {
    /// The same bytes each time: Ed25519 signatures are deterministic (RFC 8032).
    pub fn new() -> Self {
        let root_key = key(1);
        let mut root = params(1);
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_pem = root.self_signed(&root_key).expect("a root").pem();
        let issuer = Issuer::new(root, root_key);
        let issue = |(index, id): (usize, &&str)| {
            let number = 2 + u8::try_from(index).expect("few");
            let key = key(number);
            let mut leaf = params(number);
            leaf.subject_alt_names = vec![SanType::URI((*id).try_into().expect("ASCII"))];
            leaf.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let chain: Vec<CertificateDer<'static>> =
                vec![leaf.signed_by(&key, &issuer).expect("a leaf").der().clone()];
            let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
            Svid::new(chain, private).expect("an SVID")
        };
        let svids = IDENTITIES.iter().enumerate().map(issue).collect();
        Self { root_pem, svids }
    }

    /// Believes the root about `acme`.
    pub fn bundle(&self) -> TrustBundle {
        let domain = "acme".parse().expect("a domain");
        TrustBundle::from_pem(domain, self.root_pem.as_bytes()).expect("a bundle")
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

fn params(number: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2035, 1, 1);
    params.serial_number = Some(SerialNumber::from(vec![number]));
    params
}

/// An Ed25519 key as PKCS #8 (RFC 8410, section 7), from 32 equal bytes.
fn key(number: u8) -> KeyPair {
    const PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let der = [PREFIX.as_slice(), &[number; 32]].concat();
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ED25519).expect("a key")
}

/// Cuts an input into pieces, each after its length in two bytes (little endian); the last may be
/// shorter than it says.
pub fn pieces(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = input;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (piece, after) = after.split_at(usize::from(u16::from_le_bytes(*length)).min(after.len()));
        rest = after;
        Some(piece)
    })
}

/// The inverse of [`pieces`].
pub fn join(pieces: &[Vec<u8>]) -> Vec<u8> {
    let framed = |piece: &Vec<u8>| {
        let length = u16::try_from(piece.len()).expect("short pieces").to_le_bytes();
        [length.as_slice(), piece].concat()
    };
    pieces.iter().flat_map(framed).collect()
}

/// The map of the node that hears the fuzzer's messages.
pub const OWN_MAP: u64 = 0xaa;

/// A node that hears the fuzzer's messages, and knows [`known`].
pub fn listener(world: &World) -> Listener {
    Listener::new(OWN_MAP, ([192, 0, 2, 9], 7400).into(), world.bundle(), WALL, &known(world))
}

/// Two nodes' sealed records: the first's is of the version before, the other says all that one of this
/// version does until it leaves.
pub fn known(world: &World) -> Vec<Vec<u8>> {
    let sealed = |said: Said| match said {
        Said::Node(sealed) | Said::Instance(_, sealed) => Some(sealed),
        Said::Renewal(_) => None,
    };
    let mut records: Vec<_> = said(world, 1).into_iter().filter_map(sealed).collect();
    records.pop();
    let first = said(world, 0).into_iter().find_map(sealed).expect("a node record");
    let Ok(Record::Node(mut node)) = first.unverified() else { panic!("a node record comes first") };
    node.capabilities.clear();
    let old = SealedRecord::seal(&Record::Node(node), &world.svids[0]);
    [old].into_iter().chain(records).map(|sealed| sealed.to_bytes()).collect()
}

/// What maps call the owner of `record`.
pub fn known_name(record: &[u8]) -> String {
    let sealed = SealedRecord::from_bytes(record).expect("our own");
    sealed.unverified().expect("our own").owner().short_name()
}

/// What one node says in its life, in order.
pub fn said(world: &World, signer: usize) -> Vec<Said> {
    let description = NodeDescription {
        name: format!("node-{signer}").parse().expect("a name"),
        addresses: vec![([192, 0, 2, 9], 7400).into(), "[2001:db8::1]:7400".parse().expect("an address")],
        locality: Locality { region: "eu".parse().ok(), zone: "eu-1".parse().ok(), site: None },
        program: "starling/0.1.0".parse().expect("a label"),
        lease: Duration::from_secs(120),
        renew: Duration::from_secs(5),
    };
    let id: SpiffeId = IDENTITIES[signer].parse().expect("an identity");
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

fn world_svid(world: &World, signer: usize) -> std::sync::Arc<Svid> {
    let svid = &world.svids[signer];
    let again = Svid::new(svid.chain().to_vec(), svid.private_key().clone_key());
    std::sync::Arc::new(again.expect("an SVID"))
}

/// A gossip message in chitchat's format, its delta not compressed: what a fuzzer can change.
#[derive(Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// Begins a message of this kind: 0 `Syn`, 1 `SynAck`, 2 `Ack`, 3 `BadCluster`.
    pub fn new(kind: u8) -> Self {
        let [low, high] = 45_139u16.to_le_bytes();
        Self(vec![low, high, 0, kind])
    }

    /// A digest of these maps: name, and what is known up to.
    pub fn digest(mut self, maps: &[(&str, u64)]) -> Self {
        self.number16(maps.len());
        for (name, newest) in maps {
            self.map(name);
            for counter in [3, 0, *newest] {
                self.0.extend(counter.to_le_bytes());
            }
        }
        self
    }

    /// A trust domain's name.
    pub fn cluster(mut self, name: &str) -> Self {
        self.text(name);
        self
    }

    /// A delta of one block: for each map, its values from version 1 on.
    pub fn delta(mut self, maps: &[(&str, &[(&str, &str)])]) -> Self {
        let mut block = Self::default();
        for (name, values) in maps {
            block.0.push(0);
            block.map(name);
            block.0.extend([0; 16]);
            for (version, (key, value)) in (1u64..).zip(*values) {
                block.0.push(1);
                block.text(key);
                block.text(value);
                block.0.extend(version.to_le_bytes());
                block.0.push(0);
            }
            if values.is_empty() {
                block.0.push(2);
                block.0.extend(9u64.to_le_bytes());
            }
        }
        self.0.push(2);
        self.number16(block.0.len());
        self.0.extend(block.0);
        self.0.push(0);
        self
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    fn map(&mut self, name: &str) {
        self.text(name);
        self.0.extend(7u64.to_le_bytes());
        self.0.extend([4, 192, 0, 2, 9]);
        self.0.extend(7400u16.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number16(text.len());
        self.0.extend(text.as_bytes());
    }

    fn number16(&mut self, number: usize) {
        self.0.extend(u16::try_from(number).expect("small").to_le_bytes());
    }
}
