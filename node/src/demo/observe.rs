//! What the nodes themselves say of the mesh, by their admin APIs.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::plan::Plan;
use crate::admin::members::MemberView;
use crate::admin::view::ServiceView;
use crate::cli::ask::Asked;

/// What every node should see before the mesh stands.
#[derive(Clone)]
pub(super) struct Expected {
    /// Members alive.
    pub(super) members: usize,
    /// Healthy instances of all services.
    pub(super) instances: usize,
    /// A restarted member, and the earliest incarnation that is its new life.
    pub(super) reborn: Option<(String, u64)>,
}

/// What one node sees.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    /// Members alive.
    pub(super) members: usize,
    /// Healthy instances of all services.
    pub(super) instances: usize,
}

impl Expected {
    /// Everybody and everything.
    pub(super) fn all_of(plan: &Plan) -> Self {
        Self { members: plan.nodes.len(), instances: plan.instances(), reborn: None }
    }

    /// Whether `seen` is that.
    pub(super) fn is_met_by(&self, seen: Seen) -> bool {
        seen.members == self.members && seen.instances == self.instances
    }

    fn counts(&self, member: &MemberView) -> bool {
        let is_new = |(name, since): &(String, u64)| *name != member.node || member.incarnation >= *since;
        member.state == "alive" && self.reborn.as_ref().is_none_or(is_new)
    }
}

/// What each of `admins` sees; one that does not answer yet sees nothing.
pub(super) async fn look(admins: Vec<SocketAddr>, expected: Arc<Expected>) -> Vec<Seen> {
    let count = admins.len();
    let asked = move || admins.iter().map(|admin| look_at(*admin, &expected).unwrap_or_default()).collect();
    tokio::task::spawn_blocking(asked).await.unwrap_or_else(|_| vec![Seen::default(); count])
}

fn look_at(admin: SocketAddr, expected: &Expected) -> anyhow::Result<Seen> {
    let asked = Asked::at(admin.to_string());
    let members: Vec<MemberView> = asked.get("/v1/members")?;
    let services: Vec<ServiceView> = asked.get("/v1/services")?;
    let instances = services.iter().flat_map(|service| &service.instances);
    Ok(Seen {
        members: members.iter().filter(|member| expected.counts(member)).count(),
        instances: instances.filter(|instance| instance.health == "healthy").count(),
    })
}

/// What `admin` shows at `path`.
pub(super) async fn get<T>(admin: SocketAddr, path: String) -> anyhow::Result<T>
where
    T: DeserializeOwned + Send + 'static,
{
    tokio::task::spawn_blocking(move || Asked::at(admin.to_string()).get(&path)).await?
}
