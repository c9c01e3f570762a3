//! PURE: messages of the mesh's own form as a liar writes them, and what is left of one whose sender passes nothing
//! on.
//!
//! The form is described in `gossip::talk`, which judges it. This is the attackers' own hand, as `wire` is for
//! chitchat's: the same fields in the same order, so that they can say what the product never would.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use starling_gossip::codec;
use starling_gossip::limits::MESSAGE_BYTES_MAX;
use starling_gossip::record::{Label, Owner, Renewal, Version};
use starling_gossip::signature::SealedRecord;
use starling_gossip::svid::Svid;

use super::wire;

/// Magic and version.
const HEAD: [u8; 3] = *b"St\x01";

/// Where the kind stands.
const KIND_AT: usize = 3;

/// A packed message of chitchat is its kind and this much.
const PACKED: u8 = 16;

const TALK: u8 = 32;
const PING: u8 = 33;
const JOIN: u8 = 35;
const WELCOME: u8 = 36;

/// Keeps sightings' signatures apart from others.
const SIGHTING_CONTEXT: &[u8] = b"starling sighting\0";

/// Things that one talk may hold; one more, and it is refused as a whole.
pub(super) const ITEMS_MAX: usize = 512;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Key {
    Node,
    Instance(Label),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Filed {
    pub(super) owner: u64,
    pub(super) key: Key,
    pub(super) version: Version,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Item {
    Record(Vec<u8>),
    Offer(Filed),
    Want(Filed),
    Renewal(u64, Renewal),
    Ask(u64, u64, u32),
    Sighting(SealedSighting),
    Refutation(u64, Renewal),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Sighting {
    pub(super) watcher: u64,
    pub(super) subject: u64,
    pub(super) incarnation: u64,
    pub(super) counter: u32,
    pub(super) sequence: u64,
    pub(super) is_reachable: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SealedSighting {
    sighting: Sighting,
    signature: Vec<u8>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ReportedLease {
    pub(super) owner: u64,
    pub(super) renewal: Renewal,
    pub(super) age_millis: u32,
}

#[derive(Serialize, Deserialize)]
struct Talk {
    knows: u64,
    is_chosen: bool,
    items: Vec<Item>,
}

#[derive(Serialize)]
struct Join {
    records: Vec<Vec<u8>>,
    only_leases: bool,
}

#[derive(Serialize, Deserialize)]
struct Welcome {
    records: Vec<Vec<u8>>,
    leases: Vec<ReportedLease>,
    is_last: bool,
    is_referral: bool,
}

impl Sighting {
    /// With a signature of `svid`, whoever that is.
    pub(super) fn sealed(self, svid: &Svid) -> SealedSighting {
        let signed = [SIGHTING_CONTEXT, &codec::encode(&self)].concat();
        SealedSighting { signature: svid.sign(&signed).to_vec(), sighting: self }
    }

    /// With bytes that are no signature of it.
    pub(super) fn unsealed(self, signature: Vec<u8>) -> SealedSighting {
        SealedSighting { sighting: self, signature }
    }
}

/// A talk of somebody who says to know `knows`.
pub(super) fn talk(knows: u64, items: Vec<Item>) -> Vec<u8> {
    message(TALK, &codec::encode(&Talk { knows, is_chosen: true, items }))
}

/// A newcomer's word.
pub(super) fn join(records: Vec<Vec<u8>>, only_leases: bool) -> Vec<u8> {
    message(JOIN, &codec::encode(&Join { records, only_leases }))
}

/// An answer to a newcomer, asked for or not.
pub(super) fn welcome(records: Vec<Vec<u8>>, leases: Vec<ReportedLease>, is_last: bool) -> Vec<u8> {
    message(WELCOME, &codec::encode(&Welcome { records, leases, is_last, is_referral: false }))
}

/// A question for a sign of life.
pub(super) fn ping(number: u64) -> Vec<u8> {
    message(PING, &codec::encode(&(number, false)))
}

/// Any kind with any body.
pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&HEAD, [kind].as_slice(), body].concat()
}

/// A short name as a number.
pub(super) fn number(owner: &Owner) -> u64 {
    u64::from_str_radix(&owner.short_name(), 16).expect("hexadecimal digits")
}

/// The message, which the owner named `own` at `address` sends, without anything of others in it.
pub(super) fn own_news_only(bytes: &[u8], own: u64, address: SocketAddr) -> anyhow::Result<Vec<u8>> {
    let Some(body) = bytes.strip_prefix(&HEAD).and_then(|rest| rest.get(1..)) else {
        return wire::own_news_only(bytes, address);
    };
    match bytes[KIND_AT] {
        TALK => {
            let mut talk: Talk = codec::decode::<_, MESSAGE_BYTES_MAX>(body)?;
            talk.items.retain(|item| is_own(item, own));
            Ok(message(TALK, &codec::encode(&talk)))
        }
        WELCOME => {
            let mut welcome: Welcome = codec::decode::<_, MESSAGE_BYTES_MAX>(body)?;
            welcome.records.retain(|record| is_of(record, own));
            welcome.leases.retain(|lease| lease.owner == own);
            Ok(message(WELCOME, &codec::encode(&welcome)))
        }
        packed @ PACKED..TALK => {
            let unpacked = zstd::bulk::decompress(body, MESSAGE_BYTES_MAX).context("packed")?;
            ensure!(unpacked.len() > KIND_AT, "no message");
            let kept = wire::own_news_only(&unpacked, address)?;
            Ok(message(packed, &zstd::bulk::compress(&kept, 1)?))
        }
        _ => Ok(bytes.to_vec()),
    }
}

/// Questions are its own, too.
fn is_own(item: &Item, own: u64) -> bool {
    match item {
        Item::Record(record) => is_of(record, own),
        Item::Offer(filed) => filed.owner == own,
        Item::Renewal(owner, _) | Item::Refutation(owner, _) => *owner == own,
        Item::Sighting(sealed) => sealed.sighting.watcher == own,
        Item::Want(_) | Item::Ask(..) => true,
    }
}

fn is_of(record: &[u8], own: u64) -> bool {
    let read = SealedRecord::from_bytes(record).and_then(|sealed| sealed.unverified());
    read.is_ok_and(|record| number(record.owner()) == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_news_is_left_of_a_talk() {
        let address = SocketAddr::from(([10, 0, 0, 1], 7400));
        let renewal = Renewal { incarnation: 1, counter: 2, link: [3; 32] };
        let offer = |owner| {
            Item::Offer(Filed { owner, key: Key::Node, version: Version { incarnation: 1, version: 2 } })
        };
        let own = vec![Item::Renewal(7, renewal), offer(7), Item::Ask(8, 1, 2)];
        let others = vec![Item::Renewal(8, renewal), offer(8), Item::Record(vec![1; 200])];
        let kept = own_news_only(&talk(5, [others, own.clone()].concat()), 7, address).expect("well-formed");
        assert_eq!(kept, talk(5, own));
        assert!(own_news_only(&kept[..9], 7, address).is_err());
        let ping = ping(9);
        assert_eq!(own_news_only(&ping, 7, address).expect("as it is"), ping);
    }

    #[test]
    fn a_welcome_of_who_withholds_is_empty_and_packed_repairs_are_looked_into() {
        let address = SocketAddr::from(([10, 0, 0, 1], 7400));
        let renewal = Renewal { incarnation: 1, counter: 2, link: [3; 32] };
        let lease = ReportedLease { owner: 8, renewal, age_millis: 9 };
        let kept = own_news_only(&welcome(vec![vec![1; 200]], vec![lease], true), 7, address);
        assert_eq!(kept.expect("well-formed"), welcome(Vec::new(), Vec::new(), true));
        let map = wire::MapName { name: "8".into(), generation: 1, address: ([10, 0, 0, 2], 7400).into() };
        let others = wire::ack(&[wire::Operation::Map { map, collected: 0 }]);
        let packed = |bytes: &[u8]| message(PACKED + 2, &zstd::bulk::compress(bytes, 1).expect("memory"));
        let kept = own_news_only(&packed(&others), 7, address).expect("well-formed");
        assert_eq!(kept, packed(&wire::ack(&[])));
    }
}
