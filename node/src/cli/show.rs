//! What the local node shows, as tables: services, instances, routes; and its few actions.

use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use starling_gossip::record::Locality;

use super::ask::Asked;
use super::output::{Failure, Output};
use super::table::{age, table};
use crate::admin::routes::{CandidateView, RouteView};
use crate::admin::view::{InstanceView, LocalInstanceView, ServiceView};
use crate::reload::plan::NeedsRestart;

/// What is said of an instance that its service's panic keeps.
const KEPT: &str = "kept: its lease ran out with most others of the service";

#[derive(Debug, clap::Args)]
pub(super) struct RouteArguments {
    /// Only this service's.
    service: Option<String>,
    #[command(flatten)]
    asked: Asked,
}

pub(super) fn ready(asked: &Asked, output: Output) -> Result<(), Failure> {
    asked.request("GET", "/ready").context("not ready")?;
    output.print("ready", &json!({ "ready": true }));
    Ok(())
}

pub(super) fn services(asked: &Asked, output: Output) -> Result<(), Failure> {
    let services: Vec<ServiceView> = asked.get("/v1/services")?;
    print(output, &services, services_table)
}

pub(super) fn instances(asked: &Asked, output: Output) -> Result<(), Failure> {
    let instances: Vec<LocalInstanceView> = asked.get("/v1/instances")?;
    print(output, &instances, instances_table)
}

pub(super) fn routes(arguments: &RouteArguments, output: Output) -> Result<(), Failure> {
    let routes: Vec<RouteView> = match &arguments.service {
        Some(service) => vec![arguments.asked.get(&format!("/v1/routes/{service}"))?],
        None => arguments.asked.get("/v1/routes")?,
    };
    print(output, &routes, routes_table)
}

pub(super) fn act(asked: &Asked, action: &str, output: Output) -> Result<(), Failure> {
    let answer: Value = asked.post(&format!("/v1/{action}"))?;
    output.print(&format!("the node at {} begins to {action}", asked.admin), &answer);
    Ok(())
}

pub(super) fn reload(asked: &Asked, output: Output) -> Result<(), Failure> {
    let answer: Value = asked.post("/v1/reload")?;
    let list = |field: &str| answer[field].as_array().cloned().unwrap_or_default();
    let mut lines: Vec<String> =
        list("changes").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    if lines.is_empty() {
        lines.push("nothing has changed that a running node takes over".to_owned());
    }
    let needs_restart = list("needs_restart").into_iter().flat_map(serde_json::from_value::<NeedsRestart>);
    lines.extend(needs_restart.map(|one| format!("needs a restart: {one}")));
    output.print(&lines.join("\n"), &answer);
    Ok(())
}

pub(super) fn print<T: Serialize + DeserializeOwned>(
    output: Output,
    rows: &[T],
    shown: impl Fn(&[T]) -> String,
) -> Result<(), Failure> {
    let json = serde_json::to_value(rows).map_err(anyhow::Error::from)?;
    output.print(&shown(rows), &json);
    Ok(())
}

fn instances_table(instances: &[LocalInstanceView]) -> String {
    let row = |instance: &LocalInstanceView| {
        [
            instance.id.clone(),
            instance.service.clone(),
            instance.address.clone(),
            instance.health.clone(),
            instance.source.clone(),
            instance.ttl_remaining_ms.map_or_else(|| "-".to_owned(), age),
            instance.reason.clone().unwrap_or_default(),
        ]
    };
    let head = ["ID", "SERVICE", "ADDRESS", "HEALTH", "SOURCE", "TTL LEFT", "REASON"];
    table(head, &instances.iter().map(row).collect::<Vec<_>>())
}

/// `/v1/services` for people.
pub(crate) fn services_table(services: &[ServiceView]) -> String {
    let row = |service: &ServiceView, instance: &InstanceView| {
        [
            service.name.clone(),
            instance.health.clone(),
            instance.node.clone(),
            instance.id.clone(),
            instance.protocol.clone(),
            instance.version.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            instance.weight.to_string(),
            locality(&instance.locality),
            age(instance.age_ms),
            if instance.retained { KEPT.to_owned() } else { String::new() },
        ]
    };
    let rows: Vec<_> = services
        .iter()
        .flat_map(|service| service.instances.iter().map(move |instance| row(service, instance)))
        .collect();
    table(["service", "health", "node", "id", "protocol", "version", "weight", "locality", "age", ""], &rows)
}

/// `/v1/routes` for people.
pub(crate) fn routes_table(routes: &[RouteView]) -> String {
    let used = |route: &RouteView, candidate: &CandidateView| {
        [
            route.name.clone(),
            route.policy.clone(),
            candidate.node.clone(),
            candidate.id.clone(),
            format!("{:.0}%", candidate.share),
            candidate.estimate_ms.map_or_else(|| "-".to_owned(), |millis| format!("{millis:.1} ms")),
            candidate.in_flight.to_string(),
            candidate.requests.to_string(),
            candidate.address.clone(),
            notes(candidate),
        ]
    };
    let mut rows = Vec::new();
    for route in routes {
        rows.extend(route.candidates.iter().map(|candidate| used(route, candidate)));
        for excluded in &route.excluded {
            let (name, policy, none) = (route.name.clone(), route.policy.clone(), || "-".to_owned());
            let (node, id, reason) = (excluded.node.clone(), excluded.id.clone(), excluded.reason.clone());
            rows.push([name, policy, node, id, "0%".to_owned(), none(), none(), none(), none(), reason]);
        }
    }
    let head = ["service", "policy", "node", "id", "share", "takes", "in flight", "requests", "address", ""];
    table(head, &rows)
}

fn notes(candidate: &CandidateView) -> String {
    let kept = candidate.retained.then(|| KEPT.to_owned());
    let ejected = candidate
        .ejected
        .as_ref()
        .map(|ejected| format!("out ({}) until a trial in {}", ejected.reason, age(ejected.trial_in_ms)));
    let is_new = candidate.readiness < 100.0;
    let newcomer = is_new.then(|| format!("a newcomer, at {:.0} % of its share", candidate.readiness));
    let notes = [kept, ejected, newcomer, candidate.trouble.clone()];
    notes.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

pub(super) fn locality(locality: &Locality) -> String {
    let levels = [&locality.region, &locality.zone, &locality.site];
    let named: Vec<_> = levels.into_iter().flatten().map(ToString::to_string).collect();
    if named.is_empty() { "-".to_owned() } else { named.join("/") }
}
