//! PURE: who knew what when: a row for each node, a column for each thing said.

use super::plot::{WIDTH, wide};
use super::style::HEATS;
use super::svg::{Anchor, Drawing, line, rectangle, text};
use crate::report::{Percentiles, Pictures, Word, words};

/// Of more nodes or words, evenly chosen ones are shown.
const NODES_MAX: usize = 300;
const WORDS_MAX: usize = 160;
/// With at most this many cells, each has a tooltip; else each column.
const TOOLTIPS_MAX: usize = 3000;
const TOP: f64 = 12.0;
const RIGHT: f64 = 132.0;
/// Colours reach to this share of all times: the last few would squeeze the others into one colour.
const SATURATED: usize = 99;

struct Map<'a> {
    pictures: &'a Pictures,
    nodes: Vec<usize>,
    words: Vec<&'a Word>,
    left: f64,
    cell: (f64, f64),
    longest: f64,
}

/// None without words.
pub fn heat(pictures: &Pictures) -> Option<Drawing> {
    let map = Map::of(pictures)?;
    let mut body = String::from(
        "<defs><pattern id=\"hatch\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><rect class=\"never\" width=\"5\" height=\"5\"/>\
         <line class=\"hatch\" x1=\"0\" y1=\"0\" x2=\"0\" y2=\"5\"/></pattern></defs>\n",
    );
    body += &map.cells();
    body += &map.tooltips();
    body += &map.labels();
    body += &map.scale();
    let height = map.bottom() + 48.0;
    Some(Drawing { title: "Who knows what when".to_owned(), width: WIDTH, height, body })
}

impl<'a> Map<'a> {
    fn of(pictures: &'a Pictures) -> Option<Self> {
        let times: Vec<_> =
            pictures.words.iter().flat_map(|word| &word.known_ms).flatten().copied().collect();
        if times.is_empty() || pictures.nodes.is_empty() {
            return None;
        }
        let nodes = chosen(pictures.nodes.len(), NODES_MAX);
        let words: Vec<_> =
            chosen(pictures.words.len(), WORDS_MAX).into_iter().map(|at| &pictures.words[at]).collect();
        let widest = pictures.nodes.iter().map(|name| wide(name)).fold(0.0, f64::max).min(150.0);
        let left = widest + 16.0;
        let high = (620.0 / nodes.len() as f64).clamp(2.0, 15.0);
        let cell = ((WIDTH - left - RIGHT) / words.len() as f64, high);
        let longest = longest(times);
        Some(Self { pictures, nodes, words, left, cell, longest })
    }

    fn bottom(&self) -> f64 {
        TOP + self.nodes.len() as f64 * self.cell.1
    }

    fn heat(&self, millis: f64) -> usize {
        ((millis / self.longest * HEATS as f64) as usize).min(HEATS - 1)
    }

    /// One path for each colour: a page with a hundred thousand rectangles opens slowly.
    fn cells(&self) -> String {
        let mut never = String::new();
        let mut said = String::new();
        let mut heats = vec![String::new(); HEATS];
        for (column, word) in self.words.iter().enumerate() {
            for (row, node) in self.nodes.iter().enumerate() {
                let known = word.known_ms.get(*node).copied().flatten();
                let into = match known {
                    _ if word.by == *node => &mut said,
                    Some(millis) => &mut heats[self.heat(millis)],
                    None => &mut never,
                };
                let (x, y) = self.at(column, row);
                let (width, height) = self.cell;
                into.push_str(&format!("M{x:.2} {y:.2}h{width:.2}v{height:.2}h-{width:.2}z"));
            }
        }
        let mut drawn = format!("<path fill=\"url(#hatch)\" d=\"{never}\"/>\n");
        for (heat, way) in heats.iter().enumerate() {
            drawn += &format!("<path class=\"cell h{heat}\" d=\"{way}\"/>\n");
        }
        drawn + &format!("<path class=\"cell f1\" d=\"{said}\"/>\n")
    }

    fn at(&self, column: usize, row: usize) -> (f64, f64) {
        (self.left + column as f64 * self.cell.0, TOP + row as f64 * self.cell.1)
    }

    fn tooltips(&self) -> String {
        let mut drawn = String::new();
        let each = self.words.len() * self.nodes.len() <= TOOLTIPS_MAX;
        for (column, word) in self.words.iter().enumerate() {
            if !each {
                let height = self.bottom() - TOP;
                drawn += &rectangle("hover", self.at(column, 0), (self.cell.0, height), &self.told(word));
                continue;
            }
            for (row, node) in self.nodes.iter().enumerate() {
                let name = &self.pictures.nodes[*node];
                let when = match word.known_ms.get(*node).copied().flatten() {
                    _ if word.by == *node => format!("{name} said it"),
                    Some(millis) => format!("{name} knew it after {}", words::duration(millis)),
                    None => format!("{name} never knew it, or was not there"),
                };
                let words = format!("{when}\n{}", self.told(word));
                drawn += &rectangle("hover", self.at(column, row), self.cell, &words);
            }
        }
        drawn
    }

    fn told(&self, word: &Word) -> String {
        let by = self.pictures.nodes.get(word.by).map_or("?", String::as_str);
        let times: Vec<_> = word.known_ms.iter().flatten().copied().collect();
        let of = Percentiles::of(&times);
        let (half, all) = (words::duration(of.p50), words::duration(of.p100));
        let at = words::number(word.at_s);
        format!("{} ({by}, at {at} s): half after {half}, the last after {all}", word.what)
    }

    /// Names of rows and times of columns, as many as have room.
    fn labels(&self) -> String {
        let mut drawn = String::new();
        let every = (13.0 / self.cell.1).ceil() as usize;
        for (row, node) in self.nodes.iter().enumerate().step_by(every) {
            let (x, y) = (self.left - 7.0, self.at(0, row).1 + self.cell.1 / 2.0 + 3.5);
            let name: String = self.pictures.nodes[*node].chars().take(23).collect();
            drawn += &text("small", Anchor::End, (x, y), &name);
        }
        let every = (62.0 / self.cell.0).ceil() as usize;
        for (column, word) in self.words.iter().enumerate().step_by(every) {
            let (x, bottom) = (self.at(column, 0).0 + self.cell.0 / 2.0, self.bottom());
            drawn += &line("axis", (x, bottom), (x, bottom + 5.0), "");
            let when = format!("{} s", words::number((word.at_s * 10.0).round() / 10.0));
            drawn += &text("tick", Anchor::Middle, (x, bottom + 19.0), &when);
        }
        let middle = self.left + (WIDTH - self.left - RIGHT) / 2.0;
        let label = "each column is one thing said, in order; below it, when";
        drawn + &text("label", Anchor::Middle, (middle, self.bottom() + 38.0), label)
    }

    fn scale(&self) -> String {
        let x = WIDTH - RIGHT + 24.0;
        let mut drawn = text("label", Anchor::Start, (x, TOP + 9.0), "knew it after");
        let (height, top) = (11.0, TOP + 20.0);
        for heat in 0..HEATS {
            let y = top + heat as f64 * height;
            drawn += &rectangle(&format!("cell h{heat}"), (x, y), (16.0, height), "");
        }
        for part in [0, 3, 6, 9, HEATS] {
            let millis = self.longest * part as f64 / HEATS as f64;
            let more = if part == HEATS { " or more" } else { "" };
            let at = (x + 22.0, top + part as f64 * height + 4.0);
            drawn += &text("small", Anchor::Start, at, &format!("{}{more}", words::duration(millis)));
        }
        let below = top + HEATS as f64 * height + 18.0;
        let swatch = format!(
            "<rect fill=\"url(#hatch)\" x=\"{x:.1}\" y=\"{below:.1}\" width=\"16\" height=\"11\"/>\n"
        );
        drawn += &swatch;
        drawn += &text("small", Anchor::Start, (x + 22.0, below + 9.0), "never, or");
        drawn += &text("small", Anchor::Start, (x + 22.0, below + 21.0), "was not there");
        drawn += &rectangle("cell f1", (x, below + 30.0), (16.0, 11.0), "");
        drawn + &text("small", Anchor::Start, (x + 22.0, below + 39.0), "said it")
    }
}

/// The time at which colours end: round, and beyond nearly all.
fn longest(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    let most = times[(times.len() * SATURATED / 100).min(times.len() - 1)].max(1.0);
    let unit = 10f64.powf(most.log10().floor()) / 5.0;
    (most / unit).ceil() * unit
}

/// Up to `most` of `count`, evenly spread.
fn chosen(count: usize, most: usize) -> Vec<usize> {
    let shown = count.min(most);
    (0..shown).map(|at| at * count / shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_thinned_out_evenly_and_few_are_kept() {
        assert_eq!(chosen(3, 5), [0, 1, 2]);
        assert_eq!(chosen(10, 5), [0, 2, 4, 6, 8]);
        assert!(chosen(0, 5).is_empty());
    }

    #[test]
    fn colours_end_at_a_round_time() {
        assert_eq!(longest(vec![1310.0]), 1400.0);
        assert_eq!(longest(vec![0.0]), 1.0);
    }
}
