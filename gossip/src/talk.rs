//! PURE: what nodes say to each other besides chitchat's own messages, and the bytes of it.
//!
//! A message begins with two magic bytes, a version and a kind ([`crate::kind`]); the rest is bincode, or for
//! the repair path a message of chitchat, packed. Reading judges form and size only. What an item
//! means for the catalogue, the catalogue says; whether it is passed on, [`crate::rumours`] and
//! [`crate::renewing`].
//!
//! *Talk* is a batch of small things: changed records, whole or offered; renewals; a watcher's word; questions. It
//! fits a datagram as a rule. *Ping* and *pong* are a question and its answer. *Join* and *welcome* are how a
//! newcomer gets everything.

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};
use crate::kind::KIND_AT;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::record::{Label, Record, Renewal, Version};
use crate::watching::SealedSighting;

/// What this format begins with; chitchat's begins otherwise.
const MAGIC: [u8; 2] = *b"St";

/// The version of this format. See [`crate::versions`].
const VERSION: u8 = 1;

/// Magic, version and kind.
const HEAD_BYTES: usize = KIND_AT + 1;

/// A packed message of chitchat is its kind and this much.
const PACKED: u8 = 16;

const TALK: u8 = 32;
const PING: u8 = 33;
const PONG: u8 = 34;
const JOIN: u8 = 35;
const WELCOME: u8 = 36;

/// The most things in one talk. With a renewal each it would be 28 KiB.
pub(crate) const ITEMS_MAX: usize = 512;

/// What a talk should take, so that it fits one QUIC datagram on any path (RFC 9000, section 14: packets of
/// 1,200 bytes; headers and seals take about 40).
pub(crate) const TALK_BYTES: usize = 1_120;

/// What a talk takes that goes by a stream: few messages, each well within a message's bound.
pub(crate) const STREAM_BYTES: usize = 32 * 1024;

/// A record up to this travels whole in a talk; a larger one is offered. Instances take 200 to 400 bytes, node
/// records with their chains over a thousand.
pub(crate) const WHOLE_BYTES_MAX: usize = 700;

/// Which of an owner's records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Key {
    /// Its node record.
    Node,
    /// One of its instances.
    Instance(Label),
}

/// Names a record: whose, which, and which word of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Filed {
    /// The owner's short name.
    pub(crate) owner: u64,
    pub(crate) key: Key,
    pub(crate) version: Version,
}

impl Filed {
    /// What names `record`.
    pub(crate) fn of(record: &Record) -> Self {
        let key = match record {
            Record::Node(_) => Key::Node,
            Record::Instance(instance) => Key::Instance(instance.id.clone()),
        };
        Self { owner: record.owner().number(), key, version: record.version() }
    }
}

/// One thing in a talk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Item {
    /// A sealed record.
    Record(Vec<u8>),
    /// The sender has this record, which is news.
    Offer(Filed),
    /// The sender wants this record, or a newer word of it.
    Want(Filed),
    /// The owner's newest renewal.
    Renewal(u64, Renewal),
    /// The sender has heard nothing of this owner for long: its life, and its last renewal there.
    Ask(u64, u64, u32),
    /// A watcher's word.
    Sighting(SealedSighting),
    /// The owner's newest renewal, made because somebody doubts the owner: it is news.
    Refutation(u64, Renewal),
}

/// A batch of small things.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Talk {
    /// The digest of all that the sender knows of present owners ([`crate::catalogue::Catalogue::knows`]).
    pub(crate) knows: u64,
    /// The sender has chosen the receiver as a neighbour.
    pub(crate) is_chosen: bool,
    pub(crate) items: Vec<Item>,
}

/// A newcomer's first word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Join {
    /// Its own records.
    pub(crate) records: Vec<Vec<u8>>,
    /// It has the records of others already, and wants to hear how old their leases are.
    pub(crate) only_leases: bool,
}

/// A part of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// Sealed records, each owner's node record before its instances.
    pub(crate) records: Vec<Vec<u8>>,
    /// How long ago the sender heard each owner.
    pub(crate) leases: Vec<ReportedLease>,
    /// There is no further part.
    pub(crate) is_last: bool,
    /// It is not everything: the sender is busy, and names some to ask instead.
    pub(crate) is_referral: bool,
}

/// How long ago somebody heard an owner, and what proves that it once spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportedLease {
    pub(crate) owner: u64,
    /// Its counter is 0 before the first.
    pub(crate) renewal: Renewal,
    pub(crate) age_millis: u32,
}

/// A message of one node to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Talk(Talk),
    /// "Are you there?", with a number that nobody can guess, and whether an earlier one was not answered.
    Ping(u64, bool),
    /// The same number back.
    Pong(u64),
    Join(Join),
    Welcome(Welcome),
    /// A message of chitchat, unpacked.
    Repair(Vec<u8>),
}

/// Why bytes are no message. The sender's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TalkError {
    #[error("a message of version {0}, where this program reads {VERSION}")]
    Version(u8),
    #[error("a message of a kind that this program does not know")]
    Kind,
    #[error("more than {0} things in one message")]
    Many(usize),
    #[error("it does not unpack")]
    Packing,
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Message {
    /// The bytes that travel.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Talk(talk) => (TALK, codec::encode(talk)),
            Self::Ping(number, is_urgent) => (PING, codec::encode(&(*number, *is_urgent))),
            Self::Pong(number) => (PONG, codec::encode(number)),
            Self::Join(join) => (JOIN, codec::encode(join)),
            Self::Welcome(welcome) => (WELCOME, codec::encode(welcome)),
            Self::Repair(message) => (PACKED + message.get(KIND_AT).copied().unwrap_or(3), pack(message)),
        };
        [&MAGIC, [VERSION, kind].as_slice(), &body].concat()
    }

    /// Reads what travelled; a message of chitchat may come as it is, from a node of an earlier version.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, TalkError> {
        let Some((head, body)) =
            bytes.split_first_chunk::<HEAD_BYTES>().filter(|(head, _)| head[..2] == MAGIC)
        else {
            return Ok(Self::Repair(bytes.to_vec()));
        };
        let [_, _, version, kind] = *head;
        if version != VERSION {
            return Err(TalkError::Version(version));
        }
        Ok(match kind {
            TALK => Self::Talk(bounded(codec::decode::<Talk, MESSAGE_BYTES_MAX>(body)?)?),
            PING => {
                let (number, is_urgent) = codec::decode::<(u64, bool), 16>(body)?;
                Self::Ping(number, is_urgent)
            }
            PONG => Self::Pong(codec::decode::<u64, 16>(body)?),
            JOIN => Self::Join(codec::decode::<Join, MESSAGE_BYTES_MAX>(body)?),
            WELCOME => Self::Welcome(codec::decode::<Welcome, MESSAGE_BYTES_MAX>(body)?),
            PACKED..TALK => Self::Repair(unpack(body)?),
            _ => return Err(TalkError::Kind),
        })
    }
}

fn bounded(talk: Talk) -> Result<Talk, TalkError> {
    if talk.items.len() > ITEMS_MAX { Err(TalkError::Many(ITEMS_MAX)) } else { Ok(talk) }
}

impl Item {
    /// About what it takes in a talk.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Record(bytes) => bytes.len() + 4,
            Self::Offer(filed) | Self::Want(filed) => match &filed.key {
                Key::Node => 29,
                Key::Instance(id) => 30 + id.as_str().len(),
            },
            Self::Renewal(..) | Self::Refutation(..) => 56,
            Self::Ask(..) => 24,
            Self::Sighting(sighting) => sighting.bytes(),
        }
    }
}

/// Divides `items` into talks of `bytes_max` each; one that does not fit is alone in its own.
pub(crate) fn batches(knows: u64, items: Vec<Item>, bytes_max: usize) -> Vec<Talk> {
    const HEAD: usize = 16;

    let mut talks: Vec<Talk> = Vec::new();
    let mut room = 0;
    for item in items {
        let bytes = item.bytes();
        match talks.last_mut().filter(|talk| bytes <= room && talk.items.len() < ITEMS_MAX) {
            Some(talk) => talk.items.push(item),
            None => {
                room = bytes_max - HEAD;
                talks.push(Talk { knows, is_chosen: false, items: vec![item] });
            }
        }
        room = room.saturating_sub(bytes);
    }
    talks
}

/// chitchat's digests repeat themselves; a third of their bytes are left.
fn pack(message: &[u8]) -> Vec<u8> {
    const LEVEL: i32 = 3;
    zstd::bulk::compress(message, LEVEL).expect("compressing needs memory only")
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, TalkError> {
    let message = zstd::bulk::decompress(packed, MESSAGE_BYTES_MAX).map_err(|_| TalkError::Packing)?;
    if message.len() > KIND_AT { Ok(message) } else { Err(TalkError::Packing) }
}

/// A name as maps and files have it: 16 hexadecimal digits.
pub(crate) fn short_name(owner: u64) -> String {
    format!("{owner:016x}")
}

/// A short name's number; `None` if it is no short name.
pub(crate) fn number(short_name: &str) -> Option<u64> {
    u64::from_str_radix(short_name, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filed(number: u64) -> Filed {
        let key = Key::Instance("main".parse().expect("a label"));
        Filed { owner: number, key, version: Version { incarnation: 1_767_225_600_000, version: number } }
    }

    fn renewal() -> Renewal {
        Renewal { incarnation: 1_767_225_600_000, counter: 700, link: [7; 32] }
    }

    fn messages() -> Vec<Message> {
        let items = vec![
            Item::Record(vec![1; 300]),
            Item::Offer(filed(u64::MAX)),
            Item::Want(filed(2)),
            Item::Renewal(u64::MAX, renewal()),
            Item::Ask(3, 1_767_225_600_000, 9),
        ];
        let lease = ReportedLease { owner: 9, renewal: renewal(), age_millis: 70_000 };
        vec![
            Message::Talk(Talk { knows: 7, is_chosen: true, items }),
            Message::Ping(u64::MAX, true),
            Message::Pong(0),
            Message::Join(Join { records: vec![vec![2; 900]], only_leases: false }),
            Message::Welcome(Welcome {
                records: vec![vec![3; 9]],
                leases: vec![lease],
                is_last: true,
                is_referral: false,
            }),
            Message::Repair([&45_139_u16.to_le_bytes(), [0, 1].as_slice(), &[0; 400]].concat()),
        ]
    }

    #[test]
    fn what_is_said_is_read_and_no_shorter_nor_longer() {
        for message in messages() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Ok(message.clone()));
            for length in HEAD_BYTES..bytes.len() {
                assert!(Message::decode(&bytes[..length]).is_err(), "{message:?} of {length} bytes");
            }
            if !matches!(message, Message::Repair(_)) {
                assert!(Message::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
            }
        }
        let other = [MAGIC.as_slice(), &[VERSION + 1, TALK]].concat();
        assert_eq!(Message::decode(&other), Err(TalkError::Version(VERSION + 1)));
        assert_eq!(Message::decode(&[MAGIC.as_slice(), &[VERSION, 99]].concat()), Err(TalkError::Kind));
    }

    #[test]
    fn batches_fit_datagrams_and_lose_nothing() {
        let items: Vec<_> = (0..200).map(|number| Item::Offer(filed(number))).collect();
        let large = Item::Record(vec![0; 5_000]);
        let all = [items.clone(), vec![large.clone()], items.clone()].concat();
        let talks = batches(7, all.clone(), TALK_BYTES);
        assert_eq!(talks.iter().flat_map(|talk| talk.items.clone()).collect::<Vec<_>>(), all);
        for talk in talks {
            let bytes = Message::Talk(talk.clone()).encode().len();
            assert!(bytes <= TALK_BYTES || talk.items == [large.clone()], "{bytes}");
        }
    }

    #[test]
    fn the_estimate_of_an_item_is_never_too_small() {
        for item in [
            Item::Offer(filed(u64::MAX)),
            Item::Renewal(u64::MAX, renewal()),
            Item::Ask(u64::MAX, u64::MAX, u32::MAX),
        ] {
            assert!(codec::encode(&item).len() <= item.bytes() + 6, "{item:?}");
        }
    }
}
