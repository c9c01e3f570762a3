//! Serf beside it: as many agents on loopback, with their defaults for a local network.
//!
//! Its event is the change; its crash is known when an agent calls the member failed. What agents notice
//! is what they print. Memory, processor time and bytes (UDP and TCP, without their headers) are of the
//! agents alone.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use starling_gossip::clock::{Clock, Instant};
use starling_tests::process::{anonymous_bytes, processor_time, resident_bytes};
use starling_tests::{Mesh, eventually, look_for_program, run_program};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::change::KNOWN;
use crate::crash::SUSPECTED;
use crate::figure::{Figure, Unit};
use crate::idle::{Cost, figures};
use crate::mesh::{Plan, name, say};

/// An agent adds its counters up for so long, and forgets them after a minute.
const COUNTS: Duration = Duration::from_secs(10);

/// Until an agent has printed its counters.
const PRINTS: Duration = Duration::from_secs(1);

/// Between two events.
const EVENT_PERIOD: Duration = Duration::from_secs(2);

/// What Serf did.
pub struct Beside {
    pub version: String,
    pub figures: Vec<Figure>,
}

/// One agent's process. It is killed when this is dropped.
struct Agent {
    process: Child,
    rpc: String,
    printed: Printed,
}

type Printed = Arc<Mutex<Vec<(Instant, String)>>>;

/// `None` if it is not installed.
pub async fn run(plan: &Plan) -> Option<Beside> {
    let program = look_for_program("serf")?;
    let said = run_program("serf", ["version"], &[]).await.out;
    let version = said.lines().next().unwrap_or_default().to_owned();
    say(&format!("{} agents of Serf {version} start", plan.nodes));
    let mut agents = start(plan, &program).await;
    let mut figures = idle(plan, &agents).await;
    figures.extend(events(plan, &agents).await);
    figures.extend(crashes(plan, &mut agents).await);
    for agent in &mut agents {
        let _ = agent.process.kill().await;
    }
    Some(Beside { version, figures })
}

async fn start(plan: &Plan, program: &PathBuf) -> Vec<Agent> {
    let mesh = Mesh::new();
    let mut agents: Vec<Agent> = Vec::new();
    let first = mesh.free_address().to_string();
    for index in 0..plan.nodes {
        let bind = if index == 0 { first.clone() } else { mesh.free_address().to_string() };
        let rpc = mesh.free_address().to_string();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec setpriv --pdeathsig KILL -- \"$@\" 2>&1", "sh"]).arg(program).arg("agent");
        command.args([format!("-node={}", name(index)), format!("-bind={bind}"), format!("-rpc-addr={rpc}")]);
        if index > 0 {
            command.args([format!("-retry-join={first}"), "-retry-interval=1s".to_owned()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().expect("an agent");
        let printed = Printed::default();
        tokio::spawn(read(process.stdout.take().expect("a pipe"), printed.clone()));
        agents.push(Agent { process, rpc, printed });
    }
    for agent in &agents {
        eventually("an agent of Serf to know all", async || {
            (agent.times("EventMemberJoin: ").len() >= plan.nodes).then_some(())
        })
        .await;
    }
    agents
}

async fn read(from: ChildStdout, printed: Printed) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        printed.lock().expect("nobody panicked").push((Clock::System.now(), line));
    }
}

async fn idle(plan: &Plan, agents: &[Agent]) -> Vec<Figure> {
    // So much of the last minute is kept; it begins when all is quiet.
    let periods = if plan.is_quick { 1 } else { 2 };
    tokio::time::sleep(if plan.is_quick { COUNTS / 2 } else { COUNTS }).await;
    let before: Vec<_> = agents.iter().map(|agent| processor_time(agent.pid())).collect();
    let began = Clock::System.now();
    tokio::time::sleep(COUNTS * periods + COUNTS).await;
    let took = Clock::System.now() - began;
    let cost = |(agent, before): (&Agent, Duration)| Cost {
        resident: resident_bytes(agent.pid()) as f64,
        anonymous: anonymous_bytes(agent.pid()) as f64,
        percent: (processor_time(agent.pid()) - before).as_secs_f64() / took.as_secs_f64() * 100.0,
        sent_per_second: 0.0,
    };
    let mut costs: Vec<_> = agents.iter().zip(before).map(cost).collect();
    for agent in agents {
        kill_process(agent.pid(), Signal::USR1).expect("a signal");
    }
    tokio::time::sleep(PRINTS).await;
    for (agent, cost) in agents.iter().zip(&mut costs) {
        cost.sent_per_second = agent.sent(periods as usize) / (COUNTS * periods).as_secs_f64();
    }
    figures(&costs, [None; 3])
}

async fn events(plan: &Plan, agents: &[Agent]) -> Vec<Figure> {
    let mut delays = Vec::new();
    for event in 0..plan.changes / 2 {
        let (event, from) = (format!("change-{event}"), event * 7 % agents.len());
        let rpc = format!("-rpc-addr={}", agents[from].rpc);
        let done = run_program("serf", ["event", "-coalesce=false", &rpc, &event], &[]).await;
        assert_eq!(done.code, 0, "{}", done.err);
        tokio::time::sleep(EVENT_PERIOD).await;
        let printed = format!("Received event: user-event: {event}");
        // It begins when its own agent knows it: the command line takes longer than the way.
        let at = agents[from].times(&printed).first().copied();
        let others = agents.iter().enumerate().filter(|(index, _)| *index != from);
        delays.extend(others.map(|(_, agent)| since(at, agent.times(&printed).first().copied())));
    }
    Figure::of(KNOWN, Unit::Millis, &delays, [("p50", None), ("p99", None), ("max", None)])
}

async fn crashes(plan: &Plan, agents: &mut Vec<Agent>) -> Vec<Figure> {
    let mut delays = Vec::new();
    for _ in 0..plan.crashes.div_ceil(3) {
        let (victim, mut agent) = (name(agents.len() - 1), agents.pop().expect("agents"));
        let at = Clock::System.now();
        agent.process.kill().await.expect("killed");
        let printed = format!("EventMemberFailed: {victim} ");
        for agent in agents.iter() {
            eventually("Serf to notice a crash", async || (!agent.times(&printed).is_empty()).then_some(()))
                .await;
        }
        delays.extend(agents.iter().map(|agent| since(Some(at), agent.times(&printed).first().copied())));
    }
    Figure::of(SUSPECTED, Unit::Millis, &delays, [("p50", None), ("p99", None), ("max", None)])
}

fn since(at: Option<Instant>, then: Option<Instant>) -> f64 {
    let delay = at.zip(then).map(|(at, then)| then.saturating_duration_since(at));
    delay.map_or(f64::INFINITY, |delay| delay.as_secs_f64() * 1000.0)
}

impl Agent {
    fn pid(&self) -> Pid {
        let id = self.process.id().expect("a running agent");
        Pid::from_raw(i32::try_from(id).expect("a process id")).expect("not 0")
    }

    /// When it printed `text`.
    fn times(&self, text: &str) -> Vec<Instant> {
        let printed = self.printed.lock().expect("nobody panicked");
        printed.iter().filter(|(_, line)| line.contains(text)).map(|(at, _)| *at).collect()
    }

    /// Bytes sent in the last `periods` that its counters tell of.
    fn sent(&self, periods: usize) -> f64 {
        let printed = self.printed.lock().expect("nobody panicked");
        // [2026-01-31 12:34:50 +0000 UTC][C] 'serf-agent.memberlist.udp.sent': Count: 2 … Sum: 386.000 …
        let counters = printed.iter().filter_map(|(_, line)| line.strip_prefix('[')?.split_once("][C] "));
        let counters: Vec<_> = counters.collect();
        let mut begins: Vec<_> = counters.iter().map(|(begin, _)| *begin).collect();
        begins.dedup();
        let last = &begins[begins.len().saturating_sub(periods)..];
        let sent = counters.iter().filter(|(begin, counter)| {
            last.contains(begin) && ["udp.sent'", "tcp.sent'"].iter().any(|name| counter.contains(name))
        });
        let sum = |counter: &str| counter.split_once("Sum: ")?.1.split(' ').next()?.parse::<f64>().ok();
        sent.filter_map(|(_, counter)| sum(counter)).sum()
    }
}
