//! One row for each way of getting a configuration wrong, and what a right one means.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use starling_gossip::record::Protocol;

use super::*;
use crate::authz::{Allow, PATTERNS_MAX};

const NONE: [(String, String); 0] = [];

fn parse(text: &str) -> Result<Config, Mistakes> {
    Config::parse(text, Path::new("/etc/starling/starling.toml"), NONE)
}

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, Mistakes> {
    let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Config::parse(text, Path::new("/etc/starling/starling.toml"), variables)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect(text)
}

const SMALLEST: &str = r#"
[mesh]
seeds = ["seed.example:7400"]
[[service]]
name = "web"
address = "127.0.0.1:8080"
"#;

#[test]
fn five_lines_are_enough_and_the_rest_has_defaults() {
    let config = parse(SMALLEST).expect("five lines");
    assert_eq!(config.node.listen, address("0.0.0.0:7400"));
    assert_eq!(config.node.advertise, None, "every address is no address to tell others");
    assert_eq!((config.node.drain_timeout, config.node.workers), (Duration::from_secs(30), 1));
    assert_eq!(config.node.data_dir, None, "nothing is written that nobody asked for");
    assert_eq!(config.identity.certificate, PathBuf::from("/etc/starling/tls.crt"));
    assert_eq!(config.identity.trust_bundle, PathBuf::from("/etc/starling/ca.crt"));
    assert_eq!(config.mesh.seeds[0].to_string(), "seed.example:7400");
    assert_eq!(config.admin.listen, address("127.0.0.1:7402"));
    assert_eq!((config.http_proxy, config.access_log), (None, None));
    assert_eq!((config.gossip, config.limits), (Gossip::default(), Limits::default()));
    assert_eq!(config.routing, Routing::default());
    let web = &config.services[0];
    assert_eq!((web.id.as_str(), web.protocol, web.weight), ("web", Protocol::Http, 100));
    assert_eq!((&web.probe, &web.allow), (&Some(Probe::of_accepting()), &Allow::Anybody));
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let config = parse(include_str!("tests/full.toml")).expect("a full file");
    assert_eq!(config.node.advertise, Some(address("10.0.0.5:7400")));
    assert_eq!(config.node.locality.zone.as_ref().map(|zone| zone.as_str()), Some("eu-west-1a"));
    assert_eq!(config.node.data_dir, Some(PathBuf::from("/var/lib/starling")));
    assert_eq!(config.node.workers, 2);
    assert_eq!(config.identity.key, PathBuf::from("/secrets/tls.key"));
    let seeds: Vec<String> = config.mesh.seeds.iter().map(HostPort::to_string).collect();
    assert_eq!(seeds, ["seed-a.example:7400", "10.0.0.9:7400", "[2001:db8::1]:7400"]);
    let addresses: Vec<String> = config.services.iter().map(|one| one.address.to_string()).collect();
    let shown = |index: usize| addresses[index].as_str();
    assert_eq!([shown(0), shown(1), shown(2)], ["[::1]:80", "unix:/run/app.sock", "localhost:5432"]);
    let ids: Vec<&str> = config.services.iter().map(|one| one.id.as_str()).collect();
    let made_up = ["payments-3", "payments-4", "payments-5"];
    let wanted = [&["payments-2", "payments"], &made_up[..], &["ledger"]].concat();
    assert_eq!(ids, wanted, "given ids keep their names");
    let probe = config.services[0].probe.as_ref().expect("a probe");
    assert_eq!(probe.question, ProbeQuestion::Http { path: "/healthz".into() });
    assert_eq!((probe.interval, probe.unhealthy_after), (Duration::from_secs(2), 4));
    let question = |index: usize| config.services[index].probe.as_ref().map(|probe| probe.question.clone());
    assert_eq!(question(1), Some(ProbeQuestion::Tcp));
    let program = PathBuf::from("/etc/starling/probes/check");
    assert_eq!(question(2), Some(ProbeQuestion::Exec { program, arguments: vec!["--fast".into()] }));
    assert_eq!(question(3), Some(ProbeQuestion::Grpc { service: "shop.Payments".into() }));
    assert_eq!(question(4), None);
    let tls = config.services[5].tls.as_ref().expect("TLS");
    assert_eq!(config.services[5].address.to_string(), "tls://[::1]:6432");
    assert_eq!(tls.trust_bundle, PathBuf::from("/etc/starling/app-ca.crt"));
    assert_eq!((tls.server_name.to_str().as_ref(), tls.client.is_some()), ("app.internal", true));
    let track: BTreeMap<_, _> = [("track".parse().expect("ok"), "canary".parse().expect("ok"))].into();
    assert_eq!(config.services[0].tags, track);
    assert_eq!(config.services[1].protocol, Protocol::Tcp);
    let allowed = ["spiffe://acme/svc/web", "spiffe://acme/ns/shop/*"].map(|text| text.parse().expect(text));
    assert_eq!(config.services[0].allow, Allow::Listed(allowed.into()));
    assert_eq!(config.services[1].allow, Allow::Listed(Vec::new()), "an empty list is nobody");
    assert_eq!(config.outbounds[0].service.as_str(), "ledger.shop");
    assert_eq!(config.outbounds[0].route_name(), "ledger.shop@version=v3,track=main");
    let Timeouts { total, attempt, idle } = config.outbounds[0].timeouts;
    let seconds = |seconds: u64| Some(Duration::from_secs(seconds));
    assert_eq!((total, attempt, idle), (seconds(10), seconds(2), seconds(0)));
    assert_eq!(config.outbounds[0].timeouts.idle_of_requests(), None, "zero is for ever");
    assert_eq!(config.http_proxy.expect("on").timeouts.idle_of_connections(), seconds(3600));
    assert_eq!(config.access_log.expect("on").format, LogFormat::Json);
    assert_eq!(config.admin.socket, Some(PathBuf::from("/etc/starling/run/admin.sock")));
    assert_eq!(config.limits.attempts_max, 1);
    let budget = config.gossip.budget;
    assert_eq!((budget.bytes_per_second, budget.connections_max), (16_000, 32));
    let Routing { panic_threshold, panic_window, max_stale } = config.routing;
    assert_eq!((panic_threshold, panic_window), (30, Duration::from_secs(10)));
    assert_eq!(max_stale, Duration::from_secs(60));
}

#[test]
fn what_is_not_said_of_an_upstream_is_as_in_the_section_above() {
    let upstreams = parse(include_str!("tests/full.toml")).expect("a full file").upstreams;
    let name = |text: &str| text.parse().expect(text);
    let others = upstreams.of(&name("web"));
    assert_eq!((others.policy.as_str(), others.slow_start), ("least_request", Duration::ZERO));
    assert_eq!((others.limits.requests, others.outliers.consecutive_errors), (10_000, 3));
    assert_eq!(others.endpoints_max(), Some(100));
    let ledger = upstreams.of(&name("ledger.shop"));
    assert_eq!((ledger.limits.requests, ledger.outliers.ejected_max), (7, 50));
    let parts: Vec<_> = upstreams.parts_of(&name("ledger.shop")).collect();
    let names: Vec<&str> = parts.iter().map(|part| &*part.name).collect();
    assert_eq!(names, ["ledger-v3", "ledger.shop@version=v3,track=main"]);
    let canary = &parts[0].settings;
    assert_eq!(canary.policy.hash_on().map(ToString::to_string).as_deref(), Some("cookie:session"));
    assert_eq!((canary.limits.requests, canary.limits.connections, canary.endpoints_max()), (7, 1, Some(20)));
    assert!(upstreams.hides(&name("ledger-v3")) && !upstreams.hides(&name("ledger.shop")));
    let hashed = parse("upstream = [{ service = \"a\", policy = \"consistent_hash\", hash_on = \"path\" }]");
    assert_eq!(hashed.expect("an upstream").upstreams.of(&name("a")).endpoints_max(), None);
}

#[test]
fn a_shorter_lease_alone_is_renewed_oftener() {
    let gossip = parse("[gossip]\nlease = \"20s\"").expect("a lease").gossip;
    assert_eq!((gossip.lease, gossip.renew), (Duration::from_secs(20), Duration::from_secs(5)));
    let gossip = parse("[gossip]\nlease = \"1h\"").expect("a lease").gossip;
    assert_eq!(gossip.renew, Gossip::default().renew, "a longer one is not renewed more seldom");
}

#[test]
fn shares_and_sizes_are_written_in_several_ways() {
    for (text, percent) in [("\"0%\"", 0), ("\" 100 %\"", 100), ("70", 70)] {
        let config = parse(&format!("[routing]\npanic_threshold = {text}")).expect(text);
        assert_eq!(config.routing.panic_threshold, percent);
    }
    let variables = [("STARLING_ROUTING__PANIC_THRESHOLD", "20")];
    assert_eq!(parse_with(SMALLEST, &variables).expect("a share").routing.panic_threshold, 20);
    for (text, bytes) in [("8000", 8_000), ("\"8KB\"", 8_000), ("\"8KiB\"", 8_192), ("\"8Ki\"", 8_192)] {
        let config = parse(&format!("[gossip]\nbudget = {text}")).expect(text);
        assert_eq!(config.gossip.budget.bytes_per_second, bytes, "{text}");
    }
    for bytes in [1, 1_000, 1_024, 8_000, 1_000_000, 1 << 20, 10_000_000, 64 << 20, 3_000_000_000] {
        let shown = value::show_size(bytes);
        assert!(shown.len() < 8, "{shown}");
        assert_eq!(
            parse(&format!("[limits]\nmemory_max = \"{shown}\"")).is_ok(),
            bytes > 32 << 20,
            "{shown}"
        );
    }
}

/// Four mistakes of four kinds in one file are four messages.
#[test]
fn all_mistakes_are_reported_together_each_with_its_line() {
    let text = "[nod]\nname = \"web-1\"\n[mesh]\nseeds = [\"seed-a\"]\n\
                [[service]]\nname = \"my web\"\naddress = \"127.0.0.1:99999\"\n";
    let mistakes = parse(text).expect_err("four mistakes");
    let told: Vec<(Place, &str, &str)> =
        mistakes.iter().map(|one| (one.place.clone(), one.key.as_str(), one.suggestion.as_str())).collect();
    let line = |line, column| Place::Line { line, column };
    assert_eq!(
        told,
        [
            (line(1, 2), "nod", "did you mean \"node\"?"),
            (line(4, 10), "mesh.seeds[0]", "write \"seed-a:7400\", with its port"),
            (
                line(6, 1),
                "service[0].name",
                "write \"my-web\" (a DNS label (a-z 0-9 -, at most 63), or name.namespace)"
            ),
            (line(7, 1), "service[0].address", "ports go from 1 to 65535"),
        ]
    );
    assert!(mistakes.to_string().ends_with("4 mistakes in the configuration"), "{mistakes}");
}

#[test]
fn programs_get_the_mistakes_as_json() {
    let mistakes = parse_with("[nod]\n", &[("STARLING_NODE__LISTEN", "here")]).expect_err("two mistakes");
    let json = mistakes.to_json();
    assert_eq!(json["ok"], false);
    assert_eq!(json["mistakes"][0]["file"], "/etc/starling/starling.toml");
    assert_eq!(json["mistakes"][0]["line"], 1);
    assert_eq!(json["mistakes"][0]["key"], "nod");
    assert_eq!(json["mistakes"][1]["file"], "environment");
    assert_eq!(json["mistakes"][1]["line"], serde_json::Value::Null);
    assert_eq!(json["mistakes"][1]["variable"], "STARLING_NODE__LISTEN");
}

/// (text, key, part of the message): exactly one mistake each. A leading `service.` text is put
/// into an otherwise right service, to keep rows short.
pub(super) const WRONG: &[(&str, &str, &str)] = &[
    // Shape.
    ("[node", "", "this is not TOML"),
    ("a = 1\na = 2", "", "duplicate key"),
    ("[bogus]", "bogus", "known here: node, mesh"),
    ("node = 5", "node", "is a section, not a number"),
    ("[node]\nnmae = \"x\"", "node.nmae", "did you mean \"name\"?"),
    ("[node]\nname = 5", "node.name", "write it in quotes: \"5\""),
    ("[service]\nname = \"web\"", "service", "write [[service]], with two brackets"),
    ("[node]\ndata_dir = \"\"", "node.data_dir", "it is empty"),
    ("[node]\ndata_dir = 5", "node.data_dir", "write it in quotes: \"5\""),
    ("[node]\ndatadir = \"/x\"", "node.datadir", "did you mean \"data_dir\"?"),
    // Names.
    ("[node]\nname = \"\"", "node.name", "it is empty"),
    ("[node]\nname = \"web 1\"", "node.name", "write \"web-1\""),
    ("[node]\nlocality = { region = \"eu west\" }", "node.locality.region", "write \"eu-west\""),
    ("[node]\nlocality = { city = \"x\" }", "node.locality.city", "known here: region, zone, site"),
    ("service.name = \"Web\"", "service[0].name", "write \"web\""),
    ("service.name = \"a.b.c\"", "service[0].name", "or name.namespace"),
    ("service.version = \"v 2\"", "service[0].version", "not a label"),
    ("service.tags = { track = 5 }", "service[0].tags.track", "not a number"),
    ("service.tags = { \"a b\" = \"x\" }", "service[0].tags.a b", "not a label"),
    // Addresses.
    ("[node]\nlisten = \"7400\"", "node.listen", "has no port"),
    ("[node]\nlisten = \":7400\"", "node.listen", "the host is missing"),
    ("[node]\nlisten = \"localhost:7400\"", "node.listen", "needs an IP address"),
    ("[node]\nadvertise = \"0.0.0.0:7400\"", "node.advertise", "cannot be connected to"),
    ("[node]\nadvertise = \"10.0.0.5:0\"", "node.advertise", "port 0"),
    ("[mesh]\nseeds = \"a:7400\"", "mesh.seeds", "write a list: seeds = [\"a:7400\"]"),
    ("[mesh]\nseeds = [\"a:7400\",\n7]", "mesh.seeds[1]", "not a number"),
    ("[mesh]\nseeds = [\"https://a:7400/\"]", "mesh.seeds[0]", "write \"a:7400\""),
    ("[mesh]\nseeds = [\"a:http\"]", "mesh.seeds[0]", "\"http\" is not a port"),
    ("[mesh]\nseeds = [\"2001:db8::1\"]", "mesh.seeds[0]", "write \"[2001:db8::1]:7400\""),
    ("[mesh]\nseeds = [\"[10.0.0.9]:7400\"]", "mesh.seeds[0]", "not an IPv6 address"),
    ("[mesh]\nseeds = [\"10.0.0.300:7400\"]", "mesh.seeds[0]", "neither an IP address nor"),
    ("[mesh]\nseeds = [\"a_b..c:7400\"]", "mesh.seeds[0]", "neither an IP address nor"),
    ("service.address = \"unix:app.sock\"", "service[0].address", "not an absolute path"),
    (
        "[admin]\nsocket = \"/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789/a.sock\"",
        "admin.socket",
        "at most 107 bytes",
    ),
    ("service.address = \"127.0.0.1:70000\"", "service[0].address", "port 70000 does not exist"),
    // TLS to the workload.
    ("service.address = \"https://app:8443\"", "service[0].tls", "add [service.tls] with trust_bundle"),
    ("service.address = \"https://app\"", "service[0].address", "write \"https://app:443\", with its port"),
    ("service.address = \"https://app:8443/api\"", "service[0].address", "write \"https://app:8443\""),
    ("service.address = \"https+unix:/run/app.sock\"", "service[0].address", "not a port"),
    ("service.tls = { trust_bundle = \"a.crt\" }", "service[0].tls", "or \"tls://127.0.0.1:8080\""),
    (
        "service.address = \"unix:/run/app.sock\"\ntls = { trust_bundle = \"a.crt\" }",
        "service[0].tls",
        "TLS over a Unix socket",
    ),
    (
        "service.address = \"https://app:1\"\ntls = {}",
        "service[0].tls.trust_bundle",
        "trust_bundle is missing",
    ),
    (
        "service.address = \"https://app:1\"\ntls = { trust_bundle = \"a.crt\", bundle = \"b\" }",
        "service[0].tls.bundle",
        "known here: trust_bundle, server_name, certificate, key",
    ),
    (
        "service.address = \"https://app:1\"\ntls = { trust_bundle = \"a.crt\", server_name = \"app:1\" }",
        "service[0].tls.server_name",
        "without scheme or port",
    ),
    (
        "service.address = \"https://app:1\"\ntls = { trust_bundle = \"a.crt\", certificate = \"c\" }",
        "service[0].tls.certificate",
        "add key",
    ),
    (
        "service.address = \"https://app:1\"\ntls = { trust_bundle = \"a.crt\", key = \"k\" }",
        "service[0].tls.key",
        "add certificate",
    ),
    (
        "service.address = \"tls://app:1\"\ntls = { trust_bundle = \"a.crt\" }",
        "service[0].address",
        "write https:// or another protocol",
    ),
    (
        "service.address = \"https://app:1\"\nprotocol = \"tcp\"\ntls = { trust_bundle = \"a.crt\" }",
        "service[0].address",
        "write tls:// or another protocol",
    ),
    // Numbers, words, durations.
    (
        "service.proxy_protocol = true",
        "service[0].proxy_protocol",
        "HTTP workloads hear who calls in the header x-starling-peer",
    ),
    ("service.weight = 1001", "service[0].weight", "from 0 to 1000"),
    ("service.weight = -1", "service[0].weight", "-1 is out of range"),
    ("service.weight = \"9\"", "service[0].weight", "should be a number, not a text"),
    ("service.protocol = \"udp\"", "service[0].protocol", "write \"http\" or \"tcp\""),
    ("[node]\ndrain_timeout = 30", "node.drain_timeout", "write \"30s\" or \"30ms\""),
    ("[node]\ndrain_timeout = \"soon\"", "node.drain_timeout", "not a duration"),
    ("[node]\nworkers = 0", "node.workers", "from 1 to 256"),
    ("[node]\ndrain_timeout = \"2h\"", "node.drain_timeout", "write 0s to 1h"),
    ("[gossip]\nlease = \"99999999999999999d\"", "gossip.lease", "not a duration"),
    ("[gossip]\nlease = \"10s\"\nrenew = \"5s\"", "gossip.lease", "make lease longer than 15s"),
    ("[gossip]\nrenew = \"1m\"", "gossip.lease", "make lease longer than 3m"),
    ("[gossip]\nbudget = \"a lot\"", "gossip.budget", "not an amount of bytes"),
    ("[gossip]\nbudget = 500", "gossip.budget", "write 1KB to 10MB"),
    ("[gossip]\nbudget = \"1GiB\"", "gossip.budget", "1GiB is out of range"),
    ("[gossip]\nconnections_max = 8", "gossip.connections_max", "from 16 to 1024"),
    ("[routing]\npanic_threshold = \"half\"", "routing.panic_threshold", "not a share"),
    ("[routing]\npanic_threshold = \"50\"", "routing.panic_threshold", "write a share from \"0%\""),
    ("[routing]\npanic_threshold = 101", "routing.panic_threshold", "101 is out of range"),
    ("[routing]\npanic_window = \"0s\"", "routing.panic_window", "write 1s to 1h"),
    ("[routing]\nmax_stale = \"30d\"", "routing.max_stale", "write 1s to 1d"),
    ("[routing]\nmaxstale = \"1m\"", "routing.maxstale", "did you mean \"max_stale\"?"),
    ("[gossip]\ninterval = \"1ms\"", "gossip.interval", "out of range"),
    ("[[upstream]]\npolicy = \"round_robin\"", "upstream[0].service", "add service = \"payments\""),
    ("[[upstream]]\nservice = \"Web\"", "upstream[0].service", "write \"web\""),
    ("[[upstream]]\nservice = \"a\"\npolicy = \"random\"", "upstream[0].policy", "\"peak_ewma\" or"),
    ("[[upstream]]\nservice = \"a\"\npolicy = \"consistent_hash\"", "upstream[0].policy", "add hash_on"),
    ("[[upstream]]\nservice = \"a\"\nhash_on = \"path\"", "upstream[0].hash_on", "peak_ewma hashes nothing"),
    (
        "[[upstream]]\nservice = \"a\"\npolicy = \"consistent_hash\"\nhash_on = \"header:a b\"",
        "upstream[0].hash_on",
        "no header's name",
    ),
    (
        "[[upstream]]\nservice = \"a\"\npolicy = \"consistent_hash\"\nhash_on = \"user\"",
        "upstream[0].hash_on",
        "cookie:NAME",
    ),
    ("[[upstream]]\nservice = \"a\"\nversion = \"v2\"", "upstream[0]", "needs a name"),
    ("[[upstream]]\nservice = \"*\"\nname = \"all\"", "upstream[0].name", "have no name"),
    (
        "[[upstream]]\nservice = \"a\"\n[[upstream]]\nservice = \"*\"",
        "upstream[1].service",
        "make it the first",
    ),
    (
        "[[upstream]]\nservice = \"a\"\n[[upstream]]\nservice = \"a\"",
        "upstream[1].service",
        "has a section already",
    ),
    (
        "[[upstream]]\nservice = \"a\"\nname = \"c\"\n[[upstream]]\nservice = \"b\"\nname = \"c\"",
        "upstream[1].name",
        "the name of an earlier one",
    ),
    (
        "[[upstream]]\nservice = \"a\"\nname = \"c\"\n[[outbound]]\nlisten = \"127.0.0.1:9001\"\n\
         service = \"c\"\nversion = \"v1\"",
        "outbound",
        "a part of a service already",
    ),
    ("[[upstream]]\nservice = \"a\"\nendpoints_max = 3", "upstream[0].endpoints_max", "from 10 to 100000"),
    ("[[upstream]]\nservice = \"a\"\nslow_start = \"2h\"", "upstream[0].slow_start", "write 0s to 1h"),
    ("[[upstream]]\nservice = \"a\"\nrequests_max = 0", "upstream[0].requests_max", "from 1 to 1000000"),
    (
        "[[upstream]]\nservice = \"a\"\noutliers.ejection_time = \"10m\"",
        "upstream[0].outliers.ejection_time",
        "any 5m at most",
    ),
    (
        "[[upstream]]\nservice = \"a\"\noutliers.ejected_max = 120",
        "upstream[0].outliers.ejected_max",
        "out of range",
    ),
    (
        "[[outbound]]\nlisten = \"127.0.0.1:9001\"\nservice = \"a\"\ntags = 5",
        "outbound[0].tags",
        "write [outbound.tags] on a line",
    ),
    ("[limits]\nattempts_max = 0", "limits.attempts_max", "from 1 to 10"),
    ("[limits]\nconnection_max = 1", "limits.connection_max", "did you mean \"connections_max\"?"),
    ("[log]\nlevel = \"inof\"", "log.level", "not a log level"),
    ("[log]\nformat = \"xml\"", "log.format", "\"text\" or \"json\""),
    ("[access_log]\npath = \"/x\"", "access_log.path", "without a format"),
    // Missing things.
    ("[[service]]\naddress = \"127.0.0.1:80\"", "service[0].name", "add name = \"payments\""),
    ("[[service]]\nname = \"web\"", "service[0].address", "address is missing"),
    (
        "[[service]]\nname = \"web\"\nadress = \"127.0.0.1:80\"",
        "service[0].adress",
        "did you mean \"address\"?",
    ),
    ("[[outbound]]\nlisten = \"127.0.0.1:9001\"", "outbound[0].service", "service is missing"),
    (
        "[http_proxy]\ntimeout = \"1s\"\nattempt_timeout = \"2s\"",
        "http_proxy.attempt_timeout",
        "one attempt may take 2s and all together 1s",
    ),
    ("[http_proxy]\ntimeout = \"0s\"", "http_proxy.timeout", "write 1ms to 1d"),
    ("[[outbound]]\nlisten = \"unix:a.sock\"\nservice = \"a\"", "outbound[0].listen", "not an absolute path"),
    ("[http_proxy]\nlisten = \"/run/a.sock\"", "http_proxy.listen", "has no port"),
    (
        "[admin]\nsocket = \"/a.sock\"\n[http_proxy]\nlisten = \"unix:/a.sock\"",
        "http_proxy.listen",
        "taken by admin.socket",
    ),
    (
        "service.address = \"unix:/a.sock\"\n[http_proxy]\nlisten = \"unix:/a.sock\"",
        "service[0].address",
        "calls would go in circles",
    ),
    // Who may call.
    (
        "service.allow = \"spiffe://acme/*\"",
        "service[0].allow",
        "write a list: allow = [\"spiffe://acme/*\"]",
    ),
    ("service.allow = [\"web\"]", "service[0].allow[0]", "write for instance \"spiffe://acme/svc/web\""),
    ("service.allow = [\"*\"]", "service[0].allow[0]", "leave allow out to let everybody in"),
    ("service.allow = [\"spiffe://acme\"]", "service[0].allow[0]", "write \"spiffe://acme/*\" for everybody"),
    ("service.allow = [\"spiffe://acme/svc/web*\"]", "service[0].allow[0]", "or \"spiffe://acme/svc/*\""),
    ("service.allow = [\"spiffe://acme/*/web\"]", "service[0].allow[0]", "a star stands alone"),
    (
        "service.allow = [\"spiffe://acme/svc/a\", \"spiffe://acme/svc/a\"]",
        "service[0].allow[1]",
        "in the list already",
    ),
    // Probes.
    ("service.probe = {}", "service[0].probe", "asks nothing"),
    ("service.probe = { tcp = false }", "service[0].probe", "asks nothing"),
    ("service.probe = { http = \"/x\", tcp = true }", "service[0].probe.tcp", "one question"),
    ("service.probe = { exec = [\"x\"], grpc = true }", "service[0].probe.exec", "asks grpc too"),
    ("service.probe = { http = \"/x\", off = true }", "service[0].probe.off", "one question"),
    (
        "service.probe = { off = true, interval = \"5s\" }",
        "service[0].probe.interval",
        "remove interval, or off",
    ),
    ("service.probe = { off = 1 }", "service[0].probe.off", "true or false"),
    ("service.probe = { grpc = false }", "service[0].probe", "asks nothing"),
    ("service.probe = { grpc = \"\" }", "service[0].probe.grpc", "grpc = true for the whole server"),
    ("service.probe = { grpc = \"my service\" }", "service[0].probe.grpc", "not a gRPC service"),
    ("service.probe = { grpc = 5 }", "service[0].probe.grpc", "true or a text, not a number"),
    ("service.probe = { exec = \"check\" }", "service[0].probe.exec", "write a list: exec = [\"check\"]"),
    ("service.probe = { exec = [] }", "service[0].probe.exec", "names no program"),
    ("service.probe = { exec = [\"\"] }", "service[0].probe.exec[0]", "names no program"),
    ("service.probe = { exec = [\"check\", 5] }", "service[0].probe.exec[1]", "write it in quotes: \"5\""),
    ("service.probe = { exec = [\"a\\u0000b\"] }", "service[0].probe.exec[0]", "zero byte"),
    ("service.probe = { exe = [\"check\"], tcp = true }", "service[0].probe.exe", "did you mean \"exec\"?"),
    ("service.probe = { http = \"healthz\" }", "service[0].probe.http", "write \"/healthz\""),
    ("service.probe = { tcp = \"yes\" }", "service[0].probe.tcp", "true or false"),
    ("service.probe = { tcp = true, timeout = \"2s\" }", "service[0].probe.timeout", "at most interval"),
    ("service.probe = { tcp = true, healthy_after = 0 }", "service[0].probe.healthy_after", "1 to 100"),
    // Company.
    ("[admin]\nlisten = \"0.0.0.0:7402\"", "admin.listen", "add token_file"),
    ("[http_proxy]\n[admin]\nlisten = \"127.0.0.1:7401\"", "admin.listen", "taken by http_proxy.listen"),
    ("[http_proxy]\nlisten = \"127.0.0.1:7402\"", "http_proxy.listen", "taken by admin.listen"),
    (
        "[[outbound]]\nlisten = \"127.0.0.1:7400\"\nservice = \"a\"",
        "outbound[0].listen",
        "taken by node.listen",
    ),
    ("[[outbound]]\nlisten = \"[::]:7402\"\nservice = \"a\"", "outbound[0].listen", "taken by admin.listen"),
    ("service.address = \"localhost:7402\"", "service[0].address", "go in circles"),
    (
        "[admin]\nsocket = \"admin.sock\"\n\
         [[service]]\nname = \"web\"\naddress = \"unix:/etc/starling/admin.sock\"",
        "service[0].address",
        "every caller would be its owner",
    ),
];

/// A row's text as a file.
pub(super) fn whole_text(text: &str) -> String {
    let Some(line) = text.strip_prefix("service.") else { return text.to_owned() };
    let right = [("name", "\"web\""), ("address", "\"127.0.0.1:8080\"")];
    let right = right.iter().filter(|(key, _)| !line.starts_with(key));
    let right: String = right.map(|(key, value)| format!("{key} = {value}\n")).collect();
    format!("[[service]]\n{right}{line}\n")
}

#[test]
fn every_mistake_has_its_own_message_at_its_key() {
    for (text, key, message) in WRONG {
        let text = whole_text(text);
        let mistakes = parse(&text).expect_err(&text);
        let told: Vec<&Mistake> = mistakes.iter().collect();
        let [mistake] = told[..] else { panic!("{text}\nshould be one mistake:\n{mistakes}") };
        assert_eq!(&mistake.key, key, "{text}\n{mistake}");
        assert!(mistake.to_string().contains(message), "{text}\n{mistake}\nshould say: {message}");
        assert!(matches!(mistake.place, Place::Line { .. }), "{text}\n{mistake}");
    }
}

/// Any kind of value.
pub(super) const VALUES: [&str; 11] = [
    "0",
    "-1",
    "1.5",
    "99999999999999999999",
    "true",
    "\"\"",
    "\"é:]:\\u0000\"",
    "[]",
    "[[1]]",
    "{}",
    "1979-05-27",
];

/// Any kind of value at any key: no panic, and what is refused is refused where it stands.
#[test]
fn every_key_survives_every_kind_of_value() {
    const FULL: &str = include_str!("tests/full.toml");
    for (index, line) in FULL.lines().enumerate() {
        let Some((key, _)) = line.split_once(" = ") else { continue };
        for value in VALUES {
            let mut lines: Vec<String> = FULL.lines().map(str::to_owned).collect();
            lines[index] = format!("{key} = {value}");
            let Err(mistakes) = parse(&lines.join("\n")) else { continue };
            let is_here = |one: &Mistake| matches!(one.place, Place::Line { line, .. } if line == index + 1);
            assert!(mistakes.iter().any(is_here), "line {}: {key} = {value}\n{mistakes}", index + 1);
        }
    }
}

#[test]
fn ids_are_given_once() {
    let service = "[[service]]\nname = \"web\"\naddress = \"127.0.0.1:80\"\nid = \"one\"\n";
    let mistakes = parse(&service.repeat(2)).expect_err("one id twice");
    let told: Vec<&Mistake> = mistakes.iter().collect();
    assert_eq!((told.len(), told[0].key.as_str()), (1, "service[1].id"), "{mistakes}");
    assert_eq!(told[0].place, Place::Line { line: 8, column: 1 });
}

#[test]
fn a_workloads_certificate_carries_the_addresses_host_unless_something_else_is_said() {
    for (host, name) in [("app.internal", "app.internal"), ("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
        let text = format!(
            "[[service]]\nname = \"web\"\naddress = \"https://{host}:1\"\ntls = {{ trust_bundle = \"a.crt\" }}\n"
        );
        let config = parse(&text).expect(host);
        assert_eq!(config.services[0].tls.as_ref().expect("TLS").server_name.to_str(), name);
    }
}

#[test]
fn a_list_of_callers_has_an_end() {
    let text = |count: usize| {
        let list: Vec<String> = (0..count).map(|number| format!("spiffe://acme/svc/s{number}")).collect();
        format!("{SMALLEST}allow = {list:?}\n")
    };
    parse(&text(PATTERNS_MAX)).expect("the most there may be");
    let mistakes = parse(&text(PATTERNS_MAX + 1)).expect_err("one too many");
    assert!(mistakes.to_string().contains("service[0].allow\n    257 patterns"), "{mistakes}");
}

#[test]
fn a_mistaken_address_claims_no_port_and_hides_no_other_claim() {
    let text = "[admin]\nlisten = \"here\"\n[http_proxy]\nlisten = \"127.0.0.1:7402\"\n\
                [[outbound]]\nlisten = \"127.0.0.1:7402\"\nservice = \"Bad\"\n";
    let mistakes = parse(text).expect_err("three mistakes");
    let keys: Vec<&str> = mistakes.iter().map(|one| one.key.as_str()).collect();
    assert_eq!(keys, ["admin.listen", "outbound[0].listen", "outbound[0].service"], "{mistakes}");
}

#[test]
fn the_kernel_may_choose_several_ports() {
    let text = "[node]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
                [http_proxy]\nlisten = \"127.0.0.1:0\"\n";
    let config = parse(text).expect("port 0 thrice");
    assert_eq!(config.node.advertise, None, "the port is not known yet");
    let config = parse("[node]\nlisten = \"127.0.0.1:7400\"").expect("an address");
    assert_eq!(config.node.advertise, Some(address("127.0.0.1:7400")));
}

#[test]
fn the_environment_overrides_the_file() {
    let variables = [
        ("STARLING_NODE__NAME", "web-7"),
        ("STARLING_NODE__LOCALITY__ZONE", "b"),
        ("STARLING_MESH__SEEDS", "a:7400, b:7400"),
        ("STARLING_LIMITS__ATTEMPTS_MAX", "2"),
        ("STARLING_IDENTITY__KEY", "other.key"),
        ("STARLING_SERVICE_HOST", "injected by Kubernetes, and none of ours"),
        ("HOME", "/root"),
    ];
    let config = parse_with(SMALLEST, &variables).expect("overridden");
    assert_eq!(config.node.name.as_str(), "web-7");
    assert_eq!(config.node.locality.zone.map(String::from).as_deref(), Some("b"));
    assert_eq!(config.mesh.seeds.len(), 2);
    assert_eq!(config.limits.attempts_max, 2);
    assert_eq!(config.identity.key, PathBuf::from("/etc/starling/other.key"));
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    for (variable, value, key, message) in [
        ("STARLING_NODE__LISTEN", "1.2.3.4", "node.listen", "has no port"),
        ("STARLING_NOD__NAME", "x", "nod", "did you mean \"node\"?"),
        ("STARLING_NODE__NMAE", "x", "node.nmae", "did you mean \"name\"?"),
        ("STARLING_LIMITS__ATTEMPTS_MAX", "many", "limits.attempts_max", "1 to 10"),
        ("STARLING_MESH__SEEDS", "a:7400,b", "mesh.seeds[1]", "has no port"),
        ("STARLING_MESH__SEEDS", "b", "mesh.seeds[0]", "has no port"),
        ("STARLING_SERVICE__NAME", "x", "service.name", "sections that occur once"),
        ("STARLING_NODE__", "x", "node.", "sections that occur once"),
    ] {
        let mistakes = parse_with(SMALLEST, &[(variable, value)]).expect_err(variable);
        let told: Vec<&Mistake> = mistakes.iter().collect();
        assert_eq!((told.len(), told[0].key.as_str()), (1, key), "{mistakes}");
        assert_eq!(told[0].place, Place::Environment(variable.into()), "{mistakes}");
        assert!(mistakes.to_string().contains(message), "{mistakes}");
    }
}

#[test]
fn durations_read_back_as_they_are_shown() {
    for text in ["0s", "1ms", "500ms", "90s", "2m", "24h", "36h", "3650d"] {
        let duration = parse_duration(text).expect(text);
        assert_eq!(parse_duration(&show_duration(duration)), Ok(duration), "{text}");
    }
    assert_eq!(show_duration(Duration::from_secs(7200)), "2h");
}

#[test]
fn a_file_that_cannot_be_read_is_one_mistake() {
    let mistakes = Config::load(Path::new("/nonexistent/starling.toml"), NONE).expect_err("no file");
    assert!(mistakes.to_string().contains("--config"), "{mistakes}");
}
