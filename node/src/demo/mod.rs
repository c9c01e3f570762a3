//! `starling demo`: a whole mesh on this machine, and what happens to it when a node crashes.
//!
//! Every sidecar and every workload is a process of its own, on loopback, under a certificate
//! authority made for the occasion. The demo is only their parent and a client: what it shows, it
//! asks from the sidecars' admin APIs, and its traffic goes through one of them.

mod observe;
mod plan;
mod ports;
mod process;
mod report;
mod stage;
mod traffic;
mod workload;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::header::HeaderValue;
use starling_gossip::clock::{Clock, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::admin::members::MemberView;
use crate::admin::routes::{CandidateView, RouteView};
use crate::cli::members::members_table;
use crate::cli::show::routes_table;
use observe::{Expected, Seen};
use plan::{CALLER, Plan, WEB};
use report::{Crash, Measured, Narrator, time};
use stage::{Died, Stage};
use traffic::{Load, Tally};

pub(crate) use plan::{NODES_MAX, NODES_MIN};
pub(crate) use process::die_with;

/// More would take longer than anybody watches: half an hour at the fastest pace.
pub(crate) const REQUESTS_MAX: u64 = 1_000_000;

/// Traffic lasts about so long, as far as the paces allow.
const TRAFFIC_SECONDS: u64 = 10;

/// The slowest pace: requests are on their way when the node dies.
const RATE_MIN: u64 = 200;

/// The fastest pace: a mesh on two cores is not what is measured.
const RATE_MAX: u64 = 500;

/// How much of the traffic has been sent when the node dies, in percent.
const CRASH_AT: u64 = 40;

/// A mesh that does not stand by then will not.
const CONVERGE_MAX: Duration = Duration::from_secs(20);

/// How often nodes are asked while the mesh forms.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// How often the traffic's progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// How often a mesh that stays up is looked after.
const KEEP_PERIOD: Duration = Duration::from_millis(200);

/// More instances are summed up, so that a line stays a line.
const INSTANCES_NAMED_MAX: usize = 9;

/// Outcomes of calls waiting to be counted.
const OUTCOMES_QUEUED_MAX: usize = 1_024;

/// What is asked of the demo.
pub(crate) struct Options {
    /// Sidecars in all.
    pub(crate) nodes: usize,
    /// Requests to send.
    pub(crate) requests: u64,
    /// Whether the mesh stays up afterwards.
    pub(crate) keep: bool,
    /// Whether the result is one JSON object and nothing else.
    pub(crate) json: bool,
}

/// One run of it.
struct Demo {
    options: Options,
    plan: Plan,
    clock: Clock,
    narrator: Narrator,
    /// From then on the end is the user's to choose.
    is_over: bool,
}

/// Shows everything, and leaves nothing behind.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    // One thread: children end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut demo = Demo {
        plan: Plan::new(options.nodes),
        clock: Clock::System,
        narrator: Narrator::new(options.json),
        options,
        is_over: false,
    };
    runtime.block_on(async {
        let ended = signals()?;
        let mut stage = Stage::new()?;
        let shown = tokio::select! {
            shown = demo.show(&mut stage) => shown,
            () = ended => Err(anyhow::anyhow!("interrupted; everything it started has been stopped")),
        };
        demo.narrator.settle();
        stage.clear().await;
        if demo.is_over {
            demo.narrator.say("\nEverything it started has been stopped");
            return Ok(());
        }
        shown
    })
}

/// `starling demo-workload`: what stands behind the demo's sidecars.
pub(crate) fn run_workload(listen: SocketAddr, name: String) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(workload::serve(listen, name))
}

/// Resolves when somebody wants the end.
fn signals() -> anyhow::Result<impl Future<Output = ()>> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut waiting = JoinSet::new();
    for kind in kinds {
        let mut signal = signal(kind).context("cannot listen for signals")?;
        waiting.spawn(async move { signal.recv().await });
    }
    Ok(async move {
        waiting.join_next().await;
    })
}

impl Demo {
    async fn show(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        let mut measured = Measured { converged: self.form(stage).await?, ..Measured::default() };
        self.show_tables(stage, "").await?;
        if self.options.requests > 0 {
            self.traffic(stage, &mut measured).await?;
            self.show_tables(stage, " after the crash").await?;
        }
        if self.options.keep && measured.crash.is_some() {
            self.restart(stage).await?;
        }
        self.narrator.say(report::summary(stage, &measured));
        if self.options.json {
            writeln!(std::io::stdout(), "{}", report::json(stage, &measured))?;
        }
        self.is_over = true;
        if self.options.keep {
            self.narrator.say(format!("\n{}", report::invitation(stage)));
            self.keep(stage).await
        }
        self.narrator.say("\nTry next: --keep leaves it up to play with, --nodes 20 shows a larger flock");
        Ok(())
    }

    /// Starts everybody and waits until all know all; once more if a port was snatched away.
    async fn form(&mut self, stage: &mut Stage) -> anyhow::Result<Duration> {
        match self.try_form(stage).await {
            Err(error) if error.downcast_ref::<Died>().is_some_and(Died::found_port_taken) => {
                self.narrator.say(format!("{error:#}another program was faster; trying other ports"));
                stage.clear().await;
                self.try_form(stage).await
            }
            formed => formed,
        }
    }

    async fn try_form(&mut self, stage: &mut Stage) -> anyhow::Result<Duration> {
        let start = self.clock.now();
        stage.start(&self.plan, &self.clock)?;
        let services = self.plan.services();
        let services: Vec<String> =
            services.iter().map(|(name, count)| format!("{count} serve {name}")).collect();
        self.narrator.say(format!(
            "{} sidecars start on 127.0.0.1, each a process of its own, as are the workloads behind them: \
             {}, and {CALLER} only calls",
            self.plan.nodes.len(),
            services.join(", "),
        ));
        self.converge(stage, Expected::all_of(&self.plan), start).await
    }

    async fn converge(
        &mut self,
        stage: &mut Stage,
        expected: Expected,
        start: Instant,
    ) -> anyhow::Result<Duration> {
        let expected = Arc::new(expected);
        let caller = stage.nodes[0].at.admin;
        let mut waiting: Vec<SocketAddr> = stage.nodes.iter().map(|node| node.at.admin).collect();
        loop {
            let seen = observe::look(waiting.clone(), expected.clone()).await;
            let routes = observe::get::<Vec<RouteView>>(caller, "/v1/routes".to_owned()).await;
            let after = self.clock.now() - start;
            let least = seen.iter().min().copied().unwrap_or_default();
            self.narrator.mention(after, forming(least, &expected, &routes.unwrap_or_default()));
            let mut met = seen.iter().map(|seen| expected.is_met_by(*seen));
            waiting.retain(|_| !met.next().unwrap_or(false));
            if waiting.is_empty() {
                self.narrator.settle();
                return Ok(after);
            }
            stage.check()?;
            anyhow::ensure!(
                after < CONVERGE_MAX,
                "after {CONVERGE_MAX:?} {} nodes still do not know everybody: is this machine very busy? \
                 --nodes takes fewer",
                waiting.len()
            );
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    async fn show_tables(&mut self, stage: &Stage, when: &str) -> anyhow::Result<()> {
        if self.options.json {
            return Ok(());
        }
        let caller = stage.nodes[0].at.admin;
        let members: Vec<MemberView> = observe::get(caller, "/v1/members".to_owned()).await?;
        let routes: Vec<RouteView> = observe::get(caller, "/v1/routes".to_owned()).await?;
        self.narrator.say(format!(
            "\nMembers as {CALLER}'s sidecar sees them{when}\n{}\n\nIts routes{when}\n{}\n",
            indented(&members_table(&members)),
            indented(&routes_table(&routes))
        ));
        Ok(())
    }

    async fn traffic(&mut self, stage: &mut Stage, measured: &mut Measured) -> anyhow::Result<()> {
        let load = self.load(stage)?;
        let crash_after = Duration::from_millis(load.requests * CRASH_AT * 10 / load.rate);
        measured.rate = load.rate;
        self.narrator.say(format!(
            "Sending {} requests at {}/s through {CALLER}'s sidecar to http://{WEB}.mesh/",
            load.requests, load.rate
        ));
        let (outcomes, mut outcome) = mpsc::channel(OUTCOMES_QUEUED_MAX);
        let start = self.clock.now();
        let mut sender = JoinSet::new();
        sender.spawn(traffic::send(load, self.clock.clone(), outcomes));
        let mut killed_at = None;
        let mut progress = tokio::time::interval_at(start + PROGRESS_PERIOD, PROGRESS_PERIOD);
        loop {
            tokio::select! {
                outcome = outcome.recv() => match outcome {
                    Some(outcome) => measured.tally.add(outcome),
                    None => break,
                },
                () = tokio::time::sleep_until(start + crash_after), if killed_at.is_none() => {
                    killed_at = Some(self.kill(stage, crash_after).await);
                }
                _ = progress.tick() => {
                    self.narrator.mention(self.clock.now() - start, sending(&measured.tally));
                }
            }
        }
        stage.check()?;
        let killed_at = killed_at.context("the traffic ended before the crash")?;
        measured.crash = Some(self.crash(stage, killed_at, start, &measured.tally).await?);
        self.narrator.settle();
        self.show_failures(killed_at, &measured.tally);
        Ok(())
    }

    async fn kill(&mut self, stage: &mut Stage, after: Duration) -> Instant {
        let victim = self.plan.victim();
        stage.kill(victim);
        let killed_at = self.clock.now();
        self.narrator.settle();
        self.narrator.say(killing(after, stage, victim));
        stage.gone(victim).await;
        killed_at
    }

    fn load(&self, stage: &Stage) -> anyhow::Result<Load> {
        let requests = self.options.requests;
        let rate = (requests / TRAFFIC_SECONDS).clamp(RATE_MIN, RATE_MAX);
        let host = HeaderValue::try_from(format!("{WEB}.mesh"))?;
        Ok(Load { proxy: stage.nodes[0].at.http_proxy, host, requests, rate })
    }

    /// What the caller's sidecar knows of the dead node: clients do not see attempts that failed
    /// and were made again elsewhere.
    async fn crash(
        &self,
        stage: &Stage,
        killed_at: Instant,
        start: Instant,
        tally: &Tally,
    ) -> anyhow::Result<Crash> {
        let name = stage.nodes[self.plan.victim()].plan.name.clone();
        let route: RouteView = observe::get(stage.nodes[0].at.admin, format!("/v1/routes/{WEB}")).await?;
        let asked_at = self.clock.now();
        let is_victim = |candidate: &&CandidateView| candidate.node == name;
        let candidate = route.candidates.iter().find(is_victim);
        let candidate = candidate.with_context(|| format!("{CALLER} has forgotten {name} already"))?;
        let age = candidate.last_attempt_age_ms.map_or(asked_at - killed_at, Duration::from_millis);
        let answered = tally.answered.get(&name).copied().unwrap_or_default();
        Ok(Crash {
            at: killed_at - start,
            reroute: (asked_at - killed_at).saturating_sub(age),
            unanswered: candidate.requests.saturating_sub(answered),
            name,
        })
    }

    fn show_failures(&mut self, killed_at: Instant, tally: &Tally) {
        self.narrator.say(match tally.failed {
            0 => "No request failed".to_owned(),
            failed => format!("{failed} of {} requests failed; the first of them:", tally.requests()),
        });
        for (started, reason) in &tally.failures {
            let after = started.saturating_duration_since(killed_at);
            let when = if after.is_zero() {
                format!("{} before", time(killed_at.saturating_duration_since(*started)))
            } else {
                format!("{} after", time(after))
            };
            self.narrator.say(format!("  sent {when} the crash: {reason}"));
        }
    }

    /// A mesh that stays up is whole again.
    async fn restart(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        let victim = self.plan.victim();
        let (start, name) = (self.clock.now(), self.plan.nodes[victim].name.clone());
        let since = self.clock.wall().unix_millis;
        stage.restart(victim)?;
        let expected = Expected { reborn: Some((name.clone(), since)), ..Expected::all_of(&self.plan) };
        let after = self.converge(stage, expected, start).await?;
        self.narrator.say(format!("{name} was started again; everybody knows it after {}", time(after)));
        Ok(())
    }

    /// Until a signal ends it.
    async fn keep(&mut self, stage: &mut Stage) -> ! {
        loop {
            tokio::time::sleep(KEEP_PERIOD).await;
            let narrator = &mut self.narrator;
            stage.each_ended(|process, how| {
                narrator.say(format!("{} (pid {}) ended: {how}", process.role(), process.pid()))
            });
        }
    }
}

fn forming(least: Seen, expected: &Expected, routes: &[RouteView]) -> String {
    let route = |route: &RouteView| format!("{} {}", route.service, route.candidates.len());
    let routes: Vec<String> = routes.iter().map(route).collect();
    format!(
        "every node sees at least {} of {} members and {} of {} instances; {CALLER} can route to: {}",
        least.members,
        expected.members,
        least.instances,
        expected.instances,
        if routes.is_empty() { "nobody yet".to_owned() } else { routes.join(", ") }
    )
}

fn sending(tally: &Tally) -> String {
    let counts = || tally.answered.values();
    if let (INSTANCES_NAMED_MAX.., Some(least), Some(most)) = (counts().len(), counts().min(), counts().max())
    {
        return format!(
            "{} failed; {} instances answered {least} to {most} each",
            tally.failed,
            counts().len()
        );
    }
    let by: Vec<String> = tally.answered.iter().map(|(name, count)| format!("{name} {count}")).collect();
    format!("{} failed; answered by {}", tally.failed, by.join(", "))
}

fn killing(after: Duration, stage: &Stage, victim: usize) -> String {
    let node = &stage.nodes[victim];
    let workload =
        node.workload.as_ref().map(|workload| format!(" and its workload (pid {})", workload.pid()));
    format!(
        "  {:>6}  SIGKILL to {}: its sidecar (pid {}){}",
        time(after),
        node.plan.name,
        node.sidecar.pid(),
        workload.unwrap_or_default()
    )
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
