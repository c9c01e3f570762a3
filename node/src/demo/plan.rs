//! PURE: a number of sidecars in, who they are and each one's configuration out.
//!
//! One node only calls (`shop`); the others serve `web` and `orders`, one workload behind each
//! sidecar.

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// A caller, and two instances to move between.
pub(crate) const NODES_MIN: usize = 3;

/// Each is two processes; a laptop carries a hundred of them.
pub(crate) const NODES_MAX: usize = 50;

/// The mesh's name.
pub(crate) const TRUST_DOMAIN: &str = "demo";

/// The node without a service of its own.
pub(crate) const CALLER: &str = "shop";

/// The service that loses an instance.
pub(crate) const WEB: &str = "web";

const ORDERS: &str = "orders";

/// Nodes that others ask to find the mesh; two, so that neither is needed.
const SEEDS: usize = 2;

/// Who takes part.
pub(crate) struct Plan {
    /// The caller first.
    pub(crate) nodes: Vec<NodePlan>,
}

/// One sidecar, and the workload behind it.
#[derive(Clone)]
pub(crate) struct NodePlan {
    /// Unique in the mesh.
    pub(crate) name: String,
    /// What its workload serves, if it has one.
    pub(crate) service: Option<&'static str>,
}

/// Where one node listens.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    /// Gossip and traffic, UDP.
    pub(crate) listen: SocketAddr,
    /// The admin API.
    pub(crate) admin: SocketAddr,
    /// HTTP by name.
    pub(crate) http_proxy: SocketAddr,
    /// Its workload's.
    pub(crate) workload: SocketAddr,
}

impl Plan {
    /// A mesh of `nodes` sidecars: one caller, and two in five of the others serve orders.
    pub(crate) fn new(nodes: usize) -> Self {
        let serving = nodes.clamp(NODES_MIN, NODES_MAX) - 1;
        let orders = if serving > 2 { serving * 2 / 5 } else { 0 };
        let caller = NodePlan { name: CALLER.to_owned(), service: None };
        let instance = |service: &'static str| {
            move |number: usize| NodePlan { name: format!("{service}-{number}"), service: Some(service) }
        };
        let web = (1..=serving - orders).map(instance(WEB));
        let nodes = std::iter::once(caller).chain(web).chain((1..=orders).map(instance(ORDERS)));
        Self { nodes: nodes.collect() }
    }

    /// Which node crashes: the last that serves `web`, which is nobody's only seed.
    pub(crate) fn victim(&self) -> usize {
        self.nodes.iter().rposition(|node| node.service == Some(WEB)).unwrap_or(0)
    }

    /// Services and how many instances each has.
    pub(crate) fn services(&self) -> BTreeMap<&'static str, usize> {
        let mut services = BTreeMap::new();
        for service in self.nodes.iter().filter_map(|node| node.service) {
            *services.entry(service).or_default() += 1;
        }
        services
    }

    /// Instances of all services.
    pub(crate) fn instances(&self) -> usize {
        self.nodes.iter().filter(|node| node.service.is_some()).count()
    }
}

impl NodePlan {
    /// Who it is: instances of a service share an identity.
    pub(crate) fn identity(&self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/svc/{}", self.service.unwrap_or(&self.name))
    }

    /// Its configuration file. Certificates are where a node looks for them: beside the file.
    pub(crate) fn configuration(&self, at: &Addresses, all: &[Addresses]) -> String {
        let seeds: Vec<String> = all.iter().take(SEEDS).map(|seed| format!("\"{}\"", seed.listen)).collect();
        let mut text = format!(
            "[node]\nname   = \"{}\"\nlisten = \"{}\"\n\n[mesh]\nseeds = [{}]\n\n[http_proxy]\nlisten = \"{}\"\n\n\
             [admin]\nlisten = \"{}\"\n",
            self.name,
            at.listen,
            seeds.join(", "),
            at.http_proxy,
            at.admin,
        );
        if let Some(service) = self.service {
            text += &format!(
                "\n[[service]]\nname    = \"{service}\"\naddress = \"{}\"\n  [service.probe]\n  http = \"/healthz\"\n",
                at.workload
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn addresses(port: u16) -> Addresses {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        Addresses { listen: at(port), admin: at(port + 1), http_proxy: at(port + 2), workload: at(port + 3) }
    }

    #[test]
    fn every_mesh_has_a_caller_and_somewhere_to_move_to() {
        for count in NODES_MIN..=NODES_MAX {
            let plan = Plan::new(count);
            assert_eq!(plan.nodes.len(), count);
            assert_eq!(plan.nodes.iter().filter(|node| node.service.is_none()).count(), 1);
            assert!(plan.services()[WEB] >= 2, "{count}");
            assert_eq!(plan.nodes[plan.victim()].service, Some(WEB));
            assert!(plan.victim() > 1, "{count}: a seed crashes");
        }
        assert_eq!(Plan::new(6).services(), BTreeMap::from([(WEB, 3), (ORDERS, 2)]));
    }

    #[test]
    fn configurations_are_sound() {
        let directory = tempfile::tempdir().expect("a directory");
        let plan = Plan::new(4);
        let all: Vec<Addresses> = (0..4).map(|index| addresses(20_000 + index * 10)).collect();
        for (node, at) in plan.nodes.iter().zip(&all) {
            let path = directory.path().join(&node.name);
            std::fs::write(&path, node.configuration(at, &all)).expect("a file");
            let config = Config::load(&path, []).map_err(|mistakes| mistakes.to_string());
            let config = config.expect("a sound configuration");
            assert_eq!(config.services.len(), usize::from(node.service.is_some()));
            assert_eq!(config.mesh.seeds.len(), SEEDS);
        }
    }
}
