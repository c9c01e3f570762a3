//! What the readers know of each key, noted while they read: how it looks, its default, the value
//! that counts.
//!
//! Nothing here is written by hand a second time: reading is what fills it. A configuration keeps
//! its keys to be printed and compared; the schema comes from a walk over an empty file.

use serde_json::Value;

/// One key, as its reader met it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// From the root: `service[0].probe.interval`.
    pub path: String,
    /// What a value must look like, as a fragment of JSON Schema.
    pub(super) schema: Value,
    /// What stands in when it is not given; `None` if nothing does, or it follows from elsewhere.
    pub(super) default: Option<Value>,
    /// Whether its section cannot do without it.
    pub(super) required: bool,
    /// Whether the file or the environment gives it.
    pub given: bool,
    /// The value that counts.
    pub value: Option<Value>,
}

/// All keys, in the order of the readers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(pub(super) Vec<Key>);

impl FromIterator<Key> for Keys {
    fn from_iter<I: IntoIterator<Item = Key>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

impl Keys {
    /// In the order of the readers.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    /// The key at `path`.
    pub fn get(&self, path: &str) -> Option<&Key> {
        self.0.iter().find(|key| key.path == path)
    }

    /// The value that counts at `path`.
    pub fn value(&self, path: &str) -> Option<&Value> {
        self.get(path)?.value.as_ref()
    }

    pub(super) fn set(&mut self, path: &str, value: Value) {
        if let Some(key) = self.0.iter_mut().find(|key| key.path == path) {
            key.value = Some(value);
        }
    }
}
