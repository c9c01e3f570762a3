use starling_gossip::clock::Clock;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn outliers(members: usize) -> (Outliers<usize>, Instant) {
    let mut outliers = Outliers::new(Settings::default());
    outliers.set_members(members, |_| true);
    (outliers, Clock::System.now())
}

fn window(answers: u32, errors: u32) -> Window {
    Window { answers, errors, mean_seconds: Some(0.001) }
}

#[test]
fn errors_in_a_row_put_one_out_and_a_good_trial_brings_it_back() {
    let (mut service, now) = outliers(3);
    assert_eq!(service.handle_errors(&1, 4, 0, now), None);
    assert_eq!(service.handle_errors(&1, 5, 0, now), Some(Reason::ConsecutiveErrors(5)));
    assert_eq!((service.verdict(&1, now), service.verdict(&2, now)), (Verdict::Out, Verdict::In));
    assert!(service.handle_trial(&1, true, now, now).is_none(), "what was under way says nothing new");
    let end = now + SECOND * 30;
    assert_eq!(service.ejection(&1), Some((Reason::ConsecutiveErrors(5), end)));
    assert_eq!(service.verdict(&1, end), Verdict::Trial);
    assert!(!service.begin_trial(&1, end - SECOND), "too early");
    assert_eq!(service.ejection(&1), Some((Reason::ConsecutiveErrors(5), end)), "nor is it shorter for that");
    assert!(service.begin_trial(&1, end));
    assert!(!service.begin_trial(&1, end), "the trial is taken");
    assert_eq!(service.verdict(&1, end), Verdict::Out);
    assert_eq!(service.verdict(&1, end + TRIAL_MAX), Verdict::Trial, "nobody reported on it");
    let early = end - SECOND;
    assert!(service.handle_trial(&1, true, early, end).is_none(), "nor does it while another is on trial");
    assert!(service.handle_trial(&1, false, early, end).is_none());
    assert_eq!(service.verdict(&1, end + TRIAL_MAX), Verdict::Trial, "it is on trial still");
    assert!(service.begin_trial(&1, end + TRIAL_MAX), "nobody waits for a slow one");
    assert!(service.handle_trial(&1, true, end, end).is_some());
    assert_eq!((service.verdict(&1, end), service.ejection(&1)), (Verdict::In, None));
}

#[test]
fn ejections_grow_to_a_bound_and_good_behaviour_is_remembered() {
    let (mut service, mut now) = outliers(3);
    assert!(service.handle_errors(&1, 5, 0, now).is_some());
    for times in 1..=20 {
        let (_, until) = service.ejection(&1).expect("out");
        assert_eq!(until - now, (SECOND * 30 * times).min(SECOND * 300));
        now = until;
        service.begin_trial(&1, now);
        assert!(service.handle_trial(&1, false, now, now).is_none());
    }
    now = service.ejection(&1).expect("out").1;
    service.begin_trial(&1, now);
    assert!(service.handle_trial(&1, true, now, now).is_some());
    assert!(service.handle_errors(&1, 5, 0, now).is_some());
    let (_, until) = service.ejection(&1).expect("out");
    assert_eq!(until - now, SECOND * 300, "its past counts");
    now = until;
    service.begin_trial(&1, now);
    service.handle_trial(&1, true, now, now);
    for _ in 0..30 {
        service.handle_interval(&[], 0, now);
    }
    assert!(service.handle_errors(&1, 5, 0, now).is_some());
    assert_eq!(service.ejection(&1).expect("out").1 - now, SECOND * 30, "and is forgotten");
}

#[test]
fn a_share_may_be_out_and_never_the_last_that_works() {
    for (members, most) in [(1, 0), (2, 1), (3, 1), (6, 1), (10, 3), (100, 33)] {
        let (mut service, now) = outliers(members);
        let out = (0..members).filter(|who| service.handle_errors(who, 5, 0, now).is_some()).count();
        assert_eq!(out, most, "of {members}");
    }
    let (mut service, now) = outliers(10);
    assert_eq!(service.handle_errors(&1, 5, 9, now), None, "the others are broken");
    assert!(service.handle_errors(&1, 5, 8, now).is_some());
    let mut off = Outliers::new(Settings { ejected_max: 0, ..Settings::default() });
    off.set_members(10, |_: &usize| true);
    assert_eq!(off.handle_errors(&1, 5, 0, now), None);
}

#[test]
fn when_others_leave_those_that_are_out_come_back() {
    let (mut service, now) = outliers(10);
    for (nth, who) in [4, 5, 6].into_iter().enumerate() {
        assert!(service.handle_errors(&who, 5, 0, now + SECOND * nth as u32).is_some());
    }
    assert_eq!(service.set_members(6, |who| *who < 6), [4], "two may be out of nobody's six, one is gone");
    assert_eq!(service.out(), 1);
    assert!(service.forgive(&5) && !service.forgive(&4));
    assert_eq!(service.out(), 0);
}

#[test]
fn an_interval_puts_out_those_that_stand_out_within_the_share() {
    let (mut service, now) = outliers(4);
    let bad = window(100, 60);
    let worse = window(100, 90);
    let good = window(100, 0);
    let scarce = window(10, 10);
    let seen = [(1, bad), (2, good), (3, scarce), (4, good)];
    let out = service.handle_interval(&seen, 0, now);
    assert_eq!(out, [(1, Reason::SuccessRate { percent: 40, others: 100 })]);
    assert_eq!(service.handle_interval(&seen, 0, now), [], "it is out already");
    let (mut service, now) = outliers(7);
    let seen: Vec<_> = [bad, good, worse, good, good, good, good].into_iter().enumerate().collect();
    let out = service.handle_interval(&seen, 0, now);
    assert_eq!(out.into_iter().map(|(who, _)| who).collect::<Vec<_>>(), [2, 0]);
    let never = Settings { success_rate: false, latency: false, ..Settings::default() };
    let (mut service, now) = outliers(7);
    service.set_settings(never);
    assert_eq!(service.handle_interval(&seen, 0, now), []);
}

#[test]
fn a_slow_one_is_out_for_its_latency() {
    let (mut service, now) = outliers(4);
    let takes = |seconds| Window { answers: 100, errors: 0, mean_seconds: Some(seconds) };
    let seen = [(0, takes(0.01)), (1, takes(0.01)), (2, takes(0.5)), (3, takes(0.02))];
    let out = service.handle_interval(&seen, 0, now);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].1.to_string(), "its answers took 500 ms in the mean, and 10 ms with most");
}

#[test]
fn a_record_counts_an_interval() {
    let record = Record::default();
    record.handle_answer(Duration::from_millis(10));
    record.handle_answer(Duration::from_millis(30));
    assert_eq!((record.handle_error(10, 20), record.handle_error(20, 30)), (1, 2));
    let Window { answers, errors, mean_seconds } = record.take_window();
    assert_eq!((answers, errors), (4, 2));
    assert!(mean_seconds.is_some_and(|mean| (mean - 0.02).abs() < 1e-6));
    record.handle_answer(Duration::ZERO);
    assert_eq!(record.handle_error(40, 50), 1, "no longer in a row");
    let together: Vec<u32> = (0..10).map(|nth| record.handle_error(50, 60 + nth)).collect();
    assert_eq!(together, [2; 10]);
}
