//! PURE: rows of cells as aligned lines for a terminal.

/// Aligns the first column to the left, the others, which hold numbers, to the right; the last column
/// may be words, which are as long as they are. Each line begins with `indent`.
pub(crate) fn aligned(indent: &str, rows: &[Vec<String>], last_is_words: bool) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut lines = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match column {
                0 => line.push_str(&format!("{cell:<width$}")),
                last if last_is_words && last + 1 == columns => line.push_str(&format!("  {cell}")),
                _ => line.push_str(&format!("  {cell:>width$}")),
            }
        }
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_to_the_right_and_words_to_the_left() {
        let rows = [vec!["figure", "ms", ""], vec!["p50", "1,200", "worse"], vec!["p100", "7"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect();
        let expected = " figure     ms\n p50     1,200  worse\n p100        7\n";
        assert_eq!(aligned(" ", &rows, true), expected);
    }
}
