//! PURE: which hosts' messages reach which, while the network is in parts.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// A host's component while it is down or stands still: it is together with nobody.
pub const APART: u16 = u16::MAX;

/// One split of the hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// By host, its part.
    pub part: Vec<u16>,
    /// Only messages from an earlier part to a later one are lost.
    pub one_way: bool,
}

/// All splits in force, by the number they were given.
#[derive(Clone, Debug, Default)]
pub struct Partitions {
    /// Since when.
    active: BTreeMap<u64, (Instant, Partition)>,
    next: u64,
}

impl Partition {
    /// Whether packets of one of the two do not reach the other.
    pub fn divides(&self, one: usize, other: usize) -> bool {
        self.blocks(one, other) || self.blocks(other, one)
    }

    fn blocks(&self, from: usize, to: usize) -> bool {
        let part = |host: usize| self.part.get(host).copied().unwrap_or(0);
        if self.one_way { part(from) < part(to) } else { part(from) != part(to) }
    }
}

impl Partitions {
    /// Puts `partition` into force; the number ends it.
    pub fn begin(&mut self, partition: Partition, now: Instant) -> u64 {
        self.next += 1;
        self.active.insert(self.next, (now, partition));
        self.next
    }

    /// Heals it. Says since when it was, and what.
    pub fn end(&mut self, number: u64) -> Option<(Instant, Partition)> {
        self.active.remove(&number)
    }

    /// Whether messages from `from` to `to` are lost.
    pub fn block(&self, from: usize, to: usize) -> bool {
        self.active.values().any(|(_, partition)| partition.blocks(from, to))
    }

    /// Since when packets of one of the two do not reach the other, if that is so.
    pub fn divided_since(&self, one: usize, other: usize) -> Option<Instant> {
        let divides = self.active.values().filter(|(_, partition)| partition.divides(one, other));
        divides.map(|(since, _)| *since).min()
    }

    /// By host, a number that hosts share which reach each other, over others if need be. `is_up`
    /// says which take part.
    pub fn components(&self, is_up: &[bool]) -> Vec<u16> {
        let mut components = vec![APART; is_up.len()];
        if self.active.is_empty() {
            is_up
                .iter()
                .zip(&mut components)
                .filter(|(up, _)| **up)
                .for_each(|(_, component)| *component = 0);
            return components;
        }
        let mut next = 0;
        for start in 0..is_up.len() {
            if !is_up[start] || components[start] != APART {
                continue;
            }
            let mut reached = vec![start];
            components[start] = next;
            while let Some(from) = reached.pop() {
                for to in 0..is_up.len() {
                    let is_open = is_up[to] && components[to] == APART;
                    if is_open && self.divided_since(from, to).is_none() {
                        components[to] = next;
                        reached.push(to);
                    }
                }
            }
            next += 1;
        }
        components
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_apart_until_they_heal() {
        let (mut partitions, now) = (Partitions::default(), Instant::now());
        let up = [true, true, true, true, false];
        assert_eq!(partitions.components(&up), [0, 0, 0, 0, APART]);
        let two = partitions.begin(Partition { part: vec![0, 0, 1, 1, 1], one_way: false }, now);
        assert!(partitions.block(0, 2) && partitions.block(2, 0) && !partitions.block(0, 1));
        assert_eq!(partitions.components(&up), [0, 0, 1, 1, APART]);
        let other = partitions.begin(Partition { part: vec![0, 1, 1, 1, 1], one_way: true }, now);
        assert!(partitions.block(0, 1) && !partitions.block(1, 0));
        assert_eq!(partitions.components(&up), [0, 1, 2, 2, APART]);
        assert_eq!(partitions.divided_since(1, 0), Some(now), "packets pass one way only");
        assert!(partitions.end(two).is_some() && partitions.end(other).is_some());
        assert_eq!(partitions.components(&up), [0, 0, 0, 0, APART]);
    }
}
