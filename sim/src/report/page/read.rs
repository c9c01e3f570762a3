//! PURE: what to read from each figure, in a sentence or two with its own numbers.

use crate::report::words::{self, duration, number};
use crate::report::{MembersAt, Percentiles, Pictures, Report};

pub(super) fn propagation(report: &Report) -> String {
    let (known, rounds) = (&report.known_ms, &report.rounds);
    let compared = if rounds.p100 <= rounds.bound { "within" } else { "beyond" };
    format!(
        "Half of the nodes know a change after {}, 99 of 100 after {}, the last of all after {}. That is {} \
         rounds of {} and {compared} the {} that push gossip needs in theory (log2 N + ln N).",
        duration(known.p50),
        duration(known.p99),
        duration(known.p100),
        number(rounds.p100),
        duration(rounds.interval_ms),
        number(rounds.bound),
    )
}

pub(super) fn spread(report: &Report) -> String {
    let p99: Vec<_> =
        report.runs.iter().filter(|run| run.known_ms.count > 0).map(|run| run.known_ms.p99).collect();
    let (least, most) =
        (p99.iter().copied().fold(f64::MAX, f64::min), p99.iter().copied().fold(0.0, f64::max));
    format!(
        "Each dot is a seed, the bar their median. Between the luckiest and the unluckiest seed, 99 % knew after \
         {} to {}: a change of the code must move more than that to be more than chance.",
        duration(least),
        duration(most),
    )
}

pub(super) fn others(report: &Report) -> String {
    let told = |name: &str, of: &Percentiles| format!("{} {}", words::measure(name), duration(of.p99));
    let measured = report.measures();
    let others: Vec<_> =
        measured.iter().filter(|(name, _)| *name != "known").map(|(name, of)| told(name, of)).collect();
    format!("The further left, the better. 99 of 100 cases took at most: {}.", others.join("; "))
}

pub(super) fn members(seed: u64, pictures: &Pictures) -> String {
    let apart = |at: &MembersAt| at.up.abs_diff(at.seen_min).max(at.up.abs_diff(at.seen_max));
    let aim = "Where the band lies on the line, every node believes what is true.";
    // Until all have met, nothing is wrong with knowing few.
    let met = pictures.members.iter().position(|at| apart(at) == 0);
    let since = met.map_or(pictures.members.as_slice(), |met| &pictures.members[met..]);
    let Some(worst) = since.iter().max_by_key(|at| apart(at)) else { return aim.to_owned() };
    let share = since.iter().filter(|at| apart(at) == 0).count() as f64 / since.len() as f64;
    if apart(worst) == 0 {
        return format!("{aim} With seed {seed} that was so as soon as all had met.");
    }
    format!(
        "{aim} With seed {seed}, once all had met, that was so for {} of the time; a node was the most wrong at \
         {} s, when it believed in {} and {} were up.",
        words::share(share),
        number(worst.at_s),
        if worst.up.abs_diff(worst.seen_min) >= worst.up.abs_diff(worst.seen_max) {
            worst.seen_min
        } else {
            worst.seen_max
        },
        worst.up,
    )
}

pub(super) fn bytes(report: &Report, seed: u64) -> String {
    let figures = report.figures();
    let steady = words::size(report.bytes_per_node_s);
    let change = match figures.get("bytes_per_node_s_change") {
        Some(change) => format!(", {} while something changes", words::size(*change)),
        None => String::new(),
    };
    format!(
        "Each node sends {steady} a second at rest{change} (mean of all seeds). Drawn is what all nodes together \
         sent with seed {seed}, by kind of message; the transport's own bytes come on top."
    )
}

pub(super) fn heat(seed: u64, pictures: &Pictures) -> String {
    let known: usize = pictures.words.iter().map(|word| word.known_ms.iter().flatten().count()).sum();
    let all = pictures.words.len() * pictures.nodes.len();
    format!(
        "Each column is a thing said, each row a node, with seed {seed}. A dark row is a node that hears late, a \
         dark column a word that travelled badly, a hatched block a partition or a node that was not there. {} of \
         the cells are filled.",
        words::share(known as f64 / all.max(1) as f64),
    )
}
