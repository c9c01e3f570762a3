//! PURE: measures and numbers as people say them; shared by the terminal, the page and `compare`.

/// The names that [`super::Samples`] uses, in the order in which they are shown, and what each means.
pub(crate) const MEASURES: [(&str, &str); 8] = [
    ("known", "a change known by another node"),
    ("joined", "a new node known by another"),
    ("rejoined", "a restarted node known again"),
    ("suspect", "a crash suspected"),
    ("unused", "routes prefer others to a crashed node"),
    ("expired", "a crashed node forgotten"),
    ("left", "a leaving node gone"),
    ("stale", "age of news not yet known"),
];

/// What a measure means; of one that is not in [`MEASURES`], its name.
pub(crate) fn measure(name: &str) -> &str {
    MEASURES.iter().find(|(known, _)| *known == name).map_or(name, |(_, words)| words)
}

/// Milliseconds: `4.2 ms`, `840 ms`, `1.31 s`, `150 s`.
pub(crate) fn duration(millis: f64) -> String {
    match millis.abs() {
        below if below < 999.5 => format!("{} ms", number(millis)),
        _ => format!("{} s", number(millis / 1e3)),
    }
}

/// Bytes: `212 B`, `1.21 kB`, `3.4 MB`.
pub(crate) fn size(bytes: f64) -> String {
    match bytes.abs() {
        below if below < 999.5 => format!("{} B", number(bytes)),
        below if below < 999_500.0 => format!("{} kB", number(bytes / 1e3)),
        below if below < 999_500_000.0 => format!("{} MB", number(bytes / 1e6)),
        _ => format!("{} GB", number(bytes / 1e9)),
    }
}

/// A share of one, in per cent.
pub(crate) fn share(share: f64) -> String {
    format!("{} %", number(share * 100.0))
}

/// Three digits that count, no zeros behind the point, thousands apart: `0.042`, `1.31`, `12,345`.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let magnitude = value.abs();
    let decimals = match magnitude {
        0.0 => 0,
        at_least if at_least >= 99.95 => 0,
        at_least if at_least >= 9.995 => 1,
        at_least if at_least >= 0.9995 => 2,
        // Below one: as many zeros as lead, then three digits; beyond six all is nothing.
        below => (2.0 - below.log10().floor()).min(6.0) as usize,
    };
    let text = format!("{magnitude:.decimals$}");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let part = part.trim_end_matches('0');
    let sign = if value < 0.0 && text.contains(|digit| ('1'..='9').contains(&digit)) { "-" } else { "" };
    let point = if part.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{part}", thousands(whole))
}

/// `one` of something, or several.
pub(crate) fn plural(count: usize, one: &str) -> String {
    format!("{} {one}{}", thousands(&count.to_string()), if count == 1 { "" } else { "s" })
}

fn thousands(digits: &str) -> String {
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        let shown =
            [0.0, 0.0421, 0.5, 1.306, 9.999, 12.34, 100.0, 840.4, 12_345.6, -3.0, 1e-9, -1e-9, f64::NAN]
                .map(number);
        let expected =
            ["0", "0.0421", "0.5", "1.31", "10", "12.3", "100", "840", "12,346", "-3", "0", "0", "-"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn units_change_where_a_person_would_change_them() {
        assert_eq!(
            [4.2, 840.0, 999.6, 1310.0, 150_000.0].map(duration),
            ["4.2 ms", "840 ms", "1 s", "1.31 s", "150 s"]
        );
        assert_eq!([212.0, 1210.0, 3.4e6, 2e9].map(size), ["212 B", "1.21 kB", "3.4 MB", "2 GB"]);
        assert_eq!(share(0.0123), "1.23 %");
        assert_eq!([plural(1, "seed"), plural(1200, "seed")], ["1 seed", "1,200 seeds"]);
    }
}
