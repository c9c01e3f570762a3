//! PURE: what a changed configuration means for a node that runs with another.
//!
//! Every key needs a restart but those of [`LIVE`]: a key that nobody thought of is reported, and
//! never half applied.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use starling_gossip::identity::SpiffeId;

use crate::config::{Config, Key, Keys, Limits, Log, Node};

/// Keys, and sections with all their keys, that a running node takes over.
const LIVE: [&str; 11] = [
    "service",
    "outbound",
    "upstream",
    "http_proxy",
    "mesh.seeds",
    "node.drain_timeout",
    "routing",
    "log.level",
    "limits.connections_max",
    "limits.requests_in_flight_max",
    "limits.attempts_max",
];

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// What the node runs with afterwards: the next configuration, but for what needs a restart.
    pub(crate) config: Config,
    /// What that changes, in words: `service web: new`.
    pub(crate) changes: Vec<String>,
    /// What stays as it was.
    pub(crate) needs_restart: Vec<NeedsRestart>,
}

/// A key that has changed in the file, and that a running node does not take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NeedsRestart {
    /// Which.
    pub(crate) key: String,
    /// Its value in this node; null if there is none.
    pub(crate) running: Value,
    /// Its value in the file; null if there is none.
    pub(crate) file: Value,
}

/// What it means that `next` is to follow `running`.
pub(crate) fn plan(running: &Config, next: &Config) -> Plan {
    Plan {
        config: merge(running, next),
        changes: changes(running, next),
        needs_restart: needs_restart(&running.keys, &next.keys),
    }
}

impl Plan {
    /// Whether a node that runs as `identity` can be what the plan makes of it; what was judged so far
    /// was the file as a whole. The error says what to do.
    pub(crate) fn judge(&self, identity: &SpiffeId) -> Result<(), String> {
        let Err(mistakes) = self.config.check_together(identity) else { return Ok(()) };
        let stays: Vec<String> = self.needs_restart.iter().map(ToString::to_string).collect();
        let stays = if stays.is_empty() { "its identity".to_owned() } else { stays.join(", ") };
        Err(format!(
            "the file needs a restart of the node first, for what a running one keeps ({stays}) does not go \
             with the rest: {mistakes}"
        ))
    }
}

fn is_live(path: &str) -> bool {
    LIVE.iter().any(|live| {
        path.strip_prefix(live).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

/// What lives is `next`'s, the rest `running`'s: types and keys alike.
fn merge(running: &Config, next: &Config) -> Config {
    Config {
        services: next.services.clone(),
        outbounds: next.outbounds.clone(),
        upstreams: next.upstreams.clone(),
        http_proxy: next.http_proxy.clone(),
        mesh: next.mesh.clone(),
        routing: next.routing,
        node: Node { drain_timeout: next.node.drain_timeout, ..running.node.clone() },
        log: Log { level: next.log.level.clone(), ..running.log.clone() },
        limits: Limits {
            connections_max: next.limits.connections_max,
            requests_in_flight_max: next.limits.requests_in_flight_max,
            attempts_max: next.limits.attempts_max,
            ..running.limits.clone()
        },
        sources: next.sources.clone(),
        keys: merge_keys(&running.keys, &next.keys),
        ..running.clone()
    }
}

fn merge_keys(running: &Keys, next: &Keys) -> Keys {
    let comes =
        |key: &Key| if is_live(&key.path) { Some(key.clone()) } else { running.get(&key.path).cloned() };
    let gone = |key: &&Key| !is_live(&key.path) && next.get(&key.path).is_none();
    next.iter().filter_map(comes).chain(running.iter().filter(gone).cloned()).collect()
}

fn needs_restart(running: &Keys, next: &Keys) -> Vec<NeedsRestart> {
    let mut seen = BTreeSet::new();
    let paths = running.iter().chain(next.iter()).map(|key| &key.path);
    paths
        .filter(|path| !is_live(path) && seen.insert(*path))
        .filter(|path| running.value(path) != next.value(path))
        .map(|path| {
            let value = |keys: &Keys| keys.value(path).cloned().unwrap_or_default();
            NeedsRestart { key: path.clone(), running: value(running), file: value(next) }
        })
        .collect()
}

fn changes(running: &Config, next: &Config) -> Vec<String> {
    let services = |config: &Config| {
        config.services.iter().map(|service| (service.id.to_string(), service.clone())).collect()
    };
    let outbounds = |config: &Config| {
        let named = config.outbounds.iter().map(|one| (one.listen.to_string(), one.clone()));
        named.collect()
    };
    let http_proxy = |config: &Config| {
        config.http_proxy.iter().map(|proxy| (proxy.listen.to_string(), proxy.clone())).collect()
    };
    let mut changes = differences("service", &services(running), &services(next));
    changes.extend(differences("outbound", &outbounds(running), &outbounds(next)));
    if running.upstreams != next.upstreams {
        changes.push("upstream: changed".to_owned());
    }
    changes.extend(differences("http_proxy", &http_proxy(running), &http_proxy(next)));
    let single = |key: &&Key| is_live(&key.path) && !key.path.contains('[') && !key.path.starts_with("http_");
    for key in next.keys.iter().filter(single) {
        if running.keys.value(&key.path) != key.value.as_ref() {
            changes.push(format!("{}: changed", key.path));
        }
    }
    changes
}

/// `service web: new`, and so on, for what is known by a name.
fn differences<T: PartialEq>(
    kind: &str,
    running: &BTreeMap<String, T>,
    next: &BTreeMap<String, T>,
) -> Vec<String> {
    let names: BTreeSet<&String> = running.keys().chain(next.keys()).collect();
    let told = names.into_iter().filter_map(|name| {
        let what = match (running.get(name), next.get(name)) {
            (None, _) => "new",
            (_, None) => "gone",
            (before, after) if before != after => "changed",
            _ => return None,
        };
        Some(format!("{kind} {name}: {what}"))
    });
    told.collect()
}

impl fmt::Display for NeedsRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} -> {})", self.key, plain(&self.running), plain(&self.file))
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    const SERVICE: &str = "[[service]]\nname = \"web\"\naddress = \"127.0.0.1:80\"\n";
    const FULL: &str = include_str!("../config/tests/full.toml");

    fn config(text: &str) -> Config {
        let text = format!("node.name = \"one\"\n{text}");
        parse(&text)
    }

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("/etc/starling.toml"), []).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_same_again_changes_nothing() {
        for text in ["", SERVICE, "[http_proxy]\n"] {
            let plan = plan(&config(text), &config(text));
            assert_eq!((plan.changes, plan.needs_restart), (vec![], vec![]));
            assert_eq!(plan.config, config(text));
        }
        // Saying a default, or the same in another place, is no change either.
        let plan = plan(&config(SERVICE), &config(&format!("log.level = \"info\"\n\n{SERVICE}weight = 100")));
        assert_eq!((plan.changes, plan.needs_restart), (vec![], vec![]));
    }

    #[test]
    fn what_can_change_is_told_by_its_name() {
        let before = format!("{SERVICE}[[outbound]]\nlisten = \"127.0.0.1:9001\"\nservice = \"a\"\n");
        let after = "mesh.seeds = [\"a:1\"]\nnode.drain_timeout = \"5s\"\nlog.level = \"debug\"\n\
                     [http_proxy]\n\
                     [[service]]\nname = \"db\"\naddress = \"127.0.0.1:81\"\n\
                     [[service]]\nname = \"web\"\naddress = \"127.0.0.1:82\"\n\
                     [limits]\nattempts_max = 1\n";
        let plan = plan(&config(&before), &config(after));
        assert_eq!(
            plan.changes,
            [
                "service db: new",
                "service web: changed",
                "outbound 127.0.0.1:9001: gone",
                "http_proxy 127.0.0.1:7401: new",
                "node.drain_timeout: changed",
                "mesh.seeds: changed",
                "log.level: changed",
                "limits.attempts_max: changed",
            ]
        );
        assert_eq!(plan.needs_restart, []);
        // All of it, so that the next comparison finds nothing left.
        assert_eq!(plan.config.services, config(after).services);
        assert_eq!(plan.config.node.drain_timeout, Duration::from_secs(5));
        assert_eq!((plan.config.limits.attempts_max, plan.config.log.level.as_str()), (1, "debug"));
        assert_eq!(super::plan(&plan.config, &config(after)).changes, Vec::<String>::new());
    }

    #[test]
    fn the_rest_stays_and_is_told_with_both_values() {
        let next = parse(&format!("[node]\nname = \"two\"\nlisten = \"0.0.0.0:7500\"\n{SERVICE}"));
        let plan = plan(&config(""), &next);
        let told: Vec<String> = plan.needs_restart.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["node.name (one -> two)", "node.listen (0.0.0.0:7400 -> 0.0.0.0:7500)"]);
        assert_eq!(plan.changes, ["service web: new"]);
        assert_eq!((plan.config.node.name.as_str(), plan.config.node.listen.port()), ("one", 7400));
        assert_eq!(plan.config.services, next.services);
        // It is told again as long as it is so.
        let again = super::plan(&plan.config, &next);
        assert_eq!((again.changes.len(), again.needs_restart), (0, plan.needs_restart));
    }

    /// Each file is right as a whole; half of the one with half of the other is not.
    #[test]
    fn a_mixture_that_nobody_wrote_is_refused() {
        let running = "identity.certificate = \"web.crt\"\nadmin.socket = \"/run/a.sock\"\n";
        let judge = |next: &str| {
            let plan = plan(&config(&format!("{running}{SERVICE}")), &config(next));
            plan.judge(&"spiffe://acme/svc/web".parse().expect("an identity"))
        };
        assert_eq!(judge(&format!("{running}{}", SERVICE.replace(":80", ":81"))), Ok(()));
        let web = |address: &str| format!("name = \"web\"\naddress = {address:?}");
        let api = "name = \"api\"\naddress = \"127.0.0.1:80\"".to_owned();
        let allow = format!("{}\nallow = [\"spiffe://other/*\"]", web("127.0.0.1:80"));
        for (keys, service, says) in [
            ("identity.certificate = \"api.crt\"", api, "may not announce \"api\""),
            ("admin.listen = \"127.0.0.1:7500\"", web("127.0.0.1:7402"), "go in circles"),
            ("admin.socket = \"/run/b.sock\"", web("unix:/run/a.sock"), "be its owner"),
            ("", allow, "nobody of it can connect"),
        ] {
            let text = format!("{keys}\n[[service]]\n{service}\n");
            let why = judge(&text).expect_err(says);
            assert!(why.contains("needs a restart") && why.contains(says), "{why}\nshould say: {says}");
        }
    }

    /// The list of what lives and the code that takes it over agree, for every key there is.
    #[test]
    fn every_key_either_is_taken_over_or_needs_a_restart() {
        let (running, next) = (config(""), parse(FULL));
        let plan = plan(&running, &next);
        let taken = &plan.config;
        for key in plan.config.keys.iter() {
            let from = if is_live(&key.path) { &next } else { &running };
            assert_eq!(key.value.as_ref(), from.keys.value(&key.path), "{}", key.path);
        }
        let expected = Config { sources: next.sources.clone(), keys: taken.keys.clone(), ..running.clone() };
        let expected = Config { services: next.services, outbounds: next.outbounds, ..expected };
        let expected = Config { upstreams: next.upstreams, ..expected };
        let expected = Config { http_proxy: next.http_proxy, mesh: next.mesh, ..expected };
        let expected = Config { routing: next.routing, ..expected };
        let node = Node { drain_timeout: next.node.drain_timeout, ..running.node };
        let log = Log { level: next.log.level, ..running.log };
        let idle = running.limits.idle_streams_per_endpoint_max;
        let limits = Limits { idle_streams_per_endpoint_max: idle, ..next.limits };
        assert_eq!(taken, &Config { node, log, limits, ..expected });
    }
}
