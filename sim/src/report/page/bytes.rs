//! PURE: what the mesh sends over time, by kind of message, one kind on top of another.

use std::collections::{BTreeMap, BTreeSet};

use super::plot::{self, Frame, HEIGHT, POINTS_MAX, WIDTH};
use super::scale::{Axis, Unit};
use super::style::SERIES;
use super::svg::{Drawing, path};
use crate::report::{Pictures, words};

const KEY: f64 = 44.0;

/// None without seconds to show.
pub fn bytes(pictures: &Pictures) -> Option<Drawing> {
    let kinds = by_volume(&pictures.bytes);
    if kinds.is_empty() {
        return None;
    }
    let (seconds, bin) = binned(&pictures.bytes, &kinds);
    let totals = seconds.iter().map(|of| of.iter().sum::<f64>());
    let rate = Axis::from_zero("all nodes together", Unit::ByteRate, totals);
    let end = pictures.members.last().map_or((seconds.len() * bin) as f64, |last| last.at_s);
    let frame = Frame::new(Axis::between("virtual time", Unit::Seconds, 0.0, end), rate, HEIGHT, KEY, 0.0);
    let mut body = frame.axes();
    let mut below = vec![0.0; seconds.len()];
    for (at, kind) in kinds.iter().enumerate() {
        let above: Vec<_> = below.iter().zip(&seconds).map(|(below, of)| below + of[at]).collect();
        let point =
            |(second, value): (usize, &f64)| frame.at((second * bin) as f64 + bin as f64 / 2.0, *value);
        let upper = above.iter().enumerate().map(point);
        let lower = below.iter().enumerate().map(point).collect::<Vec<_>>().into_iter().rev();
        let mean = seconds.iter().map(|of| of[at]).sum::<f64>() / seconds.len() as f64;
        let tooltip = format!("{kind}: {}/s on average", words::size(mean));
        body += &path(&format!("area f{}", at % SERIES), upper.chain(lower), &tooltip);
        below = above;
    }
    body += &plot::events(&frame, &pictures.events);
    let classes: Vec<_> = (0..kinds.len()).map(|at| format!("area f{}", at % SERIES)).collect();
    let entries: Vec<_> = classes.iter().map(String::as_str).zip(kinds.iter().copied()).collect();
    body += &plot::key(frame.left, 12.0, &entries);
    Some(Drawing { title: "What the mesh sends".to_owned(), width: WIDTH, height: HEIGHT, body })
}

/// Kinds, the one with the most bytes first: it is the ground on which the others stand.
fn by_volume(seconds: &[BTreeMap<String, u64>]) -> Vec<&str> {
    let kinds: BTreeSet<_> = seconds.iter().flat_map(|second| second.keys()).collect();
    let volume = |kind: &str| seconds.iter().filter_map(|second| second.get(kind)).sum::<u64>();
    let mut kinds: Vec<_> = kinds.into_iter().map(String::as_str).collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(volume(kind)));
    kinds
}

/// Bytes per second by kind, over as many seconds as make one point; and how many those are.
fn binned(seconds: &[BTreeMap<String, u64>], kinds: &[&str]) -> (Vec<Vec<f64>>, usize) {
    let bin = seconds.len().div_ceil(POINTS_MAX).max(1);
    let rate = |bin: &[BTreeMap<String, u64>], kind: &str| {
        bin.iter().filter_map(|second| second.get(kind)).sum::<u64>() as f64 / bin.len() as f64
    };
    let points = seconds.chunks(bin).map(|bin| kinds.iter().map(|kind| rate(bin, kind)).collect());
    (points.collect(), bin)
}
