//! PURE: which of several endpoints stands out from the others.

use std::time::Duration;

use super::{Reason, Window};

/// Of two nobody can say which one is the exception.
const COMPARED_MIN: usize = 3;

/// A success rate that differs by less is no reason: balancing by latency takes care of that.
const RATE_MARGIN: f64 = 0.1;

/// How far the others' rates may spread, in standard deviations; about Envoy's 1.9.
const RATE_DEVIATIONS: f64 = 2.0;

/// Nor is one that chance alone explains, once in a thousand endpoints and intervals.
const CHANCE_DEVIATIONS: f64 = 3.0;

/// Endpoints of one service differ, by machine and by distance, though not by this.
const LATENCY_FACTOR: f64 = 5.0;

/// Nor does anybody care about less.
const LATENCY_MARGIN_SECONDS: f64 = 0.05;

/// Those that fail far more often than the others do in the mean, the worst first. Who has been found is
/// none of the others any more: it would make the next one look usual.
pub(super) fn failing(windows: &[Window]) -> Vec<(usize, Reason)> {
    let rate = |window: &Window| 1.0 - f64::from(window.errors) / f64::from(window.answers.max(1));
    let mut rates: Vec<(f64, usize)> =
        windows.iter().enumerate().map(|(index, window)| (rate(window), index)).collect();
    rates.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut sum: f64 = rates.iter().map(|(rate, _)| rate).sum();
    let mut squares: f64 = rates.iter().map(|(rate, _)| rate.powi(2)).sum();
    let mut found = Vec::new();
    for (nth, (own, index)) in rates.iter().enumerate() {
        let others = (windows.len() - nth) as f64 - 1.0;
        sum -= own;
        squares -= own * own;
        let mean = (sum / others).min(1.0);
        let deviation = (squares / others - mean * mean).max(0.0).sqrt();
        let chance = (mean * (1.0 - mean) / f64::from(windows[*index].answers.max(1))).max(0.0).sqrt();
        let margin = RATE_MARGIN.max(RATE_DEVIATIONS * deviation).max(CHANCE_DEVIATIONS * chance);
        if windows.len() - nth < COMPARED_MIN || *own >= mean - margin {
            break;
        }
        let percent = |rate: f64| (rate * 100.0).round() as u8;
        found.push((*index, Reason::SuccessRate { percent: percent(*own), others: percent(mean) }));
    }
    found
}

/// Those that take far longer than most, the slowest first.
pub(super) fn slow(windows: &[Window]) -> Vec<(usize, Reason)> {
    let means: Vec<(usize, f64)> = windows
        .iter()
        .enumerate()
        .filter_map(|(index, window)| Some((index, window.mean_seconds?)))
        .collect();
    if means.len() < COMPARED_MIN {
        return Vec::new();
    }
    let mut sorted: Vec<f64> = means.iter().map(|(_, mean)| *mean).collect();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[(sorted.len() - 1) / 2];
    let most = (median * LATENCY_FACTOR).max(median + LATENCY_MARGIN_SECONDS);
    let mut found: Vec<(usize, f64)> = means.into_iter().filter(|(_, mean)| *mean > most).collect();
    found.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let reason = |mean: f64| Reason::Latency {
        mean: Duration::from_secs_f64(mean),
        median: Duration::from_secs_f64(median),
    };
    found.into_iter().map(|(index, mean)| (index, reason(mean))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(answers: u32, errors: u32) -> Window {
        Window { answers, errors, mean_seconds: Some(0.01) }
    }

    fn indices(found: Vec<(usize, Reason)>) -> Vec<usize> {
        found.into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn whoever_fails_far_more_often_than_the_others_stands_out() {
        let good = rate(1_000, 2);
        assert_eq!(indices(failing(&[good, rate(1_000, 300), good, good])), [1]);
        assert_eq!(indices(failing(&[good, rate(100, 40), good, rate(100, 90), good, good, good])), [3, 1]);
        assert_eq!(indices(failing(&[good, rate(1_000, 50), good])), Vec::<usize>::new(), "too little");
        assert_eq!(indices(failing(&[good, rate(1_000, 999)])), Vec::<usize>::new(), "who of the two?");
    }

    #[test]
    fn where_all_fail_alike_nobody_stands_out() {
        assert_eq!(failing(&[rate(1_000, 1_000); 5]), []);
        let alike = [rate(50, 24), rate(50, 31), rate(50, 20), rate(50, 28), rate(50, 22)];
        assert_eq!(failing(&alike), []);
    }

    #[test]
    fn whoever_takes_far_longer_than_most_stands_out() {
        let takes = |millis: f64| Window { answers: 100, errors: 0, mean_seconds: Some(millis / 1e3) };
        assert_eq!(indices(slow(&[takes(10.0), takes(12.0), takes(300.0), takes(11.0)])), [2]);
        assert_eq!(indices(slow(&[takes(1.0), takes(1.0), takes(9.0), takes(1.0)])), Vec::<usize>::new());
        assert_eq!(indices(slow(&[takes(100.0), takes(100.0), takes(300.0)])), Vec::<usize>::new());
        assert_eq!(indices(slow(&[takes(1.0), takes(500.0)])), Vec::<usize>::new());
        let silent = Window { mean_seconds: None, ..takes(0.0) };
        assert_eq!(indices(slow(&[silent, takes(1.0), takes(500.0)])), Vec::<usize>::new());
    }
}
