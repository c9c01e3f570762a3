//! PURE: who was up and who was believed to be, over time, with what happened.

use super::plot::{self, Frame, WIDTH};
use super::scale::{Axis, Unit};
use super::svg::{Anchor, Drawing, path, text};
use crate::report::{MembersAt, Pictures};

const KEY: f64 = 44.0;
const PLOT: f64 = 350.0;
const NOTE: f64 = 18.0;
/// Below the plot, this many events are told; the others by their tooltips.
const NOTES_MAX: usize = 10;
/// A note longer than the plot is wide ends early.
const NOTE_LETTERS: usize = 128;

/// None without moments to show.
pub fn members(pictures: &Pictures) -> Option<Drawing> {
    let members = &pictures.members;
    let last = members.last()?;
    let most = members.iter().flat_map(|at| [at.up, at.seen_max]).max()? as f64;
    let time = Axis::between("virtual time", Unit::Seconds, 0.0, last.at_s);
    let frame = Frame::new(time, Axis::from_zero("nodes", Unit::Count, [most]), PLOT, KEY, 0.0);
    let mut body = frame.axes();
    let at = |at: &MembersAt, count: usize| frame.at(at.at_s, count as f64);
    let above = members.iter().map(|one| at(one, one.seen_max));
    let below = members.iter().rev().map(|one| at(one, one.seen_min));
    body += &path("band f1", above.chain(below), "what the nodes believe, from the fewest to the most");
    body +=
        &path("middle l1", members.iter().map(|one| at(one, one.seen_median)), "believed by the median node");
    body += &path("thick l0", stairs(&frame, members), "up");
    body += &plot::events(&frame, &pictures.events);
    let entries = [
        ("f0", "nodes that are up"),
        ("f1", "believed by the median node"),
        ("f1 band", "from the fewest to the most that one believes in"),
    ];
    body += &plot::key(frame.left, 12.0, &entries);
    let notes = plot::notes(&frame, &pictures.events);
    let drawn = noted(&notes, frame.left);
    let height = PLOT + drawn.1;
    let title = "Who is up, and who is believed to be".to_owned();
    Some(Drawing { title, width: WIDTH, height, body: body + &drawn.0 })
}

/// `up` changes at once.
fn stairs(frame: &Frame, members: &[MembersAt]) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    let mut before = members.first().map_or(0, |at| at.up);
    for at in members {
        if at.up != before {
            points.push(frame.at(at.at_s, before as f64));
        }
        points.push(frame.at(at.at_s, at.up as f64));
        before = at.up;
    }
    points
}

fn noted(notes: &[String], left: f64) -> (String, f64) {
    let mut drawn = String::new();
    let mut y = PLOT + 12.0;
    let mut say = |words: &str| {
        drawn += &text("label", Anchor::Start, (left, y), words);
        y += NOTE;
    };
    for (number, note) in notes.iter().take(NOTES_MAX).enumerate() {
        let mut words = format!("({}) {note}", number + 1);
        if let Some((end, _)) = words.char_indices().nth(NOTE_LETTERS) {
            words.truncate(end);
            words.push('…');
        }
        say(&words);
    }
    if notes.len() > NOTES_MAX {
        say(&format!("and {} more: point at their numbers", notes.len() - NOTES_MAX));
    }
    (drawn, y - PLOT - 12.0)
}
