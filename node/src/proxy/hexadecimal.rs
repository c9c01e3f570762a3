//! PURE: numbers as hexadecimal digits, for ids that each request gets: `format!` takes ten times as long.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Fills `place` with the lowest digits of `number`, the most significant first.
pub(crate) fn write(number: u64, place: &mut [u8]) {
    let mut rest = number;
    for digit in place.iter_mut().rev() {
        *digit = DIGITS[(rest & 0xF) as usize];
        rest >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_all_its_digits() {
        let mut text = [0; 16];
        write(0x0012_3456_789A_BCDE, &mut text);
        assert_eq!(&text, b"00123456789abcde");
        write(0xFEDC, &mut text[..4]);
        assert_eq!(&text[..4], b"fedc");
    }
}
