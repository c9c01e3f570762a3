//! This node's own map, held against everybody who can write into it.
//!
//! Any member's message can set keys of any map, empty it, and raise its version. What the owner said
//! stands, so it says it again; when, and how often, is the loop's business ([`crate::run`]).

use std::collections::BTreeMap;

use chitchat::NodeState;

/// chitchat counts a map's changes in 64 bits and panics beyond them. Any member's message can
/// bring our map there in one leap; honest counting never comes near.
const MAP_VERSION_MAX: u64 = 1 << 62;

/// This node's map can take no more changes in this life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapExhausted;

/// What this node knows of its own map's versions, which any member's message can raise.
#[derive(Default)]
pub(super) struct OwnMap {
    /// The newest of its own making.
    newest: u64,
    /// There were others.
    is_altered: bool,
}

impl OwnMap {
    /// See [`super::Replica::hold`].
    pub(super) fn hold(
        &mut self,
        own: &mut NodeState,
        spoken: &BTreeMap<String, String>,
    ) -> Result<usize, MapExhausted> {
        if own.max_version().max(own.heartbeat().into()) >= MAP_VERSION_MAX {
            return Err(MapExhausted);
        }
        let before = own.max_version();
        self.is_altered |= before != self.newest;
        let foreign = own.key_values().map(|(key, _)| key).filter(|key| !spoken.contains_key(*key));
        for key in foreign.map(str::to_owned).collect::<Vec<_>>() {
            own.delete(&key);
        }
        for (key, value) in spoken {
            // A value that is there already is not set again.
            own.set(key, value);
        }
        self.newest = own.max_version();
        Ok((self.newest - before) as usize)
    }

    /// See [`super::Replica::hold_anew`]. Who heard of a version that this node never made believes to
    /// have everything up to there, and asks for none of it: so all is said again, above it.
    pub(super) fn hold_anew(
        &mut self,
        own: &mut NodeState,
        spoken: &BTreeMap<String, String>,
    ) -> Result<usize, MapExhausted> {
        let changed = self.hold(own, spoken)?;
        if !std::mem::take(&mut self.is_altered) {
            return Ok(changed);
        }
        for (key, value) in spoken {
            // What is there already would not be set again.
            own.delete(key);
            own.set(key, value);
        }
        self.newest = own.max_version();
        Ok(changed.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken() -> BTreeMap<String, String> {
        [("n", "node"), ("l", "link")].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    fn held(own: &NodeState) -> BTreeMap<String, String> {
        own.key_values().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// The least version of any value.
    fn oldest(own: &NodeState) -> u64 {
        own.key_values_including_deleted().map(|(_, value)| value.version).min().expect("values")
    }

    #[test]
    fn what_nobody_altered_is_not_said_twice() {
        let (mut map, mut own) = (OwnMap::default(), NodeState::for_test());
        assert_eq!(map.hold_anew(&mut own, &spoken()).expect("room"), 2);
        assert_eq!(map.hold_anew(&mut own, &spoken()).expect("room"), 0);
        assert_eq!((held(&own), own.max_version()), (spoken(), 2));
    }

    #[test]
    fn behind_a_version_of_others_everything_is_said_anew() {
        let (mut map, mut own) = (OwnMap::default(), NodeState::for_test());
        map.hold_anew(&mut own, &spoken()).expect("room");
        own.set_max_version(1000);
        assert_eq!(map.hold(&mut own, &spoken()).expect("room"), 0, "nothing differs");
        assert!(oldest(&own) < 1000);
        assert!(map.hold_anew(&mut own, &spoken()).expect("room") > 0);
        assert!(oldest(&own) > 1000 && held(&own) == spoken());
        let newest = own.max_version();
        map.hold_anew(&mut own, &spoken()).expect("room");
        assert_eq!(own.max_version(), newest, "once is enough");
    }

    #[test]
    fn what_others_put_in_or_took_out_is_repaired_at_once() {
        let (mut map, mut own) = (OwnMap::default(), NodeState::for_test());
        map.hold(&mut own, &spoken()).expect("room");
        own.set("i/junk", "AAAA");
        own.set("n", "AAAA");
        own.delete("l");
        assert_eq!(map.hold(&mut own, &spoken()).expect("room"), 3);
        assert_eq!(held(&own), spoken());
        own.set_max_version(MAP_VERSION_MAX);
        assert!(map.hold(&mut own, &spoken()).is_err(), "a new life is due");
    }
}
