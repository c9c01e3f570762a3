//! PURE: gossip messages as a liar writes them, byte by byte.
//!
//! The format is described in `gossip::wire`, which judges it; this is the attackers' own hand, so
//! that they can say what the product's writer never would. Nothing that an honest node does is here.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use anyhow::{Context as _, bail, ensure};

/// The magic number, and the version.
const HEAD: [u8; 3] = [0x53, 0xb0, 0];

const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;

const MAP: u8 = 0;
const VALUE: u8 = 1;
const NEWEST: u8 = 2;

const END: u8 = 0;
const COMPRESSED: u8 = 1;
const PLAIN: u8 = 2;

/// One unpacked block; a longer one is refused.
const BLOCK_BYTES_MAX: usize = 16 * 1024;

/// Just below where the wire check ends counters.
pub(super) const COUNTER_LAST: u64 = (1 << 63) - 1;

/// Whose map, and which life of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MapName {
    /// An owner's short name.
    pub(super) name: String,
    pub(super) generation: u64,
    pub(super) address: SocketAddr,
}

/// What a digest says of one map.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) map: MapName,
    pub(super) heartbeat: u64,
    /// The newest version that was removed without a trace.
    pub(super) collected: u64,
    pub(super) newest: u64,
}

/// What has become of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Set = 0,
    Deleted = 1,
    DeletedLater = 2,
}

/// One step of a delta.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    /// What follows is of this map, from its very beginning.
    Map { map: MapName, collected: u64 },
    /// A key has a value.
    Value { key: String, value: String, version: u64, status: Status },
    /// There is nothing else up to this version.
    Newest(u64),
}

/// "This is what I know of", to begin.
pub(super) fn syn(digest: &[Entry], cluster: &str) -> Vec<u8> {
    let mut message = head(SYN);
    put_digest(&mut message, digest);
    put_text(&mut message, cluster);
    message
}

/// "This is what I know of, and what you lack." Nobody needs to have asked.
pub(super) fn syn_ack(digest: &[Entry], operations: &[Operation]) -> Vec<u8> {
    let mut message = head(SYN_ACK);
    put_digest(&mut message, digest);
    put_delta(&mut message, operations);
    message
}

/// "And this is what you lacked." Nobody needs to have asked.
pub(super) fn ack(operations: &[Operation]) -> Vec<u8> {
    let mut message = head(ACK);
    put_delta(&mut message, operations);
    message
}

fn head(kind: u8) -> Vec<u8> {
    [HEAD.as_slice(), &[kind]].concat()
}

fn put_digest(message: &mut Vec<u8>, digest: &[Entry]) {
    let count = u16::try_from(digest.len()).expect("no attack names so many maps");
    message.extend_from_slice(&count.to_le_bytes());
    for entry in digest {
        put_map(message, &entry.map);
        for counter in [entry.heartbeat, entry.collected, entry.newest] {
            message.extend_from_slice(&counter.to_le_bytes());
        }
    }
}

fn put_delta(message: &mut Vec<u8>, operations: &[Operation]) {
    let mut bytes = Vec::new();
    for operation in operations {
        put_operation(&mut bytes, operation);
    }
    put_blocks(message, &bytes);
}

fn put_blocks(message: &mut Vec<u8>, unpacked: &[u8]) {
    for block in unpacked.chunks(BLOCK_BYTES_MAX) {
        message.push(PLAIN);
        message.extend_from_slice(&(block.len() as u16).to_le_bytes());
        message.extend_from_slice(block);
    }
    message.push(END);
}

fn put_operation(bytes: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Map { map, collected } => {
            bytes.push(MAP);
            put_map(bytes, map);
            bytes.extend_from_slice(&collected.to_le_bytes());
            bytes.extend_from_slice(&0u64.to_le_bytes());
        }
        Operation::Value { key, value, version, status } => {
            bytes.push(VALUE);
            put_text(bytes, key);
            put_text(bytes, value);
            bytes.extend_from_slice(&version.to_le_bytes());
            bytes.push(*status as u8);
        }
        Operation::Newest(version) => {
            bytes.push(NEWEST);
            bytes.extend_from_slice(&version.to_le_bytes());
        }
    }
}

fn put_map(bytes: &mut Vec<u8>, map: &MapName) {
    put_text(bytes, &map.name);
    bytes.extend_from_slice(&map.generation.to_le_bytes());
    match map.address.ip() {
        IpAddr::V4(ip) => {
            bytes.push(4);
            bytes.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.push(6);
            bytes.extend_from_slice(&ip.octets());
        }
    }
    bytes.extend_from_slice(&map.address.port().to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("no attack has longer texts");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// The message without news of maps from other addresses than `own`.
pub(super) fn own_news_only(message: &[u8], own: SocketAddr) -> anyhow::Result<Vec<u8>> {
    let mut reader = Reader { bytes: message, at: HEAD.len() };
    match reader.byte()? {
        SYN_ACK => {
            for _ in 0..reader.short()? {
                reader.map()?;
                reader.take(24)?;
            }
        }
        ACK => {}
        _ => return Ok(message.to_vec()),
    }
    let mut out = message[..reader.at].to_vec();
    let unpacked = reader.blocks()?;
    let kept: Vec<u8> =
        maps_of(&unpacked, own)?.into_iter().flat_map(|range| unpacked[range].to_vec()).collect();
    put_blocks(&mut out, &kept);
    Ok(out)
}

/// Where a delta speaks of maps that belong to `own`.
fn maps_of(unpacked: &[u8], own: SocketAddr) -> anyhow::Result<Vec<Range<usize>>> {
    let mut reader = Reader { bytes: unpacked, at: 0 };
    let mut kept = Vec::new();
    let mut is_own = false;
    while reader.at < unpacked.len() {
        let start = reader.at;
        match reader.byte()? {
            MAP => {
                is_own = reader.map()? == own;
                reader.take(16)?;
            }
            VALUE => {
                reader.text()?;
                reader.text()?;
                reader.take(9)?;
            }
            NEWEST => drop(reader.take(8)?),
            _ => bail!("no operation"),
        }
        if is_own {
            kept.push(start..reader.at);
        }
    }
    Ok(kept)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> anyhow::Result<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at + bytes).context("cut short")?;
        self.at += bytes;
        Ok(taken)
    }

    fn byte(&mut self) -> anyhow::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn short(&mut self) -> anyhow::Result<u16> {
        Ok(u16::from_le_bytes(self.take(2)?.try_into()?))
    }

    fn text(&mut self) -> anyhow::Result<&'a [u8]> {
        let length = self.short()?;
        self.take(length.into())
    }

    /// The address of a map.
    fn map(&mut self) -> anyhow::Result<SocketAddr> {
        self.text()?;
        self.take(8)?;
        let ip = match self.byte()? {
            4 => IpAddr::from(<[u8; 4]>::try_from(self.take(4)?)?),
            6 => IpAddr::from(<[u8; 16]>::try_from(self.take(16)?)?),
            _ => bail!("no address"),
        };
        Ok(SocketAddr::new(ip, self.short()?))
    }

    fn blocks(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        loop {
            let kind = self.byte()?;
            if kind == END {
                ensure!(self.at == self.bytes.len(), "goes on after its end");
                return Ok(unpacked);
            }
            let length = self.short()?;
            let block = self.take(length.into())?;
            match kind {
                COMPRESSED => unpacked.extend(zstd::bulk::decompress(block, BLOCK_BYTES_MAX)?),
                PLAIN => unpacked.extend_from_slice(block),
                _ => bail!("no block"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(host: u8) -> MapName {
        MapName {
            name: format!("{:016x}", host),
            generation: 7,
            address: SocketAddr::from(([10, 0, 0, host], 7400)),
        }
    }

    fn value(version: u64) -> Operation {
        let value = "A".repeat(20_000);
        Operation::Value { key: "n".into(), value, version, status: Status::Set }
    }

    /// A `Syn`, a `SynAck` and an `Ack` that the product wrote.
    const EXCHANGE: &[u8] = include_bytes!("../../../tests/fixtures/wire-1/gossip-exchange");

    #[test]
    fn only_own_news_is_left_and_the_rest_of_the_message_stands() {
        let entry = Entry { map: map(1), heartbeat: 3, collected: 0, newest: 4 };
        let of_one = [Operation::Map { map: map(1), collected: 0 }, value(1), value(2)];
        let of_other = [Operation::Map { map: map(2), collected: 0 }, Operation::Newest(9)];
        let both = [of_other.clone(), [of_one[0].clone(), of_one[1].clone()]].concat();
        let kept = own_news_only(&syn_ack(std::slice::from_ref(&entry), &both), map(1).address);
        assert_eq!(kept.expect("well-formed"), syn_ack(std::slice::from_ref(&entry), &of_one[..2]));
        let kept = own_news_only(&ack(&of_one), map(2).address).expect("well-formed");
        assert_eq!(kept, ack(&[]));
        let syn = syn(&[entry], "sim");
        assert_eq!(own_news_only(&syn, map(2).address).expect("well-formed"), syn);
        assert!(own_news_only(&ack(&of_one)[..50], map(1).address).is_err());
    }

    #[test]
    fn what_the_product_writes_is_read() {
        let mut rest = EXCHANGE;
        while let Some((length, after)) = rest.split_first_chunk() {
            let (message, after) = after.split_at(u16::from_le_bytes(*length).into());
            let nobody = SocketAddr::from(([192, 0, 2, 255], 1));
            let kept = own_news_only(message, nobody).expect("well-formed");
            assert_eq!(kept.len() < message.len(), message[3] != SYN, "news was taken out");
            rest = after;
        }
    }
}
