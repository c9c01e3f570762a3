//! Sealed records and renewals as they travel, before anything about them is believed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling_gossip::codec;
use starling_gossip::limits::RECORD_BYTES_MAX;
use starling_gossip::record::{Record, Renewal};
use starling_gossip::signature::SealedRecord;

fuzz_target!(|input: &[u8]| {
    if let Ok(renewal) = codec::decode::<Renewal, 64>(input) {
        let _ = renewal.is_in_bounds();
        assert_eq!(codec::decode::<Renewal, 64>(&codec::encode(&renewal)), Ok(renewal));
    }
    let Ok(sealed) = SealedRecord::from_bytes(input) else { return };
    assert_eq!(sealed.to_bytes(), input);
    let Ok(record) = sealed.unverified() else { return };
    let _ = (record.check_bounds(), record.owner().short_name(), record.version());
    let again = codec::decode::<Record, RECORD_BYTES_MAX>(&codec::encode(&record));
    assert!(again.is_err() || again == Ok(record));
});
