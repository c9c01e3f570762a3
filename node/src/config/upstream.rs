//! `[[upstream]]`: how this node calls a service, or a part of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use starling_gossip::identity::ServiceName;
use starling_gossip::limits::TAGS_MAX;

use super::limits::{
    CONSECUTIVE_ERRORS, EJECTION_TIME, ENDPOINTS_USED, OUTLIER_INTERVAL, OUTLIER_REQUESTS, SLOW_START,
    UPSTREAM_WORK, UPSTREAMS_MAX,
};
use super::mistake::{Wrong, wrong};
use super::reader::Reader;
use super::section::{Given, Report, Section};
use super::service::Outbound;
use super::value::{boolean, duration, label, number, one_of, percent, service_name, show_duration, text};
use crate::balance::{HashOn, Policy};
use crate::circuit;
use crate::outlier;
use crate::route::subset::Subset;

/// Endpoints that one caller uses of a service, in each zone: enough that one more or less is not felt,
/// few enough that a thousand callers are no burden for each.
const ENDPOINTS_MAX: u32 = 100;

/// How this node calls one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// By what the next endpoint is chosen.
    pub policy: Policy,
    /// How long a newcomer takes less than its share; nothing is off. Longer than a workload takes to
    /// become warm.
    pub slow_start: Duration,
    /// Endpoints used at most, of each zone; `None` is 100, and all where a hash decides, for the same key
    /// is to mean the same endpoint for all callers.
    pub endpoints_max: Option<u32>,
    /// The most that is under way with it.
    pub limits: circuit::Limits,
    /// When an endpoint is left out.
    pub outliers: outlier::Settings,
}

/// How this node calls services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstreams {
    others: UpstreamSettings,
    services: BTreeMap<ServiceName, UpstreamSettings>,
    parts: Vec<Part>,
}

/// A part of a service that has a name of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// What it is called.
    pub(crate) name: Arc<str>,
    service: ServiceName,
    pub(crate) subset: Subset,
    pub(crate) settings: UpstreamSettings,
}

/// Which services a section is about.
enum Whom {
    All,
    One(ServiceName),
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            // A runtime that compiles what it runs is warm after some hundred requests.
            slow_start: Duration::from_secs(10),
            endpoints_max: None,
            limits: circuit::Limits::default(),
            outliers: outlier::Settings::default(),
        }
    }
}

impl UpstreamSettings {
    /// Endpoints used at most, of each zone; `None` is all.
    pub(crate) fn endpoints_max(&self) -> Option<usize> {
        match (self.endpoints_max, &self.policy) {
            (Some(most), _) => Some(most as usize),
            (None, Policy::ConsistentHash(_)) => None,
            (None, _) => Some(ENDPOINTS_MAX as usize),
        }
    }
}

impl Upstreams {
    /// How `service` is called.
    pub(crate) fn of(&self, service: &ServiceName) -> &UpstreamSettings {
        self.services.get(service).unwrap_or(&self.others)
    }

    /// The parts of `service`.
    pub(crate) fn parts_of(&self, service: &ServiceName) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.service == *service)
    }

    /// Whether a part is called like `service`.
    pub(crate) fn hides(&self, service: &ServiceName) -> bool {
        self.parts.iter().any(|part| *part.name == *service.as_str())
    }

    fn add_part(&mut self, name: &str, service: ServiceName, subset: Subset, settings: UpstreamSettings) {
        if !self.parts.iter().any(|part| &*part.name == name) {
            self.parts.push(Part { name: name.into(), service, subset, settings });
        }
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::One(service) => service.fmt(f),
        }
    }
}

pub(super) fn read(report: &Report, sections: Vec<Section<'_>>, outbounds: &[Outbound]) -> Upstreams {
    if let Some(section) = sections.get(UPSTREAMS_MAX) {
        let instead = format!("keep at most {UPSTREAMS_MAX}; service = \"*\" is for all without one");
        report.add(section.path(), "too many upstreams", instead);
    }
    let mut upstreams = Upstreams::default();
    for (index, section) in sections.into_iter().enumerate() {
        read_one(section, index, &mut upstreams);
    }
    for outbound in outbounds.iter().filter(|outbound| !outbound.subset.is_whole()) {
        if upstreams.hides(&outbound.service) {
            let problem = format!("{:?} is a part of a service already", outbound.service.as_str());
            report.add("outbound", problem, "name the service itself, or leave out version and tags");
        }
        let settings = upstreams.of(&outbound.service).clone();
        let (service, subset) = (outbound.service.clone(), outbound.subset.clone());
        upstreams.add_part(&outbound.route_name(), service, subset, settings);
    }
    upstreams
}

fn read_one(mut section: Section<'_>, index: usize, upstreams: &mut Upstreams) {
    let whom = section.required("service", "\"payments\"", Reader::text(r"^(\*|[a-z0-9].*)$", whom));
    let name = section.optional("name", service_name());
    let subset = read_subset(&mut section);
    let above = match &whom {
        Some(Whom::One(service)) => upstreams.of(service),
        _ => &upstreams.others,
    };
    let settings = read_settings(&mut section, above);
    if name.is_none() && !subset.is_whole() {
        let problem = "a part of a service needs a name by which it is called";
        section.report().add(
            section.path(),
            problem,
            "add name = \"payments-v2\", or write it in [[outbound]]",
        );
    }
    match (whom, name) {
        (Some(Whom::All), None) => {
            if index > 0 {
                let problem = "what holds for all others stands below some of them";
                section.report().add(&section.path_of("service"), problem, "make it the first [[upstream]]");
            }
            upstreams.others = settings;
        }
        (Some(Whom::All), Some(_)) => {
            let problem = "all services together have no name";
            section.report().add(&section.path_of("name"), problem, "name a service, or remove the key");
        }
        (Some(Whom::One(service)), None) => {
            let problem = format!("{:?} has a section already", service.as_str());
            if upstreams.services.insert(service, settings).is_some() {
                section.report().add(
                    &section.path_of("service"),
                    problem,
                    "keep one, or give this one a name",
                );
            }
        }
        (Some(Whom::One(service)), Some(name)) => {
            if upstreams.parts.iter().any(|part| *part.name == *name.as_str()) {
                let problem = format!("{:?} is the name of an earlier one", name.as_str());
                section.report().add(&section.path_of("name"), problem, "give each a name of its own");
            }
            upstreams.add_part(name.as_str(), service, subset, settings);
        }
        (None, _) => {}
    }
    section.finish();
}

fn whom(given: Given<'_>) -> Result<Whom, Wrong> {
    match text(given)? {
        "*" => Ok(Whom::All),
        _ => service_name().read(given).map(Whom::One),
    }
}

/// The keys that `[[upstream]]` and `[[outbound]]` have in common.
pub(super) fn read_subset(section: &mut Section<'_>) -> Subset {
    let version = section.optional("version", label());
    let tags = section.section("tags").pairs(label());
    if tags.len() > TAGS_MAX {
        let most = format!("ask for at most {TAGS_MAX}; no instance has more");
        section.report().add(&section.path_of("tags"), format!("{} tags", tags.len()), most);
    }
    Subset { version, tags }
}

/// What is left out is as in `above`.
fn read_settings(section: &mut Section<'_>, above: &UpstreamSettings) -> UpstreamSettings {
    let policy = read_policy(section, &above.policy);
    UpstreamSettings {
        policy,
        slow_start: section.or("slow_start", above.slow_start, duration(SLOW_START)),
        endpoints_max: section.optional("endpoints_max", number(ENDPOINTS_USED)).or(above.endpoints_max),
        limits: circuit::Limits {
            connections: section.or("connections_max", above.limits.connections, number(UPSTREAM_WORK)),
            pending: section.or("pending_max", above.limits.pending, number(UPSTREAM_WORK)),
            requests: section.or("requests_max", above.limits.requests, number(UPSTREAM_WORK)),
            // None at all is a choice.
            retries: section.or("retries_max", above.limits.retries, number(0..=*UPSTREAM_WORK.end())),
        },
        outliers: read_outliers(section.section("outliers"), &above.outliers),
    }
}

fn read_policy(section: &mut Section<'_>, above: &Policy) -> Policy {
    let words = ["peak_ewma", "least_request", "round_robin", "consistent_hash"].map(|word| (word, word));
    let word = section.or("policy", above.as_str(), one_of(words));
    let pattern = r"^(header:.+|cookie:.+|source|path)$";
    let hash_on = section.optional("hash_on", Reader::text(pattern, hash_on));
    match (word, hash_on.or_else(|| above.hash_on().cloned())) {
        ("consistent_hash", Some(on)) => return Policy::ConsistentHash(on),
        ("consistent_hash", None) if !section.report().has_mistake_at(&section.path_of("hash_on")) => {
            let add = "add hash_on = \"header:x-user\", or \"cookie:NAME\", \"source\" or \"path\"";
            section.report().add(&section.path_of("policy"), "nothing is said to hash", add);
        }
        (_, Some(_)) if section.is_given("hash_on") => {
            let problem = format!("the policy {word} hashes nothing");
            let right = "remove the key, or write policy = \"consistent_hash\"";
            section.report().add(&section.path_of("hash_on"), problem, right);
        }
        _ => {}
    }
    match word {
        "least_request" => Policy::LeastRequest,
        "round_robin" => Policy::RoundRobin,
        _ => Policy::PeakEwma,
    }
}

fn hash_on(given: Given<'_>) -> Result<HashOn, Wrong> {
    let text = text(given)?;
    let known = "write \"header:x-user\", \"cookie:NAME\", \"source\" or \"path\"";
    match text.split_once(':') {
        None if text == "source" => Ok(HashOn::Source),
        None if text == "path" => Ok(HashOn::Path),
        Some(("header", name)) => match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => Ok(HashOn::Header(name)),
            Err(_) => wrong(format!("{name:?} is no header's name"), known),
        },
        // RFC 6265, section 4.1.1: a token.
        Some(("cookie", name)) if HeaderName::from_bytes(name.as_bytes()).is_ok() => {
            Ok(HashOn::Cookie(name.to_owned()))
        }
        Some(("cookie", name)) => wrong(format!("{name:?} is no cookie's name"), known),
        _ => wrong(format!("{text:?} is nothing that a request has"), known),
    }
}

fn read_outliers(mut section: Section<'_>, above: &outlier::Settings) -> outlier::Settings {
    let settings = outlier::Settings {
        consecutive_errors: section.or(
            "consecutive_errors",
            above.consecutive_errors,
            number(CONSECUTIVE_ERRORS),
        ),
        success_rate: section.or("success_rate", above.success_rate, boolean()),
        latency: section.or("latency", above.latency, boolean()),
        interval: section.or("interval", above.interval, duration(OUTLIER_INTERVAL)),
        requests_min: section.or("requests_min", above.requests_min, number(OUTLIER_REQUESTS)),
        ejection_time: section.or("ejection_time", above.ejection_time, duration(EJECTION_TIME)),
        ejection_time_max: section.or("ejection_time_max", above.ejection_time_max, duration(EJECTION_TIME)),
        ejected_max: section.or("ejected_max", above.ejected_max, percent()),
    };
    if settings.ejection_time > settings.ejection_time_max {
        let (first, most) =
            (show_duration(settings.ejection_time), show_duration(settings.ejection_time_max));
        section.report().add(
            &section.path_of("ejection_time"),
            format!("the first ejection lasts {first}, and any {most} at most"),
            "make it shorter than ejection_time_max",
        );
    }
    section.finish();
    settings
}
