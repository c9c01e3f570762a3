//! PURE: is a gossip message one that chitchat can take?
//!
//! chitchat 0.11 panics on messages that no honest peer sends, unpacks blocks without a bound, and
//! remembers whatever a digest names. So a message's bytes are looked at before chitchat sees them:
//! one that could do harm is refused whole, and digest entries that there is no room for are taken
//! out, and a map's versions are believed only where a value shows them. What a map's values say is not
//! judged here; the catalogue does that.
//!
//! The format, integers little endian, is chitchat's, which is pinned: a magic number, a version, a
//! kind; then a digest (`Syn`, `SynAck`), a cluster's name (`Syn`), a delta (`SynAck`, `Ack`). A digest is a
//! count of maps with three counters each. A delta is blocks, perhaps compressed, of operations: a
//! map, its new values in the order of their versions, or its newest version if it has none.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

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

const COUNTER_BYTES: usize = 8;

/// What a block is, or that there are no more.
const END: u8 = 0;
const COMPRESSED: u8 = 1;
const PLAIN: u8 = 2;

const MAGIC: [u8; 2] = 45_139u16.to_le_bytes();
const VERSION: u8 = 0;

/// Whose map a digest speaks of, and which life of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapId<'a> {
    pub(crate) name: &'a str,
    pub(crate) generation: u64,
    pub(crate) address: SocketAddr,
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

impl MapId<'_> {
    /// Bytes of the map's entry in a digest.
    pub(crate) fn digest_bytes(&self) -> usize {
        entry_bytes(self.name.len(), self.address)
    }

    fn is_well_formed(&self) -> bool {
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        self.name.len() == MAP_NAME_BYTES && self.name.bytes().all(is_digit)
    }
}

/// Bytes of an entry in a digest: a text, a generation, an address, three counters.
pub fn entry_bytes(name_bytes: usize, address: SocketAddr) -> usize {
    let ip_bytes = if address.is_ipv4() { 5 } else { 17 };
    2 + name_bytes + 8 + ip_bytes + 2 + 24
}

/// The message, without those maps of its digest that have no name of ours or that `admits`
/// refuses, and without versions that no value shows. It is asked once for each entry, with the heartbeat
/// that stands there.
pub(crate) fn inspect<'a>(
    message: &'a [u8],
    unpacker: &mut Unpacker,
    admits: impl FnMut(&MapId<'_>, u64) -> bool,
) -> Result<Cow<'a, [u8]>, WireError> {
    const SYN: u8 = 0;
    const SYN_ACK: u8 = 1;
    const ACK: u8 = 2;
    const BAD_CLUSTER: u8 = 3;

    let mut reader = Reader(message);
    if reader.array()? != MAGIC {
        return Err(WireError::Unknown("the magic number"));
    }
    if reader.array()? != [VERSION] {
        return Err(WireError::Unknown("the version"));
    }
    let [kind] = reader.array()?;
    let mut refused = Vec::new();
    let mut delta_at = message.len();
    let mut delta = None;
    match kind {
        SYN => {
            refused = check_digest(&mut reader, message.len(), admits)?;
            reader.text("cluster", CLUSTER_BYTES_MAX)?;
        }
        SYN_ACK => {
            refused = check_digest(&mut reader, message.len(), admits)?;
            delta_at = message.len() - reader.0.len();
            delta = check_delta(&mut reader, unpacker)?;
        }
        ACK => {
            delta_at = message.len() - reader.0.len();
            delta = check_delta(&mut reader, unpacker)?;
        }
        BAD_CLUSTER => {}
        _ => return Err(WireError::Unknown("the kind")),
    }
    match delta {
        _ if !reader.0.is_empty() => Err(WireError::Trailing),
        None => Ok(without(message, &refused)),
        Some(delta) => Ok(Cow::Owned([without(&message[..delta_at], &refused).as_ref(), &delta].concat())),
    }
}

/// Where in a message of `message_bytes`, of which `reader` has the rest, the entries stand that are
/// to be taken out.
fn check_digest(
    reader: &mut Reader<'_>,
    message_bytes: usize,
    mut admits: impl FnMut(&MapId<'_>, u64) -> bool,
) -> Result<Vec<Range<usize>>, WireError> {
    let count = u16::from_le_bytes(reader.array()?);
    let mut refused = Vec::new();
    for _ in 0..count {
        let start = message_bytes - reader.0.len();
        let map = reader.map_id()?;
        let heartbeat = reader.counter()?;
        for _ in 0..2 {
            reader.counter()?;
        }
        if !map.is_well_formed() || !admits(&map, heartbeat) {
            refused.push(start..message_bytes - reader.0.len());
        }
    }
    Ok(refused)
}

/// The message without the `refused` entries of its digest. Nearly every message has none.
fn without<'a>(message: &'a [u8], refused: &[Range<usize>]) -> Cow<'a, [u8]> {
    /// After the magic number, the version and the kind.
    const COUNT: Range<usize> = 4..6;

    if refused.is_empty() {
        return Cow::Borrowed(message);
    }
    let count = u16::from_le_bytes([message[COUNT.start], message[COUNT.start + 1]]);
    let mut out = Vec::with_capacity(message.len());
    out.extend_from_slice(&message[..COUNT.start]);
    out.extend_from_slice(&(count - refused.len() as u16).to_le_bytes());
    let mut from = COUNT.end;
    for entry in refused {
        out.extend_from_slice(&message[from..entry.start]);
        from = entry.end;
    }
    out.extend_from_slice(&message[from..]);
    Cow::Owned(out)
}

/// What is to stand in the delta's place, if it is not to stand as it is.
fn check_delta(reader: &mut Reader<'_>, unpacker: &mut Unpacker) -> Result<Option<Vec<u8>>, WireError> {
    let mut unpacked = unpacker.unpack(reader)?;
    let mut operations = Reader(&unpacked);
    // Of the map that is spoken of: its newest version so far, unless no more may follow.
    let mut newest = None;
    // How many bytes from the end on there stand versions that no value shows.
    let mut hearsay = Vec::new();
    while !operations.0.is_empty() {
        newest = check_operation(&mut operations, newest, &mut hearsay)?;
    }
    if hearsay.is_empty() {
        return Ok(None);
    }
    // Who believed that a map was cleared up to some version would empty its copy, heartbeat and all;
    // who believed that it has nothing newer would ask for nothing. Owners delete nothing that must
    // stay deleted, and renew what is newest, so nobody needs to believe either.
    for rest in hearsay {
        let at = unpacked.len() - rest;
        unpacked[at..at + COUNTER_BYTES].fill(0);
    }
    Ok(Some(packed(&unpacked)))
}

/// A delta of these operations, not compressed: it is not to travel.
fn packed(operations: &[u8]) -> Vec<u8> {
    let mut delta = Vec::with_capacity(operations.len() + operations.len() / 1024 + 4);
    for block in operations.chunks(BLOCK_BYTES_MAX) {
        delta.push(PLAIN);
        delta.extend_from_slice(&(block.len() as u16).to_le_bytes());
        delta.extend_from_slice(block);
    }
    delta.push(END);
    delta
}

fn check_operation(
    reader: &mut Reader<'_>,
    newest: Option<u64>,
    hearsay: &mut Vec<usize>,
) -> Result<Option<u64>, WireError> {
    const MAP: u8 = 0;
    const VALUE: u8 = 1;
    const NEWEST: u8 = 2;
    const STATUS_LAST: u8 = 2;

    match reader.array()? {
        [MAP] => {
            reader.map_id()?;
            let rest = reader.0.len();
            if reader.counter()? > 0 {
                hearsay.push(rest);
            }
            reader.counter()?;
            Ok(Some(0))
        }
        [VALUE] => {
            let key = reader.text("key", KEY_BYTES_MAX)?;
            // chitchat cuts a key after its first byte.
            if key.is_empty() || !key.is_ascii() {
                return Err(WireError::Unknown("a key"));
            }
            reader.text("value", VALUE_BYTES_MAX)?;
            let version = reader.counter()?;
            let [status] = reader.array()?;
            if status > STATUS_LAST {
                return Err(WireError::Unknown("a value's status"));
            }
            if newest.is_none_or(|newest| version <= newest) {
                return Err(WireError::Disordered);
            }
            Ok(Some(version))
        }
        [NEWEST] => {
            let rest = reader.0.len();
            if reader.counter()? > 0 {
                hearsay.push(rest);
            }
            // It stands for values, never beside them; chitchat would go back behind what they said.
            if newest == Some(0) { Ok(None) } else { Err(WireError::Disordered) }
        }
        _ => Err(WireError::Unknown("an operation")),
    }
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

    fn map_id(&mut self) -> Result<MapId<'a>, WireError> {
        let name = self.text("map name", KEY_BYTES_MAX)?;
        let generation = u64::from_le_bytes(self.array()?);
        let ip = match self.array()? {
            [4] => IpAddr::from(self.array::<4>()?),
            [6] => IpAddr::from(self.array::<16>()?),
            _ => return Err(WireError::Unknown("an address")),
        };
        let port = u16::from_le_bytes(self.array()?);
        Ok(MapId { name, generation, address: SocketAddr::new(ip, port) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chitchat::{ChitchatMessage, Deserializable as _};

    const MAP: &str = "00000000000000bb";

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
        let block = [vec![0], map(MAP), counters([cleared, 0]), operations.concat()].concat();
        let length = u16::try_from(block.len()).expect("short").to_le_bytes().to_vec();
        [head(2), vec![2], length, block, vec![0]].concat()
    }

    fn refused(message: &[u8]) -> WireError {
        inspect(message, &mut Unpacker::default(), |_, _| true).expect_err("refused")
    }

    #[test]
    fn what_honest_peers_say_passes_unchanged() {
        let said = [vec![value("n", 1), value("i/main", 2), value("l", 9)], vec![]];
        let acks = said.iter().map(|operations| ack(operations));
        let messages = exchange().into_iter().map(<[u8]>::to_vec).chain(acks).chain([syn(&[MAP]), head(3)]);
        let mut unpacker = Unpacker::default();
        for message in messages {
            let passed = inspect(&message, &mut unpacker, |_, _| true);
            assert_eq!(passed.as_deref(), Ok(message.as_slice()));
            assert!(ChitchatMessage::deserialize(&mut message.as_slice()).is_ok());
        }
    }

    #[test]
    fn every_end_too_early_and_every_byte_too_many_is_noticed() {
        // One for all: nothing of what is refused must be left for the next message.
        let mut unpacker = Unpacker::default();
        for message in exchange() {
            for length in 0..message.len() {
                assert!(inspect(&message[..length], &mut unpacker, |_, _| true).is_err(), "{length}");
            }
            assert_eq!(inspect(message, &mut unpacker, |_, _| true).as_deref(), Ok(message));
            assert_eq!(refused(&[message, &[0]].concat()), WireError::Trailing);
        }
    }

    #[test]
    fn maps_without_room_or_without_a_name_of_ours_are_taken_out() {
        let all = syn(&["liar", MAP, "00000000000000BB", "00000000000000cc"]);
        let passed = inspect(&all, &mut Unpacker::default(), |map, _| map.name != "00000000000000cc")
            .expect("the rest is good");
        assert_eq!(passed.as_ref(), syn(&[MAP]));
        let mut bytes = 0;
        let _ = inspect(&syn(&[MAP]), &mut Unpacker::default(), |map, heartbeat| {
            assert_eq!(heartbeat, 3);
            bytes = map.digest_bytes();
            true
        });
        assert_eq!(bytes, map(MAP).len() + 24);
    }

    #[test]
    fn versions_without_a_value_are_not_believed() {
        let said = [value("n", 9), value("l", 12)];
        let passed =
            |message: Vec<u8>| inspect(&message, &mut Unpacker::default(), |_, _| true).map(Cow::into_owned);
        assert_eq!(passed(ack_of_cleared(8, &said)), Ok(ack(&said)));
        assert_eq!(passed(ack(&[newest(9)])), Ok(ack(&[newest(0)])));
        let syn = syn(&[MAP]);
        let digest = &syn[4..][..2 + map(MAP).len() + 3 * COUNTER_BYTES];
        let as_syn_ack = |ack: &[u8]| [&head(1), digest, &ack[4..]].concat();
        assert_eq!(passed(as_syn_ack(&ack_of_cleared(8, &said))), Ok(as_syn_ack(&ack(&said))));
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
