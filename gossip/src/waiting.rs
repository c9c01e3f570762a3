//! Instance records that came before their owner's node record.
//!
//! They are unverified and invisible, so they are few: [`WAITING_RECORDS_MAX`] in all, the oldest
//! pushed out first. What is pushed out is offered again by the repair path.

use std::collections::VecDeque;

use crate::limits::WAITING_RECORDS_MAX;
use crate::record::Owner;

/// A bounded shelf, first in, first out.
#[derive(Default)]
pub(crate) struct Waiting {
    records: VecDeque<(Owner, Vec<u8>)>,
}

impl Waiting {
    /// Keeps `record` until [`Self::take`] asks for `owner`'s.
    pub(crate) fn put(&mut self, owner: Owner, record: Vec<u8>) {
        if self.records.iter().any(|(_, held)| *held == record) {
            return;
        }
        if self.records.len() == WAITING_RECORDS_MAX {
            self.records.pop_front();
        }
        self.records.push_back((owner, record));
    }

    /// All that waited for `owner`.
    pub(crate) fn take(&mut self, owner: &Owner) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        self.records.retain_mut(|(held, record)| {
            let wanted = held == owner;
            if wanted {
                taken.push(std::mem::take(record));
            }
            !wanted
        });
        taken
    }
}
