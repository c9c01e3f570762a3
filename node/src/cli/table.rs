//! PURE: rows of words as an aligned table.

/// Aligns `rows` under `titles`: words to the left, the last column as long as it is.
pub(crate) fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = titles.map(|title| title.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; N]| {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(cells) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        line.trim_end().to_owned()
    };
    let mut lines = vec![line(&titles.map(|title| title.to_uppercase()))];
    lines.extend(rows.iter().map(line));
    lines.join("\n")
}

/// Milliseconds for people: `730ms`, `12s`, `3m`, `5h`, `9d`.
pub(crate) fn age(millis: u64) -> String {
    const SECOND: u64 = 1000;
    match millis {
        0..SECOND => format!("{millis}ms"),
        SECOND..=119_999 => format!("{}s", millis / SECOND),
        120_000..=7_199_999 => format!("{}m", millis / (60 * SECOND)),
        7_200_000..=172_799_999 => format!("{}h", millis / (3600 * SECOND)),
        _ => format!("{}d", millis / (86_400 * SECOND)),
    }
}

/// Bytes for people, by thousands: `640B`, `12KB`, `90MB`, `30GB`.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes}B"),
        10_000..=9_999_999 => format!("{}KB", bytes / 1_000),
        10_000_000..=9_999_999_999 => format!("{}MB", bytes / 1_000_000),
        _ => format!("{}GB", bytes / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let rows = [["web-1".to_owned(), "alive".to_owned()], ["db".to_owned(), String::new()]];
        assert_eq!(table(["node", "state"], &rows), "NODE   STATE\nweb-1  alive\ndb");
    }

    #[test]
    fn amounts_are_short() {
        let shown = [0, 9_999, 10_000, 9_999_999, 10_000_000, 10_000_000_000].map(bytes);
        assert_eq!(shown, ["0B", "9999B", "10KB", "9999KB", "10MB", "10GB"]);
    }

    #[test]
    fn ages_are_short() {
        let shown = [0, 999, 1000, 119_999, 120_000, 7_200_000, 172_800_000].map(age);
        assert_eq!(shown, ["0ms", "999ms", "1s", "119s", "2m", "2h", "2d"]);
    }
}
