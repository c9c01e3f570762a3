//! PURE: one name for a request in all logs, its workload's included.
//!
//! A client's own is kept, so that a name given at the edge holds along a chain of services that pass
//! it on, unless it is too long or could do harm in a log; then, and where there is none, the first
//! outbound sidecar makes one.

use http::header::{Entry, HeaderMap, HeaderName, HeaderValue};

use crate::balance::Chance;
use crate::proxy::{headers, hexadecimal};

/// Where it is; Envoy's name for it, which many programs know.
pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A UUID has 36 bytes; some edges put two ids, or a host's name, into one.
const BYTES_MAX: usize = 128;

const UUID_BYTES: usize = 36;

/// Gives a request a name if it has none that can be kept.
pub(crate) fn ensure(map: &mut HeaderMap, chance: &Chance) {
    // Without room for it, it has none.
    let Ok(mut place) = map.try_entry(&REQUEST_ID) else { return };
    if let Entry::Occupied(given) = &mut place
        && given.iter().count() == 1
        && is_sane(given.get())
    {
        return headers::mark_as_new_each_time(given.get_mut());
    }
    // Hexadecimal digits and hyphens are a header's value.
    let Ok(mut value) = HeaderValue::from_bytes(&uuid(chance.bits(), chance.bits())) else { return };
    headers::mark_as_new_each_time(&mut value);
    match place {
        Entry::Occupied(mut given) => drop(given.insert(value)),
        Entry::Vacant(place) => drop(place.insert(value)),
    }
}

fn is_sane(id: &HeaderValue) -> bool {
    let may_be = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:;/+=@~|".contains(byte);
    (1..=BYTES_MAX).contains(&id.len()) && id.as_bytes().iter().all(may_be)
}

/// A random UUID (RFC 9562, section 5.4) of these bits.
fn uuid(high: u64, low: u64) -> [u8; UUID_BYTES] {
    const VERSION: u64 = 0x4 << 12;
    const VARIANT: u64 = 0b10 << 62;
    let high = (high & !(0xF << 12)) | VERSION;
    let low = (low & !(0b11 << 62)) | VARIANT;
    let mut text = [b'-'; UUID_BYTES];
    hexadecimal::write(high >> 32, &mut text[..8]);
    hexadecimal::write(high >> 16, &mut text[9..13]);
    hexadecimal::write(high, &mut text[14..18]);
    hexadecimal::write(low >> 48, &mut text[19..23]);
    hexadecimal::write(low, &mut text[24..]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ensured(given: &[&str]) -> Vec<String> {
        let value = |text: &&str| (REQUEST_ID.clone(), text.parse().expect("a value"));
        let mut headers: HeaderMap = given.iter().map(value).collect();
        ensure(&mut headers, &Chance::new(7));
        let text = |value: &HeaderValue| value.to_str().expect("text").to_owned();
        headers.get_all(&REQUEST_ID).iter().map(text).collect()
    }

    #[test]
    fn a_name_that_can_be_kept_is_kept() {
        let longest = "a".repeat(BYTES_MAX);
        for id in ["1", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "edge/7@a:b", &longest] {
            assert_eq!(ensured(&[id]), [id]);
        }
    }

    #[test]
    fn any_other_is_replaced_by_a_uuid() {
        let too_long = "a".repeat(BYTES_MAX + 1);
        for given in [&[][..], &[""], &["a b"], &["a\"b"], &["<x>"], &["a", "b"], &[too_long.as_str()]] {
            let made = ensured(given);
            assert_eq!(made.len(), 1, "{given:?}");
            let lengths: Vec<_> = made[0].split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12], "{made:?}");
        }
    }

    #[test]
    fn a_uuid_says_which_kind_it_is() {
        assert_eq!(&uuid(0, 0), b"00000000-0000-4000-8000-000000000000");
        assert_eq!(&uuid(u64::MAX, u64::MAX), b"ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(
            &uuid(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210),
            b"01234567-89ab-4def-bedc-ba9876543210"
        );
    }
}
