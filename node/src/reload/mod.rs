//! The configuration of a running node, read again: on SIGHUP, when the file changes, when the
//! admin API is told to.
//!
//! All or nothing: everything that can fail (reading, judging, binding new ports) comes before the
//! first change. What needs a restart is told and stays (`plan`). Identity files are followed by
//! the transport, not here.

pub(crate) mod plan;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use starling_gossip::clock::Clock;
use starling_transport::credentials::Credentials;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::capacity::Capacity;
use crate::config::files::Files;
use crate::config::{Config, Mistakes, read_bytes};
use crate::descriptors;
use crate::local::LocalInstances;
use crate::notify::ServiceManager;
use crate::proxy::listeners::Listeners;
use crate::proxy::outbound::Outbound;
use crate::sockets::Sockets;
use crate::telemetry::LogLevel;
use plan::{NeedsRestart, Plan, plan};

/// How often the file is looked at. A change is taken when two looks agree on it: whoever writes
/// the file in place may be in the middle of it.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Callers of the admin API that wait for a reload at a time.
const REQUESTS_MAX: usize = 8;

/// Where a configuration came from, to be asked again.
pub struct ConfigFile {
    path: PathBuf,
    environment: Vec<(String, String)>,
    log_level: LogLevel,
    hangup: Signal,
}

/// Asks the node to read its configuration again; cheap to clone.
#[derive(Clone)]
pub(crate) struct Requests(mpsc::Sender<oneshot::Sender<Outcome>>);

/// Where such requests arrive.
pub(crate) struct Inbox(mpsc::Receiver<oneshot::Sender<Outcome>>);

/// What became of one reload.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The node runs with what the file says, but for what needs a restart.
    Applied {
        /// In words; empty when nothing has changed.
        changes: Vec<String>,
        /// What the file says and a running node cannot take over.
        needs_restart: Vec<NeedsRestart>,
    },
    /// The file is wrong: nothing has changed.
    Mistaken(Mistakes),
    /// The file is right and cannot be applied, for instance because a port is taken: nothing has
    /// changed.
    Failed(String),
}

/// The parts of a node that take over what changes.
pub(crate) struct Parts {
    pub(crate) running: watch::Sender<Arc<Config>>,
    pub(crate) listeners: Listeners,
    pub(crate) local: LocalInstances,
    pub(crate) outbound: Arc<Outbound>,
    pub(crate) capacity: Capacity,
    pub(crate) manager: ServiceManager,
    pub(crate) clock: Clock,
    pub(crate) credentials: Credentials,
    /// The admin API's.
    pub(crate) token: watch::Sender<Option<String>>,
}

/// Reads the configuration again when it is time to.
pub(crate) struct Reloader {
    file: ConfigFile,
    parts: Parts,
    inbox: Inbox,
    looks: Looks,
}

/// What was seen of the file, to notice when it changes.
#[derive(Default)]
struct Looks {
    /// At the last look; `None` is unreadable.
    seen: Option<Vec<u8>>,
    /// What the last reload was about.
    tried: Option<Vec<u8>>,
    /// Why that failed, told once: it is tried again, because a port or a certificate may come later.
    trouble: Option<String>,
}

impl ConfigFile {
    /// The file at `path` under `environment`; from now on SIGHUP asks to read it again. Needs a
    /// runtime.
    pub fn follow(
        path: PathBuf,
        environment: Vec<(String, String)>,
        log_level: LogLevel,
    ) -> io::Result<Self> {
        Ok(Self { path, environment, log_level, hangup: signal(SignalKind::hangup())? })
    }

    /// Not a pipe (`--config <(generate)`), whose reader would wait for ever. A file that is gone
    /// counts: it may come back.
    async fn may_be_read_again(&self) -> bool {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || is_lasting(&path)).await.unwrap_or(false)
    }

    /// What the file holds, links followed, if it may be read again; nothing in it if it is unreadable.
    async fn text_again(&self) -> Option<Option<Vec<u8>>> {
        let path = self.path.clone();
        let read = move || is_lasting(&path).then(|| read_bytes(&path).ok());
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }
}

fn is_lasting(path: &Path) -> bool {
    !std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

/// For those who ask, and for the one who answers.
pub(crate) fn channel() -> (Requests, Inbox) {
    let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
    (Requests(requests), Inbox(inbox))
}

impl Requests {
    /// Reads the configuration again; `None` when the node is stopping.
    pub(crate) async fn reload(&self) -> Option<Outcome> {
        let (reply, outcome) = oneshot::channel();
        self.0.send(reply).await.ok()?;
        outcome.await.ok()
    }
}

impl Reloader {
    /// Nothing is read yet.
    pub(crate) fn new(file: ConfigFile, parts: Parts, inbox: Inbox) -> Self {
        metrics::gauge!("starling_config_stale").set(0.0);
        Self { file, parts, inbox, looks: Looks::default() }
    }

    /// Until it is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                Some(()) = self.file.hangup.recv() => drop(self.reload_as_told().await),
                Some(reply) = self.inbox.0.recv() => drop(reply.send(self.reload_as_told().await)),
                () = tokio::time::sleep_until(self.parts.clock.next_beat(LOOK_PERIOD)) => self.look().await,
            }
        }
    }

    async fn reload_as_told(&mut self) -> Outcome {
        // A service manager waits for the end of what it asked for; what the file alone caused is not
        // its business.
        let _reloading = self.parts.manager.reloading();
        if let Some(text) = self.file.text_again().await {
            self.looks.tried = text;
        }
        let outcome = self.reload().await;
        self.looks.trouble = outcome.trouble();
        outcome.report();
        outcome
    }

    /// Reloads if the file has changed and rests, or could not be applied the last time.
    async fn look(&mut self) {
        let Some(now) = self.file.text_again().await else { return };
        let rests = self.looks.seen == now;
        self.looks.seen = now;
        let is_new = self.looks.tried != self.looks.seen;
        if !rests || !(is_new || self.looks.trouble.is_some()) {
            return;
        }
        self.looks.tried = self.looks.seen.clone();
        let outcome = self.reload().await;
        let trouble = outcome.trouble();
        let is_news = trouble != self.looks.trouble || (trouble.is_none() && !outcome.is_nothing());
        self.looks.trouble = trouble;
        if is_news {
            outcome.report();
        }
    }

    async fn reload(&mut self) -> Outcome {
        let outcome = if self.file.may_be_read_again().await {
            match self.read().await {
                Ok((next, files)) => self.apply(&next, files.token).await,
                Err(outcome) => outcome,
            }
        } else {
            let path = self.file.path.display();
            Outcome::Failed(format!("{path} is not a file: it could be read only once; restart the node"))
        };
        let is_stale = match &outcome {
            Outcome::Applied { needs_restart, .. } => !needs_restart.is_empty(),
            Outcome::Mistaken(_) | Outcome::Failed(_) => true,
        };
        metrics::gauge!("starling_config_stale").set(f64::from(u8::from(is_stale)));
        outcome
    }

    /// The whole configuration, and the files it names, judged as before a start.
    async fn read(&self) -> Result<(Config, Files), Outcome> {
        let (path, environment) = (self.file.path.clone(), self.file.environment.clone());
        let wall = self.parts.clock.wall();
        let reading = tokio::task::spawn_blocking(move || {
            let config = Config::load(&path, environment)?;
            Files::load(&config, wall).map(|files| (config, files))
        });
        match reading.await {
            Ok(read) => read.map_err(Outcome::Mistaken),
            Err(error) => Err(Outcome::Failed(format!("the configuration could not be read: {error}"))),
        }
    }

    async fn apply(&mut self, next: &Config, token: Option<String>) -> Outcome {
        let plan = plan(&self.parts.running.borrow(), next);
        if let Err(why) = plan.judge(self.parts.credentials.id()) {
            return Outcome::Failed(why);
        }
        let Plan { config, mut changes, needs_restart } = plan;
        let parts = &mut self.parts;
        let bound = match parts.listeners.bind(&config, &mut Sockets::default()).await {
            Ok(bound) => bound,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        // All or nothing by itself, and the last that can say no.
        if let Err(reason) = parts.local.apply(&config.services) {
            return Outcome::Failed(reason.to_string());
        }
        parts.listeners.take(bound);
        parts.local.set_drain_timeout(config.node.drain_timeout);
        parts.capacity.set_limits(&config.limits, descriptors::reserved(&config));
        parts.outbound.set_attempts_max(config.limits.attempts_max as usize);
        self.file.log_level.set(&config.log.level);
        // One from another file waits with its key for a restart.
        if config.admin.token_file == next.admin.token_file && *parts.token.borrow() != token {
            parts.token.send_replace(token);
            changes.push("admin.token_file: another token".to_owned());
        }
        parts.running.send_replace(Arc::new(config));
        Outcome::Applied { changes, needs_restart }
    }
}

impl Outcome {
    /// For programs, with stable field names.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Applied { changes, needs_restart } => {
                json!({ "ok": true, "changes": changes, "needs_restart": needs_restart })
            }
            Self::Mistaken(mistakes) => {
                let mut value = mistakes.to_json();
                value["error"] = mistakes.to_string().into();
                value
            }
            Self::Failed(error) => json!({ "ok": false, "error": error }),
        }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Applied { changes, needs_restart } if changes.is_empty() && needs_restart.is_empty())
    }

    fn trouble(&self) -> Option<String> {
        match self {
            Self::Applied { .. } => None,
            Self::Mistaken(mistakes) => Some(mistakes.to_string()),
            Self::Failed(error) => Some(error.clone()),
        }
    }

    fn as_str(&self) -> &'static str {
        match self {
            Self::Applied { changes, .. } if changes.is_empty() => "unchanged",
            Self::Applied { .. } => "applied",
            Self::Mistaken(_) => "mistaken",
            Self::Failed(_) => "failed",
        }
    }

    /// Logs and counts it.
    fn report(&self) {
        metrics::counter!("starling_config_reloads_total", "outcome" => self.as_str()).increment(1);
        match self {
            Self::Applied { changes, needs_restart } => {
                info!(?changes, "configuration reloaded");
                for one in needs_restart {
                    warn!("needs a restart: {one}");
                }
            }
            Self::Mistaken(mistakes) => {
                for mistake in mistakes.iter() {
                    let (key, problem, help) = (&mistake.key, &mistake.problem, &mistake.suggestion);
                    warn!(place = %mistake.located(), key, problem, help, "mistake in the configuration");
                }
                warn!(
                    mistakes = mistakes.iter().count(),
                    "configuration not reloaded: the node goes on as it was"
                );
            }
            Self::Failed(error) => {
                warn!(error, "configuration not reloaded: the node goes on as it was");
            }
        }
    }
}
