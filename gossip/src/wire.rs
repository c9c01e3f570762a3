//! PURE: chitchat's messages, read with bounds and written again.
//!
//! chitchat 0.11 panics on messages that no honest peer sends, unpacks blocks without a bound, and believes whatever
//! a message names. So it never sees one that came over a link: each is read here, judged ([`crate::guard`]),
//! and what is left of it is written anew. What values say is not judged here.
//!
//! The format, integers little endian, is chitchat's, which is pinned: a magic number, a version, a
//! kind; then a digest (`Syn`, `SynAck`), a cluster's name (`Syn`), a delta (`SynAck`, `Ack`). A digest is a
//! count of maps with three counters each. A delta is blocks, perhaps compressed, of operations: a
//! map, its new values in the order of their versions, or its newest version if it has none.

use std::net::{IpAddr, SocketAddr};

use crate::kind::KIND_AT;
use crate::limits::RECORD_BYTES_MAX;

/// Versions and heartbeats count from one, in 64 bits; beyond this chitchat's sums could overflow.
pub(crate) const COUNTER_MAX: u64 = 1 << 63;

/// All maps of a digest together. chitchat subtracts it from 65,507 and packs news into the
/// rest; with less than a block left its two packers disagree, and it panics. About 860 nodes.
pub const DIGEST_BYTES_MAX: usize = 48 * 1024;

/// One unpacked block: chitchat's packer never makes a larger one.
const BLOCK_BYTES_MAX: usize = 16 * 1024;

/// A whole unpacked delta. Packed it has at most 64 KiB, and signatures do not shrink.
const DELTA_BYTES_MAX: usize = 1024 * 1024;

/// A key is `n`, `l` or `i/` and a label; others' tombstones may be a little longer.
const KEY_BYTES_MAX: usize = 128;

/// A value is a record as base64.
const VALUE_BYTES_MAX: usize = RECORD_BYTES_MAX.div_ceil(3) * 4;

/// A trust domain's name (SPIFFE-ID, section 2.1).
const CLUSTER_BYTES_MAX: usize = 255;

/// An owner's short name: 16 hexadecimal digits.
const MAP_NAME_BYTES: usize = 16;

/// What a block is, or that there are no more.
const END: u8 = 0;
const COMPRESSED: u8 = 1;
const PLAIN: u8 = 2;

/// What an operation of a delta is.
const MAP: u8 = 0;
const VALUE: u8 = 1;
const NEWEST: u8 = 2;

const MAGIC: [u8; 2] = 45_139u16.to_le_bytes();
const VERSION: u8 = 0;

/// The steps of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Syn = 0,
    SynAck = 1,
    Ack = 2,
    BadCluster = 3,
}

impl Step {
    /// Which step `message` is, from its head.
    pub(crate) fn of(message: &[u8]) -> Option<Self> {
        let all = [Self::Syn, Self::SynAck, Self::Ack, Self::BadCluster];
        all.into_iter().find(|step| message.get(KIND_AT) == Some(&(*step as u8)))
    }

    /// What whoever gets it answers, if anything.
    pub(crate) fn next(self) -> Option<Self> {
        match self {
            Self::Syn => Some(Self::SynAck),
            Self::SynAck => Some(Self::Ack),
            Self::Ack | Self::BadCluster => None,
        }
    }
}

/// A message of chitchat, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) step: Step,
    /// Of a `Syn`: whose mesh it is.
    pub(crate) cluster: String,
    /// What the sender knows of, apart from names that are none of ours.
    pub(crate) digest: Vec<Entry>,
    /// What it has to say.
    pub(crate) delta: Vec<MapDelta>,
}

/// Whose map, and which life of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MapId {
    pub(crate) owner: u64,
    pub(crate) generation: u64,
    pub(crate) address: SocketAddr,
}

/// What a digest says of one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) map: MapId,
    pub(crate) heartbeat: u64,
    /// Up to which version the map was cleared.
    pub(crate) cleared: u64,
    pub(crate) newest: u64,
}

/// What a delta says of one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapDelta {
    pub(crate) map: MapId,
    /// The values follow on this version.
    pub(crate) after: u64,
    /// In the order of their versions.
    pub(crate) values: Vec<Value>,
}

/// One value of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) key: String,
    pub(crate) text: String,
    pub(crate) version: u64,
    /// 0 is set, 1 deleted, 2 to be deleted.
    pub(crate) status: u8,
}

/// Why a message is not handed on. The sender's fault; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// It ends too early.
    #[error("it is cut short")]
    Truncated,
    /// Something follows its end.
    #[error("it goes on after its end")]
    Trailing,
    /// Not a message, or of another version.
    #[error("{0} is not what a message has there")]
    Unknown(&'static str),
    /// Too long, or too many.
    #[error("its {0} is over the limit")]
    Oversized(&'static str),
    /// Operations in an order that no honest peer has.
    #[error("its versions are out of order")]
    Disordered,
}

/// Bytes of an entry in a digest: a text, a generation, an address, three counters.
pub fn entry_bytes(name_bytes: usize, address: SocketAddr) -> usize {
    let ip_bytes = if address.is_ipv4() { 5 } else { 17 };
    2 + name_bytes + 8 + ip_bytes + 2 + 24
}

impl MapId {
    /// Bytes of the map's entry in a digest.
    pub(crate) fn digest_bytes(&self) -> usize {
        entry_bytes(MAP_NAME_BYTES, self.address)
    }
}

impl Exchange {
    /// Reads `message`. Maps whose names are none of ours are left out.
    pub(crate) fn read(message: &[u8], unpacker: &mut Unpacker) -> Result<Self, WireError> {
        let mut reader = Reader(message);
        if reader.array()? != MAGIC {
            return Err(WireError::Unknown("the magic number"));
        }
        if reader.array()? != [VERSION] {
            return Err(WireError::Unknown("the version"));
        }
        let step = match reader.array()? {
            [0] => Step::Syn,
            [1] => Step::SynAck,
            [2] => Step::Ack,
            [3] => Step::BadCluster,
            _ => return Err(WireError::Unknown("the kind")),
        };
        let mut exchange = Self { step, cluster: String::new(), digest: Vec::new(), delta: Vec::new() };
        if matches!(step, Step::Syn | Step::SynAck) {
            exchange.digest = read_digest(&mut reader)?;
        }
        if step == Step::Syn {
            reader.text("cluster", CLUSTER_BYTES_MAX)?.clone_into(&mut exchange.cluster);
        }
        if matches!(step, Step::SynAck | Step::Ack) {
            exchange.delta = read_delta(&unpacker.unpack(&mut reader)?)?;
        }
        if reader.0.is_empty() { Ok(exchange) } else { Err(WireError::Trailing) }
    }

    /// The message, as chitchat reads it. Its delta is not compressed.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut message = [MAGIC.as_slice(), &[VERSION, self.step as u8]].concat();
        if matches!(self.step, Step::Syn | Step::SynAck) {
            message.extend(u16::try_from(self.digest.len()).unwrap_or(u16::MAX).to_le_bytes());
            for entry in self.digest.iter().take(u16::MAX.into()) {
                entry.map.write(&mut message);
                for counter in [entry.heartbeat, entry.cleared, entry.newest] {
                    message.extend(counter.to_le_bytes());
                }
            }
        }
        if self.step == Step::Syn {
            write_text(&self.cluster, &mut message);
        }
        if matches!(self.step, Step::SynAck | Step::Ack) {
            let mut operations = Vec::new();
            self.delta.iter().for_each(|map| map.write(&mut operations));
            for block in operations.chunks(BLOCK_BYTES_MAX) {
                message.push(PLAIN);
                message.extend((block.len() as u16).to_le_bytes());
                message.extend(block);
            }
            message.push(END);
        }
        message
    }
}

impl MapId {
    fn write(&self, out: &mut Vec<u8>) {
        write_text(&crate::talk::short_name(self.owner), out);
        out.extend(self.generation.to_le_bytes());
        match self.address.ip() {
            IpAddr::V4(ip) => {
                out.push(4);
                out.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(6);
                out.extend(ip.octets());
            }
        }
        out.extend(self.address.port().to_le_bytes());
    }
}

impl MapDelta {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(MAP);
        self.map.write(out);
        // That it was cleared nobody needs to believe: owners delete nothing that must stay deleted.
        out.extend(0_u64.to_le_bytes());
        out.extend(self.after.to_le_bytes());
        for value in &self.values {
            out.push(VALUE);
            write_text(&value.key, out);
            write_text(&value.text, out);
            out.extend(value.version.to_le_bytes());
            out.push(value.status);
        }
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(text.as_bytes());
}

fn read_digest(reader: &mut Reader<'_>) -> Result<Vec<Entry>, WireError> {
    let count = u16::from_le_bytes(reader.array()?);
    let mut digest = Vec::new();
    for _ in 0..count {
        let map = reader.map_id()?;
        let [heartbeat, cleared, newest] = [reader.counter()?, reader.counter()?, reader.counter()?];
        digest.extend(map.map(|map| Entry { map, heartbeat, cleared, newest }));
    }
    Ok(digest)
}

fn read_delta(operations: &[u8]) -> Result<Vec<MapDelta>, WireError> {
    const STATUS_LAST: u8 = 2;

    let mut reader = Reader(operations);
    let mut maps: Vec<(Option<MapId>, MapDelta)> = Vec::new();
    // Of the map that is spoken of: its newest version so far, unless no more may follow.
    let mut newest = None;
    while !reader.0.is_empty() {
        match reader.array()? {
            [MAP] => {
                let map = reader.map_id()?;
                let [_cleared, after] = [reader.counter()?, reader.counter()?];
                let nobody = MapId { owner: 0, generation: 0, address: ([0, 0, 0, 0], 0).into() };
                maps.push((map, MapDelta { map: map.unwrap_or(nobody), after, values: Vec::new() }));
                newest = Some(0);
            }
            [VALUE] => {
                let key = reader.text("key", KEY_BYTES_MAX)?;
                // chitchat cuts a key after its first byte.
                if key.is_empty() || !key.is_ascii() {
                    return Err(WireError::Unknown("a key"));
                }
                let text = reader.text("value", VALUE_BYTES_MAX)?;
                let version = reader.counter()?;
                let [status] = reader.array()?;
                if status > STATUS_LAST {
                    return Err(WireError::Unknown("a value's status"));
                }
                if newest.is_none_or(|newest| version <= newest) {
                    return Err(WireError::Disordered);
                }
                newest = Some(version);
                let (_, map) = maps.last_mut().ok_or(WireError::Disordered)?;
                map.values.push(Value { key: key.to_owned(), text: text.to_owned(), version, status });
            }
            [NEWEST] => {
                // It stands for values, never beside them. What no value shows is not believed.
                reader.counter()?;
                if newest != Some(0) {
                    return Err(WireError::Disordered);
                }
                newest = None;
            }
            _ => return Err(WireError::Unknown("an operation")),
        }
    }
    Ok(maps.into_iter().filter_map(|(map, delta)| map.map(|_| delta)).collect())
}

/// Unpacks deltas. It keeps what that takes from one to the next: about 200 KiB.
pub(crate) struct Unpacker {
    context: zstd::bulk::Decompressor<'static>,
    block: Vec<u8>,
}

impl Default for Unpacker {
    fn default() -> Self {
        Self { context: zstd::bulk::Decompressor::default(), block: Vec::with_capacity(BLOCK_BYTES_MAX) }
    }
}

impl Unpacker {
    fn unpack(&mut self, reader: &mut Reader<'_>) -> Result<Vec<u8>, WireError> {
        let mut unpacked = Vec::new();
        loop {
            let kind = match reader.array()? {
                [END] => return Ok(unpacked),
                [kind @ (COMPRESSED | PLAIN)] => kind,
                _ => return Err(WireError::Unknown("a block")),
            };
            let length = usize::from(u16::from_le_bytes(reader.array()?));
            let block = reader.take(length)?;
            if kind == PLAIN && length <= BLOCK_BYTES_MAX {
                unpacked.extend_from_slice(block);
            } else if kind == COMPRESSED {
                // Fails for whatever would not fit.
                self.context
                    .decompress_to_buffer(block, &mut self.block)
                    .map_err(|_| WireError::Unknown("a compressed block"))?;
                unpacked.extend_from_slice(&self.block);
            } else {
                return Err(WireError::Oversized("block"));
            }
            if unpacked.len() > DELTA_BYTES_MAX {
                return Err(WireError::Oversized("delta"));
            }
        }
    }
}

/// Bytes not yet read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], WireError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn text(&mut self, what: &'static str, bytes_max: usize) -> Result<&'a str, WireError> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        if length > bytes_max {
            return Err(WireError::Oversized(what));
        }
        std::str::from_utf8(self.take(length)?).map_err(|_| WireError::Unknown(what))
    }

    fn counter(&mut self) -> Result<u64, WireError> {
        let counter = u64::from_le_bytes(self.array()?);
        if counter < COUNTER_MAX { Ok(counter) } else { Err(WireError::Oversized("counter")) }
    }

    /// Whose map; `None` if the name is none of ours.
    fn map_id(&mut self) -> Result<Option<MapId>, WireError> {
        let name = self.text("map name", KEY_BYTES_MAX)?;
        let generation = u64::from_le_bytes(self.array()?);
        let ip = match self.array()? {
            [4] => IpAddr::from(self.array::<4>()?),
            [6] => IpAddr::from(self.array::<16>()?),
            _ => return Err(WireError::Unknown("an address")),
        };
        let port = u16::from_le_bytes(self.array()?);
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_ours = name.len() == MAP_NAME_BYTES && name.bytes().all(is_digit);
        let owner = crate::talk::number(name).filter(|_| is_ours);
        Ok(owner.map(|owner| MapId { owner, generation, address: SocketAddr::new(ip, port) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chitchat::{ChitchatMessage, Deserializable as _};

    const MAP_NAME: &str = "00000000000000bb";

    /// Of version 1 of everything: a `Syn`, a `SynAck` and an `Ack` of two nodes.
    const EXCHANGE: &[u8] = include_bytes!("../../tests/fixtures/wire-1/gossip-exchange");

    fn exchange() -> Vec<&'static [u8]> {
        let mut reader = Reader(EXCHANGE);
        let mut messages = Vec::new();
        while !reader.0.is_empty() {
            let length = u16::from_le_bytes(reader.array().expect("a length"));
            messages.push(reader.take(length.into()).expect("a message"));
        }
        messages
    }

    fn read(message: &[u8]) -> Result<Exchange, WireError> {
        Exchange::read(message, &mut Unpacker::default())
    }

    fn head(kind: u8) -> Vec<u8> {
        [MAGIC.as_slice(), &[VERSION, kind]].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [u16::try_from(text.len()).expect("short").to_le_bytes().as_slice(), text.as_bytes()].concat()
    }

    fn map(name: &str) -> Vec<u8> {
        [text(name), 7u64.to_le_bytes().to_vec(), vec![4, 192, 0, 2, 9], 7400u16.to_le_bytes().to_vec()]
            .concat()
    }

    fn counters<const COUNT: usize>(counters: [u64; COUNT]) -> Vec<u8> {
        counters.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    fn syn(maps: &[&str]) -> Vec<u8> {
        let count = u16::try_from(maps.len()).expect("few").to_le_bytes().to_vec();
        let entries = maps.iter().flat_map(|name| [map(name), counters([3, 0, 4])].concat());
        [head(0), count, entries.collect(), text("acme")].concat()
    }

    fn value(key: &str, version: u64) -> Vec<u8> {
        [vec![1], text(key), text("AAAA"), counters([version]), vec![0]].concat()
    }

    fn newest(version: u64) -> Vec<u8> {
        [vec![2], counters([version])].concat()
    }

    /// An `Ack` whose delta has these operations on one map.
    fn ack(operations: &[Vec<u8>]) -> Vec<u8> {
        ack_of_cleared(0, operations)
    }

    fn ack_of_cleared(cleared: u64, operations: &[Vec<u8>]) -> Vec<u8> {
        let block = [vec![0], map(MAP_NAME), counters([cleared, 0]), operations.concat()].concat();
        let length = u16::try_from(block.len()).expect("short").to_le_bytes().to_vec();
        [head(2), vec![2], length, block, vec![0]].concat()
    }

    fn refused(message: &[u8]) -> WireError {
        read(message).expect_err("refused")
    }

    #[test]
    fn what_honest_peers_say_is_read_and_written_again() {
        let said = [vec![value("n", 1), value("i/main", 2), value("l", 9)], vec![]];
        let acks = said.iter().map(|operations| ack(operations));
        let messages =
            exchange().into_iter().map(<[u8]>::to_vec).chain(acks).chain([syn(&[MAP_NAME]), head(3)]);
        for message in messages {
            let exchange = read(&message).expect("honest");
            let written = exchange.write();
            assert_eq!(read(&written).as_ref(), Ok(&exchange));
            assert!(ChitchatMessage::deserialize(&mut written.as_slice()).is_ok());
        }
        assert_eq!(read(&syn(&[MAP_NAME])).expect("honest").write(), syn(&[MAP_NAME]));
        assert_eq!(read(&ack(&said[0])).expect("honest").write(), ack(&said[0]));
    }

    #[test]
    fn every_end_too_early_and_every_byte_too_many_is_noticed() {
        // One for all: nothing of what is refused must be left for the next message.
        let mut unpacker = Unpacker::default();
        for message in exchange() {
            for length in 0..message.len() {
                assert!(Exchange::read(&message[..length], &mut unpacker).is_err(), "{length}");
            }
            assert!(Exchange::read(message, &mut unpacker).is_ok());
            assert_eq!(refused(&[message, &[0]].concat()), WireError::Trailing);
        }
    }

    #[test]
    fn maps_without_a_name_of_ours_are_left_out() {
        let all = syn(&["liar", MAP_NAME, "00000000000000BB", "00000000000000cc"]);
        let entries = read(&all).expect("the rest is good").digest;
        assert_eq!(entries.iter().map(|entry| entry.map.owner).collect::<Vec<_>>(), [0xbb, 0xcc]);
        assert_eq!(entries[0].map.digest_bytes(), map(MAP_NAME).len() + 24);
    }

    #[test]
    fn versions_without_a_value_are_not_believed() {
        let said = [value("n", 9), value("l", 12)];
        let written = |message: Vec<u8>| read(&message).map(|exchange| exchange.write());
        assert_eq!(written(ack_of_cleared(8, &said)), Ok(ack(&said)));
        assert_eq!(written(ack(&[newest(9)])), Ok(ack(&[])));
    }

    /// Each of them makes chitchat 0.11 panic, now or later.
    #[test]
    fn what_would_end_chitchat_is_refused() {
        assert_eq!(refused(&ack(&[value("é", 1)])), WireError::Unknown("a key"));
        assert_eq!(refused(&ack(&[value("n", 5), newest(3)])), WireError::Disordered);
        assert_eq!(refused(&ack(&[newest(3), value("n", 2)])), WireError::Disordered);
        assert_eq!(refused(&ack(&[value("n", COUNTER_MAX)])), WireError::Oversized("counter"));
        assert_eq!(refused(&ack(&[newest(u64::MAX)])), WireError::Oversized("counter"));
    }

    #[test]
    fn nothing_is_unpacked_without_a_bound() {
        let bomb = zstd::bulk::compress(&vec![0; 60_000], 0).expect("packed");
        let block =
            [&[1], u16::try_from(bomb.len()).expect("short").to_le_bytes().as_slice(), &bomb].concat();
        assert_eq!(refused(&[head(2), block, vec![0]].concat()), WireError::Unknown("a compressed block"));
        let full = zstd::bulk::compress(&vec![0; BLOCK_BYTES_MAX], 0).expect("packed");
        let block =
            [&[1], u16::try_from(full.len()).expect("short").to_le_bytes().as_slice(), &full].concat();
        let many = block.repeat(DELTA_BYTES_MAX / BLOCK_BYTES_MAX + 1);
        assert_eq!(refused(&[head(2), many, vec![0]].concat()), WireError::Oversized("delta"));
        let long = [head(0), vec![0, 0], text(&"x".repeat(CLUSTER_BYTES_MAX + 1))].concat();
        assert_eq!(refused(&long), WireError::Oversized("cluster"));
    }
}
