//! The mesh that is measured, and what its nodes have logged of each other.
//!
//! The first nodes call; pairs after them serve a service each, one of which will crash; the others
//! serve a service of their own, as the callers do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use starling_gossip::clock::Clock;
use starling_tests::log::{Line, Moment, Notice, lines};
use starling_tests::workload::Http;
use starling_tests::{Mesh, Node, NodeConfig, eventually};

/// Nodes that all others are told of. None of them crashes.
const SEEDS: usize = 3;

/// What a call to one of a pair takes there. Callers prefer who has less to do, and would never try a dead
/// instance again if the living one were always idle.
const WORK: Duration = Duration::from_millis(100);

/// What was logged before an event is a day less that long after it: times are those of a day.
const EVENT_MAX: Duration = Duration::from_secs(3600);

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub nodes: usize,
    pub is_quick: bool,
    /// Nodes whose workloads call.
    pub callers: usize,
    pub changes: usize,
    pub joins: usize,
    pub crashes: usize,
    /// From when all know all until costs are measured.
    pub settles: Duration,
    /// For how long costs are measured.
    pub idle: Duration,
}

/// The running mesh.
pub struct Stage {
    pub plan: Plan,
    pub mesh: Mesh,
    pub nodes: Vec<Node>,
    program: PathBuf,
    workloads: Vec<Http>,
    killed: Vec<(usize, Moment)>,
}

/// Something that others are to notice.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// When it was done.
    pub at: Moment,
    /// To which node.
    pub node: usize,
    /// How it is noticed.
    pub notice: Notice,
}

/// How long a node took to notice an event.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    /// Who noticed.
    pub observer: usize,
    /// To whom it was done.
    pub subject: usize,
    /// Infinite if it never did.
    pub millis: f64,
}

impl Plan {
    /// For `nodes`; if they are too few, how many it takes.
    pub fn new(nodes: usize, is_quick: bool) -> Result<Self, usize> {
        let seconds = Duration::from_secs;
        let plan = match is_quick {
            false => Self {
                nodes,
                is_quick,
                callers: 5,
                changes: 10,
                joins: 5,
                crashes: 5,
                settles: seconds(20),
                idle: seconds(60),
            },
            true => Self {
                nodes,
                is_quick,
                callers: 3,
                changes: 4,
                joins: 2,
                crashes: 2,
                settles: seconds(5),
                idle: seconds(20),
            },
        };
        let least = plan.callers + 2 * plan.crashes;
        if nodes < least { Err(least) } else { Ok(plan) }
    }

    /// The node that will crash, and the one that serves the same.
    pub fn pair(&self, crash: usize) -> [usize; 2] {
        let first = self.callers + 2 * crash;
        [first, first + 1]
    }

    /// What a node serves.
    pub fn service(&self, node: usize) -> String {
        match (0..self.crashes).find(|crash| self.pair(*crash).contains(&node)) {
            Some(crash) => pair_service(crash),
            None => name(node),
        }
    }

    /// Nodes whose service is their own.
    pub fn alone(&self) -> Vec<usize> {
        (0..self.nodes).filter(|node| self.service(*node) == name(*node)).collect()
    }
}

impl Stage {
    /// Starts everybody, and waits until all know all.
    pub async fn start(plan: Plan, program: PathBuf) -> Self {
        say(&format!("{} nodes of {} start", plan.nodes, program.display()));
        let mesh = Mesh::new();
        let addresses: Vec<_> = (0..plan.nodes).map(|_| mesh.free_address()).collect();
        let (mut nodes, mut workloads) = (Vec::new(), Vec::new());
        for (index, listen) in addresses.iter().enumerate() {
            let workload = Http::start(mesh.ip(), &name(index)).await;
            let node = configure(mesh.node(&name(index)), &program).seeds(&addresses[..SEEDS]);
            if plan.service(index) != name(index) {
                workload.works_for(WORK);
            }
            nodes.push(node.serves(&plan.service(index), workload.address()).start_at(*listen).await);
            workloads.push(workload);
        }
        let stage = Self { plan, mesh, nodes, program, workloads, killed: Vec::new() };
        for node in &stage.nodes {
            knows_all(node, plan.nodes).await;
        }
        stage
    }

    /// A node more, to be started.
    pub fn newcomer(&self, name: &str) -> NodeConfig<'_> {
        let seeds: Vec<_> = self.nodes[..SEEDS].iter().map(Node::listen).collect();
        configure(self.mesh.node(name), &self.program).seeds(&seeds)
    }

    /// SIGKILL to a node; its workload lives on.
    pub async fn kill(&mut self, node: usize) -> Event {
        let at = moment();
        self.nodes[node].kill().await;
        self.killed.push((node, at));
        Event { at, node, notice: Notice::Suspect }
    }

    /// How long each other node took to notice each of `events`. Nodes that were killed are not asked.
    pub fn delays(&self, events: &[Event]) -> Vec<Delay> {
        let is_living = |observer: &usize| self.killed.iter().all(|(node, _)| node != observer);
        let logs = (0..self.nodes.len()).filter(is_living).map(|observer| (observer, self.log(observer)));
        let seen = |(observer, log): (usize, Vec<Line>)| {
            let others = events.iter().filter(|event| event.node != observer);
            let delay = |event: &Event| Delay { observer, subject: event.node, millis: first(&log, event) };
            others.map(delay).collect::<Vec<_>>()
        };
        logs.flat_map(seen).collect()
    }

    /// How often a node showed another as suspect that had not been killed.
    pub fn false_suspicions(&self) -> usize {
        let is_true = |line: &Line, subject| {
            let after = |(node, at): &(usize, Moment)| *node == subject && line.at().since(*at) < EVENT_MAX;
            self.killed.iter().any(after)
        };
        let is_false = |line: &&Line| matches!(line.notice(), Some((subject, Notice::Suspect)) if !is_true(line, subject));
        (0..self.nodes.len()).map(|observer| self.log(observer).iter().filter(is_false).count()).sum()
    }

    /// Ends everybody.
    pub async fn end(mut self) -> Plan {
        for node in &mut self.nodes {
            node.kill().await;
        }
        drop(self.workloads);
        self.plan
    }

    fn log(&self, node: usize) -> Vec<Line> {
        lines(&self.nodes[node].log())
    }
}

/// As a node is by default, but for its log.
fn configure<'m>(node: NodeConfig<'m>, program: &Path) -> NodeConfig<'m> {
    // It ends with this program, however that ends.
    let die = format!("set -- \"$@\" --die-with {}", std::process::id());
    let node = node.program(program).after(&die).gossip("");
    let node = node.environment("STARLING_LOG__LEVEL", "warn,starling_gossip=debug");
    node.environment("STARLING_LOG__FORMAT", "json")
}

async fn knows_all(node: &Node, nodes: usize) {
    eventually(&format!("{} to know all", node.name()), async || {
        let members = node.admin().get("/v1/members").await.json;
        let services = node.admin().get("/v1/services").await.json;
        let alive = members.as_array()?.iter().filter(|member| member["state"] == "alive").count();
        let instances = services.as_array()?.iter().filter_map(|service| service["instances"].as_array());
        let healthy = instances.flatten().filter(|instance| instance["health"] == "healthy").count();
        (alive == nodes && healthy == nodes).then_some(())
    })
    .await;
}

fn first(log: &[Line], event: &Event) -> f64 {
    let is_it = |line: &&Line| line.notice() == Some((event.node, event.notice));
    let delays = log.iter().filter(is_it).map(|line| line.at().since(event.at));
    let first = delays.filter(|delay| *delay < EVENT_MAX).min();
    first.map_or(f64::INFINITY, |delay| delay.as_secs_f64() * 1000.0)
}

/// Now, as logs tell it.
pub fn moment() -> Moment {
    Moment::of_unix_millis(Clock::System.wall().unix_millis)
}

/// A node's name; [`starling_tests::log`] reads it.
pub fn name(node: usize) -> String {
    format!("node-{node}")
}

/// What both of a pair serve.
pub fn pair_service(crash: usize) -> String {
    format!("pair-{crash}")
}

/// The delays in milliseconds; those that are longer than `most` are told, for somebody will ask who it was.
pub fn millis(what: &str, delays: &[Delay], most: f64) -> Vec<f64> {
    for Delay { observer, subject, millis } in delays.iter().filter(|delay| delay.millis > most) {
        say(&format!("  {what}, late: node-{subject} by node-{observer}, {millis:.0} ms"));
    }
    delays.iter().map(|delay| delay.millis).collect()
}

/// How far it is, for who waits.
pub fn say(what: &str) {
    eprintln!("{what}");
}
