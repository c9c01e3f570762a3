//! PURE: how many outbound sidecars a request has passed, so that one that goes in a circle ends.
//!
//! Each outbound sidecar adds one. A workload that passes a request on with its headers, as proxies
//! do, passes the count on with them. A client may say any number: a high one ends its own requests,
//! and a low one begins the count anew, which it could do as well by leaving the header out. So the
//! count is believed as it comes, unlike everything else that clients say in the mesh's name.
//!
//! What it does not see: a circle through a workload that makes each request anew. Such a circle
//! holds a request open at each of its nodes, and ends with `limits.requests_in_flight_max` or the
//! workload's own timeout.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::proxy::failure::{Failure, Flag};

/// The count, in decimal.
pub(crate) static HOPS: HeaderName = HeaderName::from_static("x-starling-hops");

/// Calls that one request may cause in a row. No chain of services that pass headers on is as long;
/// a circle of them is this long within milliseconds.
pub(crate) const HOPS_MAX: usize = 32;

/// What is written, so that nothing is allocated for it.
const WRITTEN: [&str; HOPS_MAX] = [
    "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19",
    "20", "21", "22", "23", "24", "25", "26", "27", "28", "29", "30", "31", "32",
];

/// How many are behind a request with these headers: of several counts the highest, and 0 for what
/// is none.
pub(crate) fn passed(headers: &HeaderMap) -> usize {
    let count = |value: &HeaderValue| {
        let digits = Some(value.as_bytes()).filter(|bytes| bytes.iter().all(u8::is_ascii_digit))?;
        // A number that is too long is too high.
        (!digits.is_empty()).then(|| value.to_str().ok()?.parse().ok()).map(|count| count.unwrap_or(HOPS_MAX))
    };
    headers.get_all(&HOPS).iter().filter_map(count).max().unwrap_or(0)
}

/// What a request says that has `passed` so many, and one more; or that it goes no further.
pub(crate) fn next(passed: usize) -> Result<HeaderValue, Failure> {
    WRITTEN.get(passed).map(|written| HeaderValue::from_static(written)).ok_or_else(|| {
        let detail =
            format!("the request has passed {HOPS_MAX} sidecars; services call each other in a circle");
        Failure::new(Flag::Loop, detail)
    })
}

/// What a request says that has `passed` so many; `None` where nobody has counted.
pub(crate) fn same(passed: usize) -> Option<HeaderValue> {
    let index = passed.min(HOPS_MAX).checked_sub(1)?;
    Some(HeaderValue::from_static(WRITTEN[index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(values: &[&str]) -> usize {
        let value = |text: &&str| (HOPS.clone(), text.parse().expect("a value"));
        passed(&values.iter().map(value).collect())
    }

    #[test]
    fn the_count_goes_up_and_then_the_request_ends() {
        assert_eq!(said(&[]), 0);
        for count in 0..HOPS_MAX {
            let value = next(count).expect("it goes on");
            assert_eq!(said(&[value.to_str().expect("text")]), count + 1);
            assert_eq!(same(count + 1), Some(value));
        }
        assert_eq!(next(HOPS_MAX).map_err(|failure| failure.flag), Err(Flag::Loop));
        assert_eq!(same(0), None);
        assert_eq!(same(usize::MAX).as_ref(), Some(&HeaderValue::from_static("32")));
    }

    #[test]
    fn of_several_counts_the_highest_is_believed() {
        assert_eq!(said(&["3", "17", "2"]), 17);
        assert_eq!(said(&["", "x", "-1", "+2", "1,2"]), 0);
        assert_eq!(said(&["99999999999999999999999"]), HOPS_MAX);
    }
}
