//! STATE MACHINE: probe outcomes in, health out, with hysteresis.
//!
//! It decides when an instance counts as healthy; asking the workload is the node's business. A
//! health flips only after several equal answers in a row, so that one lost probe moves nobody.

use crate::record::Health;

/// How many answers in a row it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Good answers before an unhealthy instance is healthy again. The first good answer of all
    /// suffices: an instance that starts well should not wait.
    pub healthy_after: u32,
    /// Bad answers before a healthy instance is unhealthy.
    pub unhealthy_after: u32,
}

/// What one probe said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The workload answered as it should, in time.
    Pass,
    /// It did not.
    Fail,
}

/// The health of one local instance.
#[derive(Clone, Debug)]
pub struct HealthState {
    thresholds: Thresholds,
    health: Health,
    /// Answers in a row that speak against the present health.
    against: u32,
    draining: bool,
}

impl HealthState {
    /// Unknown until the first answer.
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, health: Health::Unknown, against: 0, draining: false }
    }

    /// It takes other numbers of answers from now on; the health stands.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// What to announce now. Draining hides what probes say.
    pub fn health(&self) -> Health {
        if self.draining { Health::Draining } else { self.health }
    }

    /// Takes in one answer; returns the new health if it flipped.
    pub fn handle_probe(&mut self, outcome: ProbeOutcome) -> Option<Health> {
        let before = self.health();
        let (target, needed) = match outcome {
            ProbeOutcome::Pass => (Health::Healthy, self.thresholds.healthy_after),
            ProbeOutcome::Fail => (Health::Unhealthy, self.thresholds.unhealthy_after),
        };
        if self.health == target {
            self.against = 0;
        } else {
            self.against = self.against.saturating_add(1);
            let first_pass = self.health == Health::Unknown && target == Health::Healthy;
            if first_pass || self.against >= needed {
                self.health = target;
                self.against = 0;
            }
        }
        self.flipped(before)
    }

    /// Takes no new work from now on; final.
    pub fn drain(&mut self) -> Option<Health> {
        let before = self.health();
        self.draining = true;
        self.flipped(before)
    }

    fn flipped(&self, before: Health) -> Option<Health> {
        let after = self.health();
        (after != before).then_some(after)
    }
}

#[cfg(test)]
mod tests {
    use super::ProbeOutcome::{Fail, Pass};
    use super::*;

    fn flips(outcomes: &[ProbeOutcome]) -> Vec<Option<Health>> {
        let mut state = HealthState::new(Thresholds { healthy_after: 2, unhealthy_after: 3 });
        outcomes.iter().map(|outcome| state.handle_probe(*outcome)).collect()
    }

    #[test]
    fn the_first_good_answer_suffices_and_later_flips_need_several() {
        let flipped = flips(&[Pass, Fail, Fail, Pass, Fail, Fail, Fail, Pass, Fail, Pass, Pass]);
        let expected = [
            Some(Health::Healthy),
            None,
            None,
            None,
            None,
            None,
            Some(Health::Unhealthy),
            None,
            None,
            None,
            Some(Health::Healthy),
        ];
        assert_eq!(flipped, expected);
    }

    #[test]
    fn an_instance_that_never_answered_becomes_unhealthy_after_the_threshold() {
        assert_eq!(flips(&[Fail, Fail, Fail]), [None, None, Some(Health::Unhealthy)]);
    }

    #[test]
    fn draining_is_final() {
        let mut state = HealthState::new(Thresholds { healthy_after: 1, unhealthy_after: 1 });
        state.handle_probe(Pass);
        assert_eq!(state.drain(), Some(Health::Draining));
        assert_eq!(state.handle_probe(Fail), None);
        assert_eq!(state.health(), Health::Draining);
    }
}
