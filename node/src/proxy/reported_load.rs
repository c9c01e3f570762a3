//! PURE: a callee's sidecar tells its callers how much its workload has to do, in the head of an answer.
//!
//! It ends at the caller's sidecar. What becomes of it there is [`crate::balance`]'s.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Requests under way at the instance, this one included.
pub(crate) static LOAD: HeaderName = HeaderName::from_static("x-starling-load");

/// Told with one answer of so many: who has much to do answers often.
const TOLD_EVERY: usize = 8;

/// Tells it, now and then: `under_way` of `entered` so far.
pub(crate) fn tell(headers: &mut HeaderMap, under_way: usize, entered: usize) {
    if entered.is_multiple_of(TOLD_EVERY) {
        headers.insert(LOAD.clone(), HeaderValue::from(under_way));
    }
}

/// What was told.
pub(crate) fn of(headers: &HeaderMap) -> Option<u32> {
    headers.get(&LOAD)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_and_nonsense_is_nothing() {
        let mut headers = HeaderMap::new();
        tell(&mut headers, 7, 9);
        assert_eq!(of(&headers), None);
        tell(&mut headers, 7, 16);
        assert_eq!(of(&headers), Some(7));
        for nonsense in ["-1", "99999999999999999999", "x", ""] {
            headers.insert(LOAD.clone(), HeaderValue::from_static(nonsense));
            assert_eq!(of(&headers), None, "{nonsense}");
        }
    }
}
