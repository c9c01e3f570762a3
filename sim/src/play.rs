//! A scenario played: its events in their time, then quiet, then the question whether all is well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rand::Rng as _;
use rand::seq::{IteratorRandom as _, SliceRandom as _};
use starling_gossip::clock::Instant;
use starling_gossip::record::Health;

use crate::network::Handicap;
use crate::network::partition::Partition;
use crate::report::{Checks, Failed, Percentiles, Run, seconds};
use crate::scenario::{Attack, Do, Event, Pick, Scenario};
use crate::trace::{Turn, Window};
use crate::world::{Failure, World};

/// How often it is asked whether the mesh has converged.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// Turning points shown for a failure.
const HISTORY_SHOWN: usize = 60;

/// What is asked of one run besides its scenario.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The scenario's name.
    pub name: String,
    /// Where all chance comes from.
    pub seed: u64,
    /// The arguments that, after a command, ask for this run again.
    pub again: String,
    /// What of the trace to keep in words.
    pub window: Option<Window>,
    /// Whether pictures are wanted.
    pub pictures: bool,
    /// Counts up as long as virtual time passes.
    pub pulse: Arc<AtomicU64>,
}

/// Plays `scenario` on a paused clock of its own; `progress` hears how much of it is over, 0 to 1.
/// `Run::wall_s` and `memory_mib` are left to the caller. The second value is what the window kept.
pub fn play(
    scenario: Scenario,
    request: &Request,
    progress: impl FnMut(f64),
) -> anyhow::Result<(Run, Vec<String>)> {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let counters = recorder.snapshotter();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build()?;
    let mut played = metrics::with_local_recorder(&recorder, || {
        runtime.block_on(run(Arc::new(scenario), request, progress))
    })?;
    played.0.rejected_by = rejected(&counters);
    played.0.rejected = played.0.rejected_by.values().sum();
    Ok(played)
}

/// What was refused, by reason: records, and messages that cannot be read, cost too much or are too many. One that
/// is merely old news is no refusal worth telling, nor is a renewal that comes before its owner's record.
fn rejected(counters: &metrics_util::debugging::Snapshotter) -> BTreeMap<String, u64> {
    let mut rejected = BTreeMap::new();
    for (key, _, _, value) in counters.snapshot().into_vec() {
        let metrics_util::debugging::DebugValue::Counter(count) = value else { continue };
        let reason = match key.key().name() {
            "starling_gossip_rejected_total" => {
                key.key().labels().find(|label| label.key() == "reason").map(|label| label.value())
            }
            "starling_gossip_malformed_total" => Some("malformed"),
            "starling_gossip_over_budget_total" => Some("over_budget"),
            "starling_gossip_shunned_total" => Some("shunned"),
            _ => None,
        };
        if let Some(reason) = reason.filter(|reason| !["stale", "unknown_owner"].contains(reason)) {
            *rejected.entry(reason.to_owned()).or_default() += count;
        }
    }
    rejected
}

async fn run(
    scenario: Arc<Scenario>,
    request: &Request,
    progress: impl FnMut(f64),
) -> anyhow::Result<(Run, Vec<String>)> {
    let world = match World::new(scenario.clone(), request) {
        Ok(world) => world,
        Err(failure) => return Err(failure.into()),
    };
    let mut play = Play {
        world,
        scenario,
        agenda: BTreeMap::new(),
        sequence: 0,
        converged: Duration::ZERO,
        recovered: Duration::ZERO,
        faults_end: Instant::now(),
        crashed: false,
        progress,
    };
    let failed = match play.all().await {
        Ok(()) => None,
        Err(Failure::SetUp(error)) => return Err(error),
        Err(failure) => Some(play.failed(&failure, request)),
    };
    Ok((play.report(request, failed), play.world.trace().take_lines()))
}

/// Something to do at a moment.
#[derive(Clone, Debug)]
enum Step {
    /// The event of that index happens.
    Begin(usize),
    Say(usize, &'static str, Option<Health>),
    Join(usize),
    Leave(usize),
    HasLeft(usize),
    Crash(usize),
    Restart(usize, usize),
    Pause(usize, bool),
    Heal(u64),
    Handicap(usize, Handicap),
    Calendar(usize, i64),
    Attack(usize, usize),
    EndAttack(usize, Attack),
}

struct Play<P> {
    world: World,
    scenario: Arc<Scenario>,
    /// By time; the number keeps those of one moment in order.
    agenda: BTreeMap<(Instant, u64), Step>,
    sequence: u64,
    converged: Duration,
    recovered: Duration,
    faults_end: Instant,
    crashed: bool,
    progress: P,
}

impl<P: FnMut(f64)> Play<P> {
    async fn all(&mut self) -> Result<(), Failure> {
        let mesh = self.scenario.mesh.clone();
        let start = Instant::now();
        self.world.measures.happens(start);
        let apart = mesh.start_within.0 / mesh.nodes as u32;
        for site in self.sites_of(mesh.nodes) {
            self.world.join(site).await?;
            self.world.run_until(Instant::now() + apart).await?;
        }
        self.converge("equal catalogues after the start", mesh.converge_within.0).await?;
        self.converged = start.elapsed();
        self.world.measures.agrees(Instant::now());
        self.world.trace().turn(Turn::Converged);
        self.world.run_until(Instant::now() + mesh.quiet.0).await?;
        self.world.take_images();
        self.play_events().await?;
        let patience = mesh.converge_within.0 + if self.crashed { mesh.lease.0 } else { Duration::ZERO };
        self.converge("equal catalogues and routes after the last event", patience).await?;
        self.recovered = self.faults_end.elapsed();
        self.world.trace().turn(Turn::Converged);
        Ok(())
    }

    /// The sites of so many nodes, by the sites' shares; neighbours in number stand apart.
    fn sites_of(&self, nodes: usize) -> Vec<usize> {
        let shares: Vec<f64> = self.scenario.site.iter().map(|site| site.share).collect();
        let total: f64 = shares.iter().sum();
        let mut placed = vec![0.0; shares.len()];
        let place = |_| {
            let lacking = |site: usize| shares[site] / total - placed[site];
            let site = (0..shares.len()).max_by(|one, other| lacking(*one).total_cmp(&lacking(*other)));
            let site = site.unwrap_or(0);
            if let Some(placed) = placed.get_mut(site) {
                *placed += 1.0 / nodes as f64;
            }
            site
        };
        (0..nodes).map(place).collect()
    }

    async fn play_events(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        self.faults_end = begin;
        let scenario = self.scenario.clone();
        for (index, event) in scenario.event.iter().enumerate() {
            for round in 0..event.times {
                self.put(begin + event.at.0 + event.every.0 * round, Step::Begin(index));
            }
        }
        let last = self.agenda.last_key_value().map_or(begin, |((at, _), _)| *at);
        let end = last.max(begin + scenario.mesh.length.0);
        while let Some(((at, _), step)) = self.agenda.pop_first() {
            self.run_to(at, begin, end).await?;
            self.faults_end = at;
            self.step(step).await?;
        }
        self.run_to(begin + scenario.mesh.length.0, begin, end).await?;
        // Whoever only looked on for longer has nothing to recover from.
        self.faults_end = self.faults_end.max(begin + scenario.mesh.length.0);
        Ok(())
    }

    async fn run_to(&mut self, at: Instant, begin: Instant, end: Instant) -> Result<(), Failure> {
        while Instant::now() < at {
            self.world.run_until(at.min(Instant::now() + Duration::from_secs(1))).await?;
            let whole = end.duration_since(begin).as_secs_f64().max(1.0);
            (self.progress)((begin.elapsed().as_secs_f64() / whole).min(1.0));
        }
        Ok(())
    }

    fn put(&mut self, at: Instant, step: Step) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), step);
    }

    /// Waits until all is as it should be.
    async fn converge(&mut self, what: &'static str, within: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + within;
        loop {
            let difference = self.world.checker.difference(&self.world.truth);
            let difference = difference.or_else(|| self.world.checker.route_difference(&self.world.truth));
            let Some(difference) = difference else { return Ok(()) };
            if Instant::now() >= deadline {
                let hosts = vec![difference.observer, difference.subject];
                return Err(Failure::NotWithin { what, within, difference: difference.to_string(), hosts });
            }
            self.world.run_until(deadline.min(Instant::now() + LOOK_PERIOD)).await?;
        }
    }

    async fn step(&mut self, step: Step) -> Result<(), Failure> {
        let now = Instant::now();
        self.world.measures.happens(now);
        match step {
            Step::Begin(index) => self.begin(index, now),
            Step::Say(host, what, health) => self.world.say(host, Some(what), health).await,
            Step::Join(site) => {
                let host = self.world.join(site).await?;
                self.world.measures.joins(host, now);
            }
            Step::Leave(host) => {
                self.world.leave(host);
                self.put(now + self.world.leaves_within(), Step::HasLeft(host));
            }
            Step::HasLeft(host) => self.world.has_left(host),
            Step::Crash(host) => {
                self.crashed = true;
                self.world.crash(host);
            }
            Step::Restart(host, index) => {
                let event = &self.scenario.event[index];
                self.world.restart(host, event.memory, event.moved).await?;
            }
            Step::Pause(host, is_paused) => self.world.set_paused(host, is_paused),
            Step::Heal(number) => {
                self.world.network().heal(number);
                self.world.trace().turn(Turn::Healed);
                self.world.begin_epoch();
            }
            Step::Handicap(host, handicap) => self.world.set_handicap(host, handicap),
            Step::Calendar(host, seconds) => self.world.set_calendar(host, seconds),
            Step::Attack(host, index) => {
                let event = &self.scenario.event[index];
                self.world.begin_attack(host, event.attack, event.rate);
            }
            Step::EndAttack(host, attack) => self.world.end_attack(host, attack),
        }
        Ok(())
    }

    /// Makes one event's steps.
    fn begin(&mut self, index: usize, now: Instant) {
        let scenario = self.scenario.clone();
        let event = &scenario.event[index];
        match event.what {
            Do::Partition => return self.split(event, now),
            Do::Join => {
                let site =
                    event.site.as_ref().and_then(|name| scenario.site.iter().position(|it| it.name == *name));
                for at in 0..event.nodes.count_of(self.world.hosts()).unwrap_or(1) {
                    let site = site.unwrap_or_else(|| self.any_site());
                    self.put(now + event.apart.0 * at as u32, Step::Join(site));
                }
                return;
            }
            _ => {}
        }
        for (at, host) in self.pick(event).into_iter().enumerate() {
            self.begin_for(event, index, host, now + event.apart.0 * at as u32);
        }
    }

    fn any_site(&mut self) -> usize {
        let sites = self.scenario.site.len().max(1);
        self.world.rng().random_range(0..sites)
    }

    fn begin_for(&mut self, event: &Event, index: usize, host: usize, at: Instant) {
        let end = at + event.lasts.0;
        let ends = !event.lasts.0.is_zero();
        match event.what {
            Do::Change => self.put(at, Step::Say(host, "changes", Some(Health::Healthy))),
            Do::Flap => {
                self.put(at, Step::Say(host, "is unhealthy", Some(Health::Unhealthy)));
                self.put(end, Step::Say(host, "is healthy", Some(Health::Healthy)));
            }
            Do::Withdraw => {
                self.put(at, Step::Say(host, "withdraws", None));
                if ends {
                    self.put(end, Step::Say(host, "announces again", Some(Health::Healthy)));
                }
            }
            Do::Leave => self.put(at, Step::Leave(host)),
            Do::Replace => {
                self.put(at, Step::Join(self.world.site_of(host)));
                self.put(at + self.world.leaves_within(), Step::Leave(host));
            }
            Do::Crash => self.put(at, Step::Crash(host)),
            Do::Restart => {
                self.put(at, Step::Crash(host));
                self.put(end, Step::Restart(host, index));
            }
            Do::Pause => {
                self.put(at, Step::Pause(host, true));
                self.put(end, Step::Pause(host, false));
            }
            Do::Degrade => {
                let Event { loss_in, loss_out, slow, .. } = *event;
                self.put(at, Step::Handicap(host, Handicap { loss_in, loss_out, slow: slow.0 }));
                self.put(end, Step::Handicap(host, Handicap::default()));
            }
            Do::Calendar => {
                self.put(at, Step::Calendar(host, event.seconds));
                if ends {
                    self.put(end, Step::Calendar(host, -event.seconds));
                }
            }
            Do::Attack => {
                self.put(at, Step::Attack(host, index));
                self.put(end, Step::EndAttack(host, event.attack));
            }
            Do::Join | Do::Partition => {}
        }
    }

    /// The hosts that an event is about. Those who attack are left alone, lest they be measured.
    fn pick(&mut self, event: &Event) -> Vec<usize> {
        let site =
            event.site.as_ref().and_then(|name| self.scenario.site.iter().position(|it| it.name == *name));
        let awake: Vec<usize> = self.world.awake().collect();
        if let Pick::Named(names) = &event.nodes {
            let named = |host: &usize| names.contains(&self.world.truth.host(*host).owner.node.to_string());
            return awake.into_iter().filter(named).collect();
        }
        let is_asked = |host: &usize| {
            site.is_none_or(|site| self.world.site_of(*host) == site)
                && !self.world.truth.host(*host).is_hostile
        };
        let candidates: Vec<usize> = awake.into_iter().filter(is_asked).collect();
        let count = event.nodes.count_of(candidates.len()).unwrap_or(1);
        let mut chosen = candidates.into_iter().choose_multiple(self.world.rng(), count);
        chosen.shuffle(self.world.rng());
        chosen
    }

    fn split(&mut self, event: &Event, now: Instant) {
        let hosts = self.world.hosts();
        let part: Vec<u16> = if event.parts.is_empty() {
            let mut order: Vec<usize> = (0..hosts).collect();
            order.shuffle(self.world.rng());
            let mut part = vec![0; hosts];
            order.iter().enumerate().for_each(|(at, host)| part[*host] = (at * event.ways / hosts) as u16);
            part
        } else {
            let part_of = |host: usize| {
                let site = self.scenario.site.get(self.world.site_of(host)).map(|site| &site.name);
                let part = event.parts.iter().position(|sites| site.is_some_and(|site| sites.contains(site)));
                // Sites that no part names make one more.
                part.unwrap_or(event.parts.len()) as u16
            };
            (0..hosts).map(part_of).collect()
        };
        let parts = part.iter().max().map_or(1, |last| usize::from(*last) + 1);
        let partition = Partition { part, one_way: event.one_way };
        let number = self.world.network().split(partition);
        self.world.trace().turn(Turn::Split(parts));
        self.world.begin_epoch();
        self.put(now + event.lasts.0, Step::Heal(number));
    }

    fn failed(&self, failure: &Failure, request: &Request) -> Failed {
        let hosts = match failure {
            Failure::Violation(violation) => {
                [Some(violation.observer), violation.host].into_iter().flatten().collect()
            }
            Failure::NotWithin { hosts, .. } => hosts.clone(),
            Failure::SetUp(_) => Vec::new(),
        };
        let trace = self.world.trace();
        Failed {
            what: failure.to_string(),
            at_s: seconds(trace.elapsed()),
            nodes: hosts.iter().map(|host| self.world.truth.host(*host).owner.node.to_string()).collect(),
            history: trace.history(&hosts, HISTORY_SHOWN),
            replay: format!("starling-sim run {} {} --seed {}", request.name, request.again, request.seed)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
        }
    }

    fn report(&self, request: &Request, failed: Option<Failed>) -> Run {
        let world = &self.world;
        let figures = world.measures.figures();
        let mut connections: Vec<u64> =
            world.network().connections().values().map(|count| *count as u64).collect();
        connections.sort_unstable();
        let (events, trace_hash) = world.trace().finish();
        let passed = world.checker.passed() + if failed.is_none() { 2 } else { 0 };
        let acts = world
            .trace()
            .turns()
            .into_iter()
            .filter(|(_, turn)| turn.is_act() && !matches!(turn, Turn::Said(_, 1)));
        let acts = acts.map(|(at, turn)| (seconds(at), turn.to_string())).collect();
        Run {
            seed: request.seed,
            trace_hash,
            events,
            checks: Checks { passed, failed: failed.is_some().into() },
            violation: failed,
            known_ms: Percentiles::of(world.measures.samples().of("known")),
            took_ms: world.measures.took(),
            bytes_per_node_s: figures.bytes_per_node_s,
            bytes_per_node_s_max: figures.bytes_per_node_s_max,
            bytes_peak_per_node_s: figures.bytes_peak_per_node_s,
            connections_max: connections.last().copied().unwrap_or_default(),
            connections_median: connections.get(connections.len() / 2).copied().unwrap_or_default(),
            traffic: figures.traffic,
            suspicions_false: figures.suspicions_false,
            evictions_false: figures.evictions_false,
            stale_share: figures.stale_share,
            queue_max: world.network().queue_max() as u64,
            converged_s: seconds(self.converged),
            recovered_s: seconds(self.recovered),
            virtual_s: seconds(world.trace().elapsed()),
            samples: world.measures.samples().clone(),
            pictures: request
                .pictures
                .then(|| world.measures.pictures(&world.truth, acts, world.start_of_time())),
            ..Run::default()
        }
    }
}
