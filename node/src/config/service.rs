//! `[[service]]` and `[[outbound]]`: what the workload serves, and what it calls by a fixed port.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use starling_gossip::identity::ServiceName;
use starling_gossip::limits::{INSTANCES_PER_OWNER_MAX, LABEL_BYTES_MAX, TAGS_MAX};
use starling_gossip::record::{Label, Protocol};

use super::access::read_allow;
use super::address::{TlsScheme, WorkloadAddress};
use super::limits::{OUTBOUNDS_MAX, WEIGHT_MAX};
use super::listen::{ListenAddress, local_listen_address};
use super::probe::{self, Probe};
use super::reader::Reader;
use super::relations::Claims;
use super::section::Section;
use super::timeouts::{self, Timeouts};
use super::upstream;
use super::value::{boolean, label, number, one_of, service_name, text};
use super::workload_tls::{self, WorkloadTls};
use crate::authz::Allow;
use crate::route::subset::Subset;

/// `[[service]]`: one workload of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Names the instance on this node; the service's name by default, with a number where that is
    /// taken. Unique.
    pub id: Label,
    /// What it serves.
    pub name: ServiceName,
    /// Where it listens.
    pub address: WorkloadAddress,
    /// Whom to believe there; `Some` where the address says TLS.
    pub tls: Option<WorkloadTls>,
    /// How it speaks.
    pub protocol: Protocol,
    /// Whether it hears of each caller by the PROXY protocol, version 2, before the first byte. For
    /// TCP only: HTTP workloads have a header.
    pub proxy_protocol: bool,
    /// Its version, for routing.
    pub version: Option<Label>,
    /// Free labels, for routing.
    pub tags: BTreeMap<Label, Label>,
    /// Its share among the service's instances; 0 takes no new work.
    pub weight: u16,
    /// Who may call it.
    pub allow: Allow,
    /// How its health is asked; by connecting, unless something else is said. `None`: not at all, it
    /// counts as healthy until calls fail.
    pub probe: Option<Probe>,
}

/// `[[outbound]]`: a local port or Unix socket that leads to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// Where local callers connect.
    pub listen: ListenAddress,
    /// Where they end up.
    pub service: ServiceName,
    /// Which part of the service that is.
    pub subset: Subset,
    /// How long calls may take.
    pub timeouts: Timeouts,
}

impl Outbound {
    /// What the route is called that its calls take.
    pub(crate) fn route_name(&self) -> String {
        self.subset.route_name(self.service.as_str())
    }
}

impl Service {
    /// Whether `other` describes the same workload: what is known of one holds for the other.
    pub(crate) fn is_same_workload(&self, other: &Self) -> bool {
        (&self.name, &self.address, &self.tls) == (&other.name, &other.address, &other.tls)
            && (self.protocol, self.proxy_protocol) == (other.protocol, other.proxy_protocol)
    }
}

/// `host:port`, `https://host:port`, `tls://host:port` or `unix:/path`; the reader says more.
const WORKLOAD_ADDRESS: &str = r"^(unix:/.*|((https|tls)://)?[^/]+:\+?[0-9]+)$";

pub(super) fn read_services(
    mut sections: Vec<Section<'_>>,
    base: &Path,
    claims: &mut Claims,
) -> Vec<Service> {
    if let Some(section) = sections.get(INSTANCES_PER_OWNER_MAX) {
        let most = format!("one node announces at most {INSTANCES_PER_OWNER_MAX}; start another node");
        section.report().add(section.path(), "too many services", most);
    }
    let ids = read_ids(&mut sections);
    let mut taken: BTreeSet<Label> = ids.iter().flatten().cloned().collect();
    let read = sections.into_iter().zip(ids).map(|(section, id)| {
        read_service(section, "name", base, claims, |name| id.or_else(|| free_id(name, &mut taken)))
    });
    // Read all of them first: the walk must not stop at the first that is wrong.
    let read: Vec<Option<Service>> = read.collect();
    read.into_iter().flatten().collect()
}

/// The ids that were given, before any default is made up.
fn read_ids(sections: &mut [Section<'_>]) -> Vec<Option<Label>> {
    let mut seen = BTreeSet::new();
    let mut ids = Vec::new();
    for section in sections {
        let id = section.optional("id", label());
        if let Some(id) = &id
            && !seen.insert(id.clone())
        {
            let problem = format!("{:?} is the id of an earlier service", id.as_str());
            section.report().add(
                &section.path_of("id"),
                problem,
                "give each service an id of its own, or none",
            );
        }
        ids.push(id);
    }
    ids
}

/// Reads one service, whose name stands at `name_key`; `id_of` finds its id. `None` has been reported.
pub(super) fn read_service(
    mut section: Section<'_>,
    name_key: &'static str,
    base: &Path,
    claims: &mut Claims,
    id_of: impl FnOnce(&ServiceName) -> Option<Label>,
) -> Option<Service> {
    let name = section.required(name_key, "\"payments\"", service_name());
    let address = section.required(
        "address",
        "\"127.0.0.1:8080\"",
        Reader::text(WORKLOAD_ADDRESS, |given| text(given)?.parse()),
    );
    address.iter().for_each(|address| claims.workload(&section, address));
    let protocols = [("http", Protocol::Http), ("tcp", Protocol::Tcp)];
    let protocol = section.or("protocol", Protocol::Http, one_of(protocols));
    if let Some(WorkloadAddress::Tls { scheme, .. }) = &address {
        check_scheme(&section, *scheme, protocol);
    }
    let proxy_protocol = section.or("proxy_protocol", false, boolean());
    if proxy_protocol && protocol == Protocol::Http {
        let problem = "HTTP workloads hear who calls in the header x-starling-peer";
        let suggestion = "remove the key, or write protocol = \"tcp\"";
        section.report().add(&section.path_of("proxy_protocol"), problem, suggestion);
    }
    let tls = workload_tls::read(&mut section, address.as_ref(), base);
    let version = section.optional("version", label());
    let tags = section.section("tags").pairs(label());
    if tags.len() > TAGS_MAX {
        let most = format!("keep at most {TAGS_MAX}; every node of the mesh stores them");
        section.report().add(&section.path_of("tags"), format!("{} tags", tags.len()), most);
    }
    let weight = section.or("weight", 100, number(0..=WEIGHT_MAX));
    let allow = read_allow(&mut section);
    let has_probe = section.has("probe");
    let probe = section.section("probe");
    let probe = if has_probe { probe::read(probe, base) } else { Some(Probe::of_accepting()) };
    let id = name.as_ref().and_then(id_of);
    section.follows("id", id.as_ref());
    section.finish();

    let (name, address, id) = (name?, address?, id?);
    Some(Service { id, name, address, tls, protocol, proxy_protocol, version, tags, weight, allow, probe })
}

/// Both say what the workload speaks.
fn check_scheme(section: &Section<'_>, scheme: TlsScheme, protocol: Protocol) {
    let (problem, right) = match (scheme, protocol) {
        (TlsScheme::Https, Protocol::Tcp) => ("https:// is HTTP, and the protocol is tcp", "tls://"),
        (TlsScheme::Tls, Protocol::Http) => {
            ("tls:// is for protocol = \"tcp\", and this is http", "https://")
        }
        _ => return,
    };
    section.report().add(&section.path_of("address"), problem, format!("write {right} or another protocol"));
}

/// `payments`, or `payments-2`, `payments-3` … where that is taken.
fn free_id(name: &ServiceName, taken: &mut BTreeSet<Label>) -> Option<Label> {
    let candidates = (1..).map(|number| {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        // Names may be longer than labels; both are ASCII.
        let room = LABEL_BYTES_MAX - suffix.len();
        let start = &name.as_str()[..name.as_str().len().min(room)];
        format!("{start}{suffix}").parse::<Label>()
    });
    let id = candidates.flatten().find(|id| !taken.contains(id))?;
    taken.insert(id.clone());
    Some(id)
}

pub(super) fn read_outbounds(sections: Vec<Section<'_>>, claims: &mut Claims) -> Vec<Outbound> {
    if let Some(section) = sections.get(OUTBOUNDS_MAX) {
        let instead = format!("use at most {OUTBOUNDS_MAX}, and [http_proxy] for HTTP by name");
        section.report().add(section.path(), "too many outbounds", instead);
    }
    let read = sections.into_iter().map(|mut section| {
        let listen = section.required("listen", "\"127.0.0.1:9001\"", local_listen_address());
        listen.iter().for_each(|listen| claims.local(&section, listen));
        let service = section.required("service", "\"payments\"", service_name());
        let subset = upstream::read_subset(&mut section);
        let timeouts = timeouts::read(&mut section);
        section.finish();
        Some(Outbound { listen: listen?, service: service?, subset, timeouts })
    });
    let read: Vec<Option<Outbound>> = read.collect();
    read.into_iter().flatten().collect()
}
