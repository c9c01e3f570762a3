//! `STARLING_<SECTION>__<KEY>`: environment variables that override the file.
//!
//! For scalar keys (and lists, separated by commas) of sections that occur once. Every value is
//! text; the readers in [`super::value`] accept text for numbers when it came from here.

use super::mistake::{Mistake, Place, Sources};
use super::tree::join;

const PREFIX: &str = "STARLING_";

/// Separates section and key. A single underscore would not do: keys contain them, and Kubernetes
/// injects variables such as `STARLING_SERVICE_HOST` beside any service named `starling`.
const SEPARATOR: &str = "__";

/// Puts the variables' values into `table`, before anything is checked.
pub(super) fn apply(
    table: &mut toml::Table,
    sources: &mut Sources,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (name, value) in variables {
        let path = name.strip_prefix(PREFIX).filter(|path| path.contains(SEPARATOR));
        let Some(path) = path.map(str::to_ascii_lowercase) else { continue };
        let keys: Vec<&str> = path.split(SEPARATOR).collect();
        if set(table, sources, &keys, &name, value).is_none() {
            let mistake = sources.mistake(
                &keys.join("."),
                "only keys of sections that occur once can be set from the environment",
                format!("unset {name}, and set the key in the file"),
            );
            mistakes.push(Mistake { place: Place::Environment(name), ..mistake });
        }
    }
    mistakes
}

/// `None` when the path leads through something that is not a table, or has an empty part.
fn set(
    table: &mut toml::Table,
    sources: &mut Sources,
    keys: &[&str],
    variable: &str,
    value: String,
) -> Option<()> {
    let (last, sections) = keys.split_last()?;
    if keys.iter().any(|key| key.is_empty()) {
        return None;
    }
    let mut table = table;
    let mut path = String::new();
    let here = || Place::Environment(variable.to_owned());
    for section in sections {
        path = join(&path, section);
        sources.places.entry(path.clone()).or_insert_with(here);
        let inner = table.entry(*section).or_insert_with(|| toml::Table::new().into());
        table = inner.as_table_mut()?;
    }
    if table.get(*last).is_some_and(|old| old.is_table()) {
        return None;
    }
    let path = join(&path, last);
    // A list of the file is replaced as a whole.
    let item = format!("{path}[");
    sources.places.retain(|place, _| !place.starts_with(&item));
    sources.places.insert(path, here());
    table.insert((*last).to_owned(), value.into());
    Some(())
}
