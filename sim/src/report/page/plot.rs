//! PURE: plots with two axes: the frame, lines with a key, events on the axis of time.

use super::scale::Axis;
use super::style::SERIES;
use super::svg::{Anchor, Drawing, dot, line, path, rectangle, text};
use crate::report::words;

/// Full width of a drawing.
pub const WIDTH: f64 = 900.0;
/// Height of a plot, its axes included.
pub const HEIGHT: f64 = 360.0;
/// Of a curve, at most this many points are drawn: no screen shows more.
pub const POINTS_MAX: usize = 400;
/// Left of a frame, so that plots below one another share an axis of time.
pub const LEFT: f64 = 88.0;
/// Room for names at the ends of lines, so that plots of a sweep share an axis.
const NAMES: f64 = 135.0;
/// About how wide a letter is.
const LETTER: f64 = 6.7;
/// How close two labels may come, one below the other.
const LABEL_GAP: f64 = 15.0;
/// Lines with at most this many points show them.
const DOTTED_MAX: usize = 24;

/// The rectangle within the axes.
pub struct Frame {
    /// Of its left upper corner.
    pub left: f64,
    /// As `left`.
    pub top: f64,
    /// Of the rectangle alone.
    pub width: f64,
    /// As `width`.
    pub height: f64,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
}

/// One of several lines.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it is, for the key.
    pub name: String,
    /// In the axes' units, from left to right.
    pub points: Vec<(f64, f64)>,
    /// The least and the most at an x, such as among seeds.
    pub ranges: Vec<(f64, f64, f64)>,
    /// A bound or an ideal: dashed, no points.
    pub dashed: bool,
}

impl Frame {
    /// Fills a drawing of `height`, with room for axes, `above` and to the right.
    pub fn new(x: Axis, y: Axis, height: f64, above: f64, right: f64) -> Self {
        let widest = y.ticks().into_iter().map(|tick| wide(&y.written(tick))).fold(0.0, f64::max);
        let left = (widest + 34.0).max(LEFT);
        let top = above + 8.0;
        Self { left, top, width: WIDTH - left - right.max(16.0), height: height - top - 46.0, x, y }
    }

    /// Where a pair of values lies.
    pub fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.left + self.x.place(x) * self.width, self.top + (1.0 - self.y.place(y)) * self.height)
    }

    /// Its right edge.
    pub fn right(&self) -> f64 {
        self.left + self.width
    }

    /// Its lower edge.
    pub fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Grid, ticks and labels.
    pub fn axes(&self) -> String {
        let mut drawn = String::new();
        for tick in self.y.ticks() {
            let (_, y) = self.at(0.0, tick);
            drawn += &line("grid", (self.left, y), (self.right(), y), "");
            drawn += &text("tick", Anchor::End, (self.left - 8.0, y + 4.0), &self.y.written(tick));
        }
        drawn += &self.ticks_of_x();
        drawn += &line("axis", (self.left, self.bottom()), (self.right(), self.bottom()), "");
        let middle = self.left + self.width / 2.0;
        drawn += &text("label", Anchor::Middle, (middle, self.bottom() + 38.0), &self.x.label);
        let (x, y) = (12.0, self.top + self.height / 2.0);
        let label = text("label", Anchor::Middle, (0.0, 0.0), &self.y.label);
        drawn + &format!("<g transform=\"translate({x:.1} {y:.1}) rotate(-90)\">{label}</g>\n")
    }

    /// A tick whose words would touch the last one's has none.
    fn ticks_of_x(&self) -> String {
        let mut drawn = String::new();
        let mut free_from = 0.0;
        for tick in self.x.ticks() {
            let (x, bottom) = (self.at(tick, 0.0).0, self.bottom());
            drawn += &line("axis", (x, bottom), (x, bottom + 5.0), "");
            let words = self.x.written(tick);
            if x - wide(&words) / 2.0 >= free_from {
                free_from = x + wide(&words) / 2.0 + 8.0;
                drawn += &text("tick", Anchor::Middle, (x, bottom + 19.0), &words);
            }
        }
        drawn
    }
}

/// Lines over a common x, named at their right ends: for sweeps, x being the parameter.
pub fn lines(title: &str, x: Axis, y: Axis, lines: &[Line]) -> Drawing {
    let right = lines.iter().map(|line| wide(&line.name)).fold(NAMES, f64::max) + 30.0;
    let frame = Frame::new(x, y, HEIGHT, 0.0, right);
    let mut body = frame.axes();
    let mut ends = Vec::new();
    for (at, one) in lines.iter().enumerate() {
        let points: Vec<_> = one.points.iter().filter(|(_, y)| y.is_finite()).copied().collect();
        let Some((last_x, last_y)) = points.last().copied() else { continue };
        let dashed = if one.dashed { " dashed" } else { "" };
        let way = points.iter().map(|(x, y)| frame.at(*x, *y));
        for (x, least, most) in &one.ranges {
            body += &line(&format!("range l{}", at % SERIES), frame.at(*x, *least), frame.at(*x, *most), "");
        }
        body += &path(&format!("middle l{}{dashed}", at % SERIES), way, &one.name);
        if !one.dashed && points.len() <= DOTTED_MAX {
            for (x, y) in &points {
                let tooltip = format!("{} at {}: {}", one.name, frame.x.written(*x), frame.y.written(*y));
                body += &dot(&format!("f{}", at % SERIES), frame.at(*x, *y), 3.5, &tooltip);
            }
        }
        ends.push((frame.at(last_x, last_y), at, one.name.as_str()));
    }
    body += &names_at_ends(&frame, ends);
    Drawing { title: title.to_owned(), width: WIDTH, height: HEIGHT, body }
}

/// Labels beside the ends of lines, moved apart where they would overlap.
fn names_at_ends(frame: &Frame, mut ends: Vec<((f64, f64), usize, &str)>) -> String {
    ends.sort_by(|((_, one), ..), ((_, other), ..)| one.total_cmp(other));
    let mut rows: Vec<f64> = ends.iter().map(|((_, y), ..)| *y).collect();
    for at in 1..rows.len() {
        rows[at] = rows[at].max(rows[at - 1] + LABEL_GAP);
    }
    let mut lowest = frame.bottom();
    for row in rows.iter_mut().rev() {
        *row = row.min(lowest);
        lowest = *row - LABEL_GAP;
    }
    let mut drawn = String::new();
    for (((x, end), series, name), y) in ends.into_iter().zip(rows) {
        let label = frame.right() + 20.0;
        drawn += &line(&format!("leader l{}", series % SERIES), (x + 5.0, end), (label - 4.0, y), "");
        drawn += &text("label", Anchor::Start, (label, y + 4.0), name);
    }
    drawn
}

/// Swatches with names, in a row from (`left`, `y`); each has its class.
pub fn key(left: f64, y: f64, entries: &[(&str, &str)]) -> String {
    let (mut drawn, mut x) = (String::new(), left);
    for (class, name) in entries {
        drawn += &rectangle(class, (x, y - 9.0), (14.0, 10.0), "");
        drawn += &text("label", Anchor::Start, (x + 19.0, y), name);
        x += 19.0 + wide(name) + 18.0;
    }
    drawn
}

/// How wide words are, about.
pub fn wide(words: &str) -> f64 {
    words.chars().count() as f64 * LETTER
}

/// Events that would lie on top of one another, as one.
struct Marked {
    x: f64,
    words: Vec<String>,
}

/// Marks what happened when: numbered lines across the frame.
pub fn events(frame: &Frame, events: &[(f64, String)]) -> String {
    let mut drawn = String::new();
    for (number, marked) in marked(frame, events).iter().enumerate() {
        let words = marked.words.join("\n");
        drawn += &line("event", (marked.x, frame.top), (marked.x, frame.bottom()), &words);
        let at = (marked.x, frame.top - 9.0);
        drawn += &dot("mark", at, 8.0, &words);
        drawn += &text("small", Anchor::Middle, (at.0, at.1 + 3.8), &(number + 1).to_string());
    }
    drawn
}

/// What the numbers of [`events`] mean, one line for each.
pub fn notes(frame: &Frame, events: &[(f64, String)]) -> Vec<String> {
    const SHOWN: usize = 3;
    let note = |marked: &Marked| match marked.words.len().checked_sub(SHOWN) {
        None | Some(0) => marked.words.join("; "),
        Some(more) => format!("{}; and {more} more", marked.words[..SHOWN].join("; ")),
    };
    marked(frame, events).iter().map(note).collect()
}

fn marked(frame: &Frame, events: &[(f64, String)]) -> Vec<Marked> {
    let mut events: Vec<_> = events.iter().collect();
    events.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let mut all: Vec<Marked> = Vec::new();
    for (at, words) in events {
        let x = frame.at(*at, 0.0).0;
        let words = format!("at {} s: {words}", words::number(*at));
        match all.last_mut() {
            Some(last) if x - last.x < 17.0 => last.words.push(words),
            _ => all.push(Marked { x, words: vec![words] }),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::page::scale::Unit;

    fn frame() -> Frame {
        let time = Axis::between("time", Unit::Seconds, 0.0, 100.0);
        Frame::new(time, Axis::from_zero("nodes", Unit::Count, [50.0]), HEIGHT, 0.0, 0.0)
    }

    #[test]
    fn values_beyond_an_axis_stay_within_the_frame() {
        let frame = frame();
        assert_eq!(frame.at(0.0, 0.0), (frame.left, frame.bottom()));
        assert_eq!(frame.at(1e9, 1e9), (frame.right(), frame.top));
    }

    #[test]
    fn events_at_the_same_place_are_one_mark() {
        let said = |at: f64, words: &str| (at, words.to_owned());
        let events = [said(50.0, "heal"), said(10.0, "crash a"), said(10.1, "crash b")];
        assert_eq!(notes(&frame(), &events), ["at 10 s: crash a; at 10.1 s: crash b", "at 50 s: heal"]);
    }

    #[test]
    fn labels_at_the_ends_of_lines_do_not_touch() {
        let frame = frame();
        let at = |y: f64| (frame.right(), y);
        let drawn =
            names_at_ends(&frame, vec![(at(100.0), 0, "a"), (at(101.0), 1, "b"), (at(102.0), 2, "c")]);
        let row = |text: &str| text.split("y=\"").nth(1)?.split('"').next()?.parse::<f64>().ok();
        let rows: Vec<f64> = drawn.split("<text").skip(1).filter_map(row).collect();
        assert_eq!(rows.len(), 3);
        assert!(rows.windows(2).all(|pair| pair[1] - pair[0] >= LABEL_GAP - 0.1), "{rows:?}");
    }
}
