//! An instance that is registered while the node runs: the keys of `[[service]]` as JSON, read by
//! the same readers, so that there is one judge of what is right.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value as Json;
use starling_gossip::identity::SpiffeId;
use starling_gossip::record::Label;
use toml::Value;

use super::Config;
use super::files;
use super::limits::REGISTRATION_TTL;
use super::mistake::{Mistakes, Sources};
use super::probe::ProbeQuestion;
use super::relations::Claims;
use super::section::{Report, Section};
use super::service::{Service, read_service};
use super::value::duration;

/// Reads registrations for one node.
#[derive(Clone)]
pub(crate) struct RegistrationReader {
    base: PathBuf,
    /// The node's own listeners, which no workload may be.
    claims: Claims,
}

/// An instance to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    /// What is served.
    pub(crate) service: Service,
    /// How long it stands without a heartbeat; `None` for ever.
    pub(crate) ttl: Option<Duration>,
}

impl RegistrationReader {
    /// For a node with this configuration.
    pub(crate) fn new(config: &Config) -> Self {
        let base = Path::new(&config.sources.file).parent().unwrap_or(Path::new("")).to_owned();
        Self { base, claims: Claims::of_listeners(config) }
    }

    /// Reads the JSON text of the instance `id`, and the files it names, for a node that runs as
    /// `identity`; whether that may announce the service is left to be asked. Blocks as files do.
    pub(crate) fn read(&self, id: Label, text: &[u8], identity: &SpiffeId) -> Result<Registration, Mistakes> {
        let sources = Sources { file: "the request".to_owned(), ..Sources::default() };
        let table = match serde_json::from_slice(text).map(to_toml) {
            Ok(Some(Value::Table(table))) => table,
            Ok(_) => return Err(sources.mistake("", "this is no JSON object", EXAMPLE).into()),
            Err(error) => {
                return Err(sources.mistake("", format!("this is not JSON: {error}"), EXAMPLE).into());
            }
        };
        let report = Report::new(sources, Vec::new());
        let mut claims = self.claims.clone();
        let mut section = Section::root(&report, table);
        let ttl = section.optional("ttl", duration(REGISTRATION_TTL));
        let service = read_service(section, "service", &self.base, &mut claims, |_| Some(id));
        claims.check_workloads(&report);
        if let Some(ProbeQuestion::Exec { .. }) =
            service.as_ref().and_then(|it| Some(&it.probe.as_ref()?.question))
        {
            let instead = "ask by http, tcp or grpc, or put the service into the configuration file";
            report.add("probe.exec", "programs are run on the configuration's word only", instead);
        }
        if let Some(service) = &service {
            let wrong = files::wrong_allowed(service, identity).into_iter();
            for (key, wrong) in wrong.chain(files::wrong_workload_tls(service)) {
                report.add(&key, wrong.problem, wrong.suggestion);
            }
        }
        let (_, mistakes, _) = report.finish();
        Mistakes::none_of(mistakes)?;
        let service = service.expect("a service that cannot be read has a mistake");
        Ok(Registration { service, ttl })
    }
}

const EXAMPLE: &str = "send {\"service\": \"payments\", \"address\": \"127.0.0.1:8080\"}";

/// `null` is as good as absent; a number that TOML does not have becomes a fraction, which no key takes.
fn to_toml(json: Json) -> Option<Value> {
    Some(match json {
        Json::Null => return None,
        Json::Bool(value) => Value::Boolean(value),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::Integer(whole),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(text),
        Json::Array(items) => Value::Array(items.into_iter().filter_map(to_toml).collect()),
        Json::Object(pairs) => {
            Value::Table(pairs.into_iter().filter_map(|(key, value)| Some((key, to_toml(value)?))).collect())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::Probe;
    use super::*;

    fn read(text: &str) -> Result<Registration, Mistakes> {
        let none: [(String, String); 0] = [];
        let text_of_node = "[admin]\nsocket = \"/run/admin.sock\"";
        let config =
            Config::parse(text_of_node, Path::new("/etc/starling/starling.toml"), none).expect("a node");
        let identity = "spiffe://acme/svc/web".parse().expect("an identity");
        RegistrationReader::new(&config).read("one".parse().expect("a label"), text.as_bytes(), &identity)
    }

    #[test]
    fn defaults_are_those_of_the_configuration() {
        let small = read(r#"{"service": "web", "address": "127.0.0.1:80", "version": null}"#).expect("read");
        let none: [(String, String); 0] = [];
        let text = "[[service]]\nid = \"one\"\nname = \"web\"\naddress = \"127.0.0.1:80\"";
        let config = Config::parse(text, Path::new("x"), none).expect("the same as a file");
        assert_eq!((&small.service, small.ttl), (&config.services[0], None));
        assert_eq!(small.service.probe, Some(Probe::of_accepting()));
        let full = read(
            r#"{"service": "web", "address": "unix:/run/a.sock", "protocol": "tcp", "version": "v2",
                "tags": {"a": "b"}, "weight": 7, "ttl": "10s", "probe": {"http": "/x", "interval": "2s"}}"#,
        )
        .expect("read");
        assert_eq!((full.service.weight, full.ttl), (7, Some(Duration::from_secs(10))));
    }

    #[test]
    fn all_mistakes_are_told_at_once_by_their_keys() {
        let text = r#"{"service": "my web", "address": "127.0.0.1", "wieght": 5, "ttl": 3,
                       "probe": {"http": "x"}, "tags": {"a": [1]}}"#;
        let mistakes = read(text).expect_err("six");
        let mut keys: Vec<&str> = mistakes.iter().map(|one| one.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["address", "probe.http", "service", "tags.a", "ttl", "wieght"], "{mistakes}");
        for (text, key, says) in [
            ("", "", "this is not JSON"),
            ("[1]", "", "no JSON object"),
            ("null", "", "no JSON object"),
            (r#"{"service": "web"}"#, "address", "address is missing"),
            (r#"{"name": "web", "service": "web", "address": "h:1"}"#, "name", "unknown key"),
            (r#"{"service": "web", "address": "h:1", "weight": 1e99}"#, "weight", "not a fraction"),
            (r#"{"service": "web", "address": "h:1", "ttl": "1ms"}"#, "ttl", "out of range"),
            (r#"{"service": "web", "address": "127.0.0.1:7402"}"#, "address", "go in circles"),
            (r#"{"service": "web", "address": "unix:/run/admin.sock"}"#, "address", "be its owner"),
            (
                r#"{"service": "web", "address": "h:1", "allow": ["spiffe://acme/*", "spiffe://other/*"]}"#,
                "allow[1]",
                "nobody of it can connect",
            ),
            (
                r#"{"service": "web", "address": "https://h:1", "tls": {"trust_bundle": "/none"}}"#,
                "tls.trust_bundle",
                "cannot be read",
            ),
            (
                r#"{"service": "web", "address": "h:1", "probe": {"exec": ["/bin/true"]}}"#,
                "probe.exec",
                "word only",
            ),
        ] {
            let mistakes = read(text).expect_err(text);
            let told: Vec<_> = mistakes.iter().collect();
            assert_eq!((told.len(), told[0].key.as_str()), (1, key), "{text}\n{mistakes}");
            assert!(told[0].to_string().contains(says), "{text}\n{mistakes}");
        }
    }
}
