//! What members with good keys and bad intentions can say to a catalogue. Each piece of the input
//! is a kind and a record without its signature, a renewal, or some time that passes; the target
//! signs it, so that the fuzzer does not have to.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use starling_fuzz::{IDENTITIES, WALL, World, pieces};
use starling_gossip::catalogue::{Applied, Catalogue, Rejected};
use starling_gossip::clock::{Clock, Instant, WallTime};
use starling_gossip::codec;
use starling_gossip::limits::RECORD_BYTES_MAX;
use starling_gossip::record::{Record, Renewal};
use starling_gossip::signature::SealedRecord;
use starling_gossip::svid::TrustBundle;

static WORLD: LazyLock<World> = LazyLock::new(World::new);
static BUNDLE: LazyLock<Arc<TrustBundle>> = LazyLock::new(|| Arc::new(WORLD.bundle()));
static START: LazyLock<Instant> = LazyLock::new(|| Clock::System.now());

/// Pieces that are taken of one input.
const PIECES_MAX: usize = 64;

fuzz_target!(|input: &[u8]| {
    let mut catalogue = Catalogue::new(BUNDLE.clone());
    let (mut now, mut wall) = (*START, WALL);
    for piece in pieces(input).take(PIECES_MAX) {
        let Some((kind, body)) = piece.split_first() else { continue };
        match kind {
            0 | 1 => offer(&mut catalogue, usize::from(*kind), body, now, wall),
            2 => renew(&mut catalogue, body, now, wall),
            _ => {
                let passes = Duration::from_millis(u64::from(*kind) << (body.len() % 16));
                now += passes;
                wall = WallTime { unix_millis: wall.unix_millis + passes.as_millis() as u64 };
                catalogue.handle_timeout(now, wall);
            }
        }
        check(&mut catalogue);
    }
});

fn offer(catalogue: &mut Catalogue, signer: usize, body: &[u8], now: Instant, wall: WallTime) {
    let Ok(record) = codec::decode::<Record, RECORD_BYTES_MAX>(body) else { return };
    let name = record.owner().short_name();
    let sealed = SealedRecord::seal(&record, &WORLD.svids[signer]).to_bytes();
    let before = catalogue.digest();
    let applied = catalogue.apply_filed(&name, &sealed, now, wall);
    match applied {
        Ok(Applied::Accepted) => {
            assert_eq!(record.owner().identity.as_str(), IDENTITIES[signer], "somebody else's record");
            let again = catalogue.apply_filed(&name, &sealed, now, wall);
            assert_eq!(again, Err(Rejected::Stale));
        }
        Ok(Applied::Waiting) | Err(_) => {
            assert_eq!(catalogue.digest(), before, "a refusal changed something")
        }
    }
    assert!(catalogue.apply_filed("0000000000000000", &sealed, now, wall).is_err());
}

fn renew(catalogue: &mut Catalogue, body: &[u8], now: Instant, wall: WallTime) {
    let Some((number, renewal)) = body.split_first() else { return };
    let Ok(renewal) = codec::decode::<Renewal, 64>(renewal) else { return };
    let Ok(identity) = IDENTITIES[usize::from(*number) % IDENTITIES.len()].parse() else { return };
    let Ok(node) = format!("node-{}", number % 4).parse() else { return };
    let name = starling_gossip::record::Owner { identity, node }.short_name();
    let _ = catalogue.apply_renewal(&name, &renewal, now, wall);
}

fn check(catalogue: &mut Catalogue) {
    let Some(snapshot) = catalogue.poll_snapshot() else { return };
    for (owner, member) in &snapshot.members {
        assert!(IDENTITIES.contains(&owner.identity.as_str()), "{owner} was never proved");
        assert_eq!(*owner, member.record.owner);
    }
    for (service, instances) in &snapshot.services {
        for instance in instances {
            assert!(instance.owner.identity.may_announce(service), "{service} is not its to announce");
        }
    }
}
