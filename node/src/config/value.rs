//! Readers of single values: text in, a type that cannot be wrong out.
//!
//! Patterns are for editors, which know them from the schema. They may let pass what the reader
//! refuses with a better word, and never the other way round.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use starling_gossip::identity::{NodeName, ServiceName};
use starling_gossip::record::Label;
use toml::Value;

use super::address::{Host, HostPort};
use super::mistake::{Wrong, wrong};
use super::reader::Reader;
use super::section::{Given, kind};

/// Something is there.
pub(super) const NOT_EMPTY: &str = r"\S";

/// A host, which the reader judges, and a port from 0 to 65535.
pub(super) const HOST_PORT: &str =
    r"^.+:0*([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";

const SERVICE_NAME: &str = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?$";

/// 63 bytes at most, as `starling_gossip::limits` has it.
const NODE_NAME: &str = r"^[-._a-zA-Z0-9]{1,63}$";

/// As for a node's name, with every visible character of ASCII.
const LABEL: &str = r"^[!-~]{1,63}$";

const PERCENT: &str = r"^\s*[-+]?[0-9]+\s*%\s*$";

const DURATION: &str = r"^[0-9]+\s*(ms|s|m|h|d)\s*$";

/// A text that is not empty.
pub(super) fn text(given: Given<'_>) -> Result<&str, Wrong> {
    match given.value {
        Value::String(text) if text.trim().is_empty() => {
            wrong("it is empty", "give a value, or remove the key to use its default")
        }
        Value::String(text) => Ok(text),
        other => wrong(
            format!("it should be a text, not {}", kind(other)),
            format!("write it in quotes: \"{other}\""),
        ),
    }
}

/// A service's name.
pub(super) fn service_name() -> Reader<ServiceName> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    Reader::text(SERVICE_NAME, move |given| name(text(given)?, &good))
}

/// A node's name.
pub(super) fn node_name() -> Reader<NodeName> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    Reader::text(NODE_NAME, move |given| name(text(given)?, &good))
}

/// A label.
pub(super) fn label() -> Reader<Label> {
    Reader::text(LABEL, |given| name(text(given)?, &|c| c.is_ascii_graphic()))
}

/// Parses a name; when it is none, suggests the nearest text that is.
fn name<T>(text: &str, good: &dyn Fn(char) -> bool) -> Result<T, Wrong>
where
    T: FromStr + Display,
    T::Err: Display,
{
    text.parse().or_else(|error: T::Err| {
        // The names' errors read `"x" is not a …: what one looks like`.
        let error = error.to_string();
        let (problem, rule) = error.rsplit_once(": ").unwrap_or((&error, "see the documentation"));
        let repaired: String = text.to_lowercase().chars().map(|c| if good(c) { c } else { '-' }).collect();
        match repaired.trim_matches('-').parse::<T>() {
            Ok(name) => wrong(problem, format!("write {:?} ({rule})", name.to_string())),
            Err(_) => wrong(problem, format!("write {rule}")),
        }
    })
}

/// `true` or `false`.
pub(super) fn boolean() -> Reader<bool> {
    Reader::new(
        json!({ "type": "boolean" }),
        |value: &bool| json!(value),
        |given| match given.value {
            Value::Boolean(value) => Ok(*value),
            Value::String(text) if given.textual && (text == "true" || text == "false") => Ok(text == "true"),
            other => wrong(format!("it should be true or false, not {}", kind(other)), "write true or false"),
        },
    )
}

/// A whole number within `range`.
pub(super) fn number<T>(range: RangeInclusive<T>) -> Reader<T>
where
    T: TryFrom<i64> + PartialOrd + Display + Serialize + 'static,
{
    let schema = json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() });
    Reader::new(
        schema,
        |number: &T| json!(number),
        move |given| {
            let suggestion = format!("write a whole number from {} to {}", range.start(), range.end());
            let number = match given.value {
                Value::Integer(number) => Some(*number),
                Value::String(text) if given.textual => text.parse().ok(),
                _ => None,
            };
            let Some(number) = number else {
                return wrong(format!("it should be a number, not {}", kind(given.value)), suggestion);
            };
            match T::try_from(number) {
                Ok(fitting) if range.contains(&fitting) => Ok(fitting),
                _ => wrong(format!("{number} is out of range"), suggestion),
            }
        },
    )
}

/// A share such as `"50%"`, in percent.
pub(super) fn percent() -> Reader<u8> {
    let schema = json!({
        "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 100 },
            { "type": "string", "pattern": PERCENT },
        ],
        "description": "A share from 0% to 100%.",
    });
    Reader::new(
        schema,
        |percent: &u8| format!("{percent}%").into(),
        move |given| {
            let suggestion = "write a share from \"0%\" to \"100%\"";
            let percent = match given.value {
                Value::Integer(number) => Some(*number),
                _ => {
                    let text = text(given)?.trim();
                    let number = text.strip_suffix('%').or(given.textual.then_some(text));
                    number.and_then(|number| number.trim_end().parse().ok())
                }
            };
            let Some(percent) = percent else {
                return wrong(format!("{} is not a share", given.value), suggestion);
            };
            match u8::try_from(percent) {
                Ok(fitting) if fitting <= 100 => Ok(fitting),
                _ => wrong(format!("{percent} is out of range"), suggestion),
            }
        },
    )
}

/// A duration such as `"500ms"`, within `range`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> Reader<Duration> {
    let (least, most) = (show_duration(*range.start()), show_duration(*range.end()));
    let bounds = format!("A duration from {least} to {most}.");
    let schema = json!({ "type": "string", "pattern": DURATION, "description": bounds });
    Reader::new(
        schema,
        |duration: &Duration| show_duration(*duration).into(),
        move |given| {
            let parsed = match given.value {
                Value::Integer(number) => {
                    return wrong(
                        format!("{number} has no unit"),
                        format!("write \"{number}s\" or \"{number}ms\""),
                    );
                }
                _ => parse_duration(text(given)?)?,
            };
            if range.contains(&parsed) {
                return Ok(parsed);
            }
            wrong(format!("{} is out of range", show_duration(parsed)), format!("write {least} to {most}"))
        },
    )
}

/// A whole number with its unit: `ms`, `s`, `m`, `h` or `d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, Wrong> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis_each: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis_each));
    match millis {
        Some(millis) if millis_each > 0 => Ok(Duration::from_millis(millis)),
        _ => wrong(
            format!("{text:?} is not a duration"),
            "write a whole number and its unit, such as \"500ms\", \"1s\", \"2m\", \"24h\" or \"30d\"",
        ),
    }
}

/// An amount such as `"64MiB"` or `"8KB"`, in bytes, within `range`: KiB and its kin count by 1024, KB by
/// 1000. Units as Kubernetes writes them (`Mi`) are understood.
pub(super) fn size(range: RangeInclusive<u64>) -> Reader<u64> {
    let (least, most) = (show_size(*range.start()), show_size(*range.end()));
    let schema = json!({
        "anyOf": [
            { "type": "integer", "minimum": range.start(), "maximum": range.end() },
            { "type": "string", "pattern": SIZE },
        ],
        "description": format!("An amount of bytes from {least} to {most}."),
    });
    Reader::new(
        schema,
        |bytes: &u64| show_size(*bytes).into(),
        move |given| {
            let parsed = match given.value {
                Value::Integer(number) => u64::try_from(*number).ok(),
                _ => parse_size(text(given)?.trim()),
            };
            let Some(bytes) = parsed else {
                let example = "write a whole number and its unit, such as \"64MiB\" or \"8KB\"";
                return wrong(format!("{} is not an amount of bytes", given.value), example);
            };
            if !range.contains(&bytes) {
                return wrong(
                    format!("{} is out of range", show_size(bytes)),
                    format!("write {least} to {most}"),
                );
            }
            Ok(bytes)
        },
    )
}

const SIZE: &str = r"^\s*[0-9]+\s*(B|[KMGT]iB?|[KMG]B)?\s*$";

/// The largest first; of two near each other, the one that memory is counted in.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
];

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let each = match unit {
        "" | "B" => 1,
        _ => {
            let is_it =
                |name: &str| name == unit || (unit.ends_with('i') && name.strip_suffix('B') == Some(unit));
            SIZE_UNITS.iter().find(|(name, _)| is_it(name))?.1
        }
    };
    number.parse::<u64>().ok()?.checked_mul(each)
}

/// The shortest form that reads back the same.
pub(crate) fn show_size(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, each)| bytes >= *each && bytes.is_multiple_of(*each));
    unit.map_or_else(|| bytes.to_string(), |(name, each)| format!("{}{name}", bytes / each))
}

/// The shortest form that reads back the same.
pub(crate) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    for (unit, each) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis >= each && millis.is_multiple_of(each) {
            return format!("{}{unit}", millis / each);
        }
    }
    format!("{millis}ms")
}

/// An address to listen on: an IP address and a port. Port 0 lets the kernel choose.
pub(super) fn listen_address() -> Reader<SocketAddr> {
    Reader::text(HOST_PORT, socket_address)
}

/// An IP address and a port.
pub(super) fn socket_address(given: Given<'_>) -> Result<SocketAddr, Wrong> {
    let address: HostPort = text(given)?.parse()?;
    match address.host {
        Host::Ip(ip) => Ok(SocketAddr::new(ip, address.port)),
        Host::Name(name) => wrong(
            format!("{name:?} is a name; this needs an IP address of this machine"),
            format!("write for instance \"127.0.0.1:{}\"", address.port),
        ),
    }
}

/// An address that others connect to.
pub(super) fn peer_address() -> Reader<HostPort> {
    Reader::text(HOST_PORT, |given| {
        let address: HostPort = text(given)?.parse()?;
        address.check_dialable()?;
        Ok(address)
    })
}

/// A path, relative to `base`.
pub(super) fn path(base: &Path) -> Reader<PathBuf> {
    let base = base.to_owned();
    path_that(move |given| Ok(base.join(text(given)?)))
}

/// A path that `judge` decides about.
pub(super) fn path_that(judge: impl Fn(Given<'_>) -> Result<PathBuf, Wrong> + 'static) -> Reader<PathBuf> {
    let schema = json!({ "type": "string", "pattern": NOT_EMPTY });
    // Every path comes out of a UTF-8 file, or of a working directory.
    Reader::new(schema, |path: &PathBuf| path.to_string_lossy().into(), judge)
}

/// One of a few words.
pub(super) fn one_of<T, const N: usize>(words: [(&'static str, T); N]) -> Reader<T>
where
    T: Copy + PartialEq + 'static,
{
    let known = words.map(|(word, _)| word);
    let schema = json!({ "enum": known.as_slice() });
    let judge = move |given: Given<'_>| {
        let given = text(given)?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == given) {
            return Ok(*meaning);
        }
        let known = known.map(|word| format!("{word:?}"));
        wrong(format!("{given:?} is not known here"), format!("write {}", known.join(" or ")))
    };
    let show = move |value: &T| {
        let word = words.iter().find(|(_, meaning)| meaning == value);
        json!(word.map(|(word, _)| word))
    };
    Reader::new(schema, show, judge)
}
