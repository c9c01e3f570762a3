//! PURE: which hosts' messages reach which, while the network is in parts.

use std::collections::BTreeMap;

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
    active: BTreeMap<u64, Partition>,
    next: u64,
}

impl Partition {
    fn blocks(&self, from: usize, to: usize) -> bool {
        let part = |host: usize| self.part.get(host).copied().unwrap_or(0);
        if self.one_way { part(from) < part(to) } else { part(from) != part(to) }
    }
}

impl Partitions {
    /// Puts `partition` into force; the number ends it.
    pub fn begin(&mut self, partition: Partition) -> u64 {
        self.next += 1;
        self.active.insert(self.next, partition);
        self.next
    }

    /// Heals it.
    pub fn end(&mut self, number: u64) {
        self.active.remove(&number);
    }

    /// Whether messages from `from` to `to` are lost.
    pub fn block(&self, from: usize, to: usize) -> bool {
        self.active.values().any(|partition| partition.blocks(from, to))
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
                    let both = !self.block(from, to) && !self.block(to, from);
                    if is_up[to] && components[to] == APART && both {
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
        let mut partitions = Partitions::default();
        let up = [true, true, true, true, false];
        assert_eq!(partitions.components(&up), [0, 0, 0, 0, APART]);
        let two = partitions.begin(Partition { part: vec![0, 0, 1, 1, 1], one_way: false });
        assert!(partitions.block(0, 2) && partitions.block(2, 0) && !partitions.block(0, 1));
        assert_eq!(partitions.components(&up), [0, 0, 1, 1, APART]);
        let other = partitions.begin(Partition { part: vec![0, 1, 1, 1, 1], one_way: true });
        assert!(partitions.block(0, 1) && !partitions.block(1, 0));
        assert_eq!(partitions.components(&up), [0, 1, 2, 2, APART]);
        partitions.end(two);
        partitions.end(other);
        assert_eq!(partitions.components(&up), [0, 0, 0, 0, APART]);
    }
}
