//! PURE: gRPC's own word on how long a call may take ("gRPC over HTTP2": Timeout), read and written.
//!
//! What is sent on is what is left. It decides nothing; whoever waits is [`crate::patience`]'s.

use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};

/// The header that carries it.
pub const HEADER: &str = "grpc-timeout";

/// A value has one to eight digits.
const DIGITS_MAX: usize = 8;
const NUMBER_MAX: u128 = 99_999_999;

/// The units, finest first, in nanoseconds.
const UNITS: [(u8, u128); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// How long the call with these headers may take, if they say so once and for all.
pub fn of(headers: &HeaderMap) -> Option<Duration> {
    let mut values = headers.get_all(HEADER).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    parse(value.as_bytes())
}

/// Says in `headers` that so much time is left.
pub fn set(headers: &mut HeaderMap, left: Duration) {
    // Digits and a letter always are a header's value.
    if let Ok(value) = HeaderValue::from_str(&show(left)) {
        headers.insert(HEADER, value);
    }
}

/// Reads a header's value; `None` is not one, and says nothing.
pub fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let each = UNITS.iter().find(|(name, _)| name == unit)?.1;
    if !(1..=DIGITS_MAX).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number: u128, digit| number * 10 + u128::from(digit - b'0'));
    let nanos = number * each;
    Some(Duration::new((nanos / 1_000_000_000) as u64, (nanos % 1_000_000_000) as u32))
}

/// Writes what is left, in the finest unit that holds it; never zero, which some read as no limit.
pub fn show(left: Duration) -> String {
    let nanos = left.as_nanos().max(1);
    let fits = |(_, each): &&(u8, u128)| nanos / each <= NUMBER_MAX;
    let (unit, each) = UNITS.iter().find(fits).unwrap_or(&UNITS[UNITS.len() - 1]);
    format!("{}{}", (nanos / each).min(NUMBER_MAX), char::from(*unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_standard_allows_is_read_and_nothing_else() {
        for (text, nanos) in [
            ("1n", 1),
            ("20u", 20_000),
            ("007m", 7_000_000),
            ("5S", 5_000_000_000),
            ("2M", 120_000_000_000),
            ("1H", 3_600_000_000_000),
            ("0S", 0),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(Duration::from_nanos(nanos)), "{text}");
        }
        assert_eq!(parse(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for text in
            ["", "S", "5", "5s", "5h", "123456789S", "-1S", "+1S", " 1S", "1S ", "1.5S", "1 S", "5\u{b5}"]
        {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn headers_say_it_once_or_not_at_all() {
        let mut headers = HeaderMap::new();
        assert_eq!(of(&headers), None);
        set(&mut headers, Duration::from_secs(2));
        assert_eq!(of(&headers), Some(Duration::from_secs(2)));
        headers.append(HEADER, HeaderValue::from_static("1H"));
        assert_eq!(of(&headers), None);
        set(&mut headers, Duration::from_secs(1));
        assert_eq!(of(&headers), Some(Duration::from_secs(1)), "what is set counts alone");
    }

    #[test]
    fn what_is_written_is_never_longer_and_hardly_shorter() {
        let mut nanos = 1_u64;
        while nanos < u64::MAX / 7 {
            let left = Duration::from_nanos(nanos);
            let read = parse(show(left).as_bytes()).expect("our own");
            assert!(read <= left && read.as_nanos() * 1_000_000 >= u128::from(nanos) * 999_990, "{left:?}");
            nanos = nanos * 7 + 3;
        }
        assert_eq!(show(Duration::ZERO), "1n");
        assert_eq!(show(Duration::from_millis(1_500)), "1500000u");
        assert_eq!(show(Duration::MAX), "99999999H");
    }
}
