//! Asks a local workload whether it is well.
//!
//! One question at a time, cut off at its timeout, so a workload that hangs costs one connection
//! or one process. When to ask is [`schedule`]'s, what the answers mean `gossip::health`'s.

mod exec;
mod grpc;
mod http;
mod schedule;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use tracing::debug;

use crate::balance::Chance;
use crate::config::{Probe, ProbeQuestion, Service};
use crate::proxy::workload::Workload;
use crate::upstream::{ConnectFailure, HttpVersion};

pub(crate) use schedule::first_wait;

/// What one question came to: `Err` says why the workload is not well.
pub(crate) type Answer = Result<(), String>;

/// Why a question was not answered well.
enum NotWell {
    /// The workload's fault.
    Failed(String),
    /// This node had no descriptor left to ask with: that says nothing about the workload.
    NotAsked(String),
}

/// A call that could not connect is heard at most so often: a flood of calls to a workload that is
/// gone must not become a flood of probes.
const EVIDENCE_PERIOD: Duration = Duration::from_millis(100);

/// Probes one workload at its interval.
pub(crate) struct Prober {
    probe: Option<Probe>,
    workload: Arc<Workload>,
    service: Arc<Service>,
    clock: Clock,
    chance: Chance,
    next_at: Instant,
    next_evidence_at: Instant,
    answered: bool,
}

impl Prober {
    /// For `workload`; the first question comes after `first_wait`. One whose probe is off passes
    /// once and is not asked again.
    pub(crate) fn new(workload: Arc<Workload>, first_wait: Duration, clock: Clock, chance: Chance) -> Self {
        let service = workload.service_now();
        let now = clock.now();
        Self {
            probe: service.probe.clone(),
            workload,
            service,
            clock,
            chance,
            next_at: now + first_wait,
            next_evidence_at: now,
            answered: false,
        }
    }

    /// The next answer, at its time. Dropped while it waits or asks, it leaves nothing behind, and
    /// the next call goes on in the same rhythm.
    pub(crate) async fn next(&mut self) -> Answer {
        let Some(probe) = self.probe.clone() else {
            if std::mem::replace(&mut self.answered, true) {
                std::future::pending::<()>().await;
            }
            return Ok(());
        };
        loop {
            let refused = tokio::select! {
                () = tokio::time::sleep_until(self.next_at) => None,
                refused = self.evidence() => Some(refused),
            };
            let now = self.clock.now();
            if let Some(refused) = refused {
                self.next_evidence_at = now + EVIDENCE_PERIOD;
                self.next_at = now;
                // Connecting is all that such a probe does: the call has done it.
                if probe.question == ProbeQuestion::Tcp {
                    return Err(refused);
                }
            }
            if let Some(answer) = self.ask_once(&probe, now).await {
                return answer;
            }
        }
    }

    /// `None` when this node could not ask.
    async fn ask_once(&mut self, probe: &Probe, now: Instant) -> Option<Answer> {
        self.wait(probe.interval, now);
        let reason = match tokio::time::timeout(probe.timeout, self.ask(&probe.question)).await {
            Ok(Ok(())) => return Some(Ok(())),
            Ok(Err(NotWell::NotAsked(reason))) => {
                debug!(service = %self.service.name, id = %self.service.id, reason, "cannot probe");
                return None;
            }
            Ok(Err(NotWell::Failed(reason))) => reason,
            Err(_elapsed) => format!("no answer within {:?}", probe.timeout),
        };
        self.wait(probe.interval_down, now);
        debug!(service = %self.service.name, id = %self.service.id, reason, "probe failed");
        Some(Err(reason))
    }

    fn wait(&mut self, interval: Duration, asked_at: Instant) {
        self.next_at = asked_at + schedule::jittered(interval, self.chance.bits());
    }

    /// Why a call could not connect just now.
    async fn evidence(&self) -> String {
        tokio::time::sleep_until(self.next_evidence_at).await;
        self.workload.upstream.connector().refused().await
    }

    async fn ask(&self, question: &ProbeQuestion) -> Result<(), NotWell> {
        let connector = self.workload.upstream.connector().for_probe();
        let host = connector.host();
        match question {
            ProbeQuestion::Http { path } => {
                let io = connector.open_http(HttpVersion::Http1).await?;
                http::ask(io, &host, path).await?;
            }
            ProbeQuestion::Grpc { service } => {
                let io = connector.open_http(HttpVersion::Http2).await?;
                grpc::ask(io, &host, service).await?;
            }
            ProbeQuestion::Tcp => drop(connector.open().await?),
            ProbeQuestion::Exec { program, arguments } => {
                exec::ask(program, arguments, &self.service).await?;
            }
        }
        Ok(())
    }
}

impl From<ConnectFailure> for NotWell {
    fn from(failure: ConnectFailure) -> Self {
        match failure {
            ConnectFailure::Unreachable(why) => Self::Failed(why),
            ConnectFailure::Refused(_, why) => Self::NotAsked(why),
        }
    }
}

impl From<String> for NotWell {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}
