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

use std::pin::Pin;
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

/// A question under way, which is cut off at its timeout.
struct Asking {
    asked_at: Instant,
    question: Pin<Box<dyn Future<Output = Result<(), NotWell>> + Send>>,
}

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
    /// Kept here so that whoever stops waiting for the answer does not take the question back.
    asking: Option<Asking>,
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
            asking: None,
        }
    }

    /// The next answer, at its time. When this is dropped, the next call goes on in the same rhythm,
    /// and with the same question if one was asked: its timeout runs on.
    pub(crate) async fn next(&mut self) -> Answer {
        let Some(probe) = self.probe.clone() else {
            if std::mem::replace(&mut self.answered, true) {
                std::future::pending::<()>().await;
            }
            return Ok(());
        };
        loop {
            if let Some(answer) = self.answer(&probe).await {
                return answer;
            }
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
            self.begin(&probe, now);
        }
    }

    /// Ends the question under way, if there is one: nobody waits for its answer.
    pub(crate) fn abandon(&mut self) {
        self.asking = None;
    }

    fn begin(&mut self, probe: &Probe, now: Instant) {
        self.wait(probe.interval, now);
        let (workload, service) = (self.workload.clone(), self.service.clone());
        let (question, timeout, end) = (probe.question.clone(), probe.timeout, now + probe.timeout);
        let question = async move {
            let asked = tokio::time::timeout_at(end, ask(&workload, &service, &question, end)).await;
            asked.unwrap_or_else(|_| Err(NotWell::Failed(format!("no answer within {timeout:?}"))))
        };
        self.asking = Some(Asking { asked_at: now, question: Box::pin(question) });
    }

    /// `None` when nothing was asked, or this node could not ask.
    async fn answer(&mut self, probe: &Probe) -> Option<Answer> {
        let asking = self.asking.as_mut()?;
        let (outcome, asked_at) = (asking.question.as_mut().await, asking.asked_at);
        self.asking = None;
        let reason = match outcome {
            Ok(()) => return Some(Ok(())),
            Err(NotWell::NotAsked(reason)) => {
                debug!(service = %self.service.name, id = %self.service.id, reason, "cannot probe");
                return None;
            }
            Err(NotWell::Failed(reason)) => reason,
        };
        self.wait(probe.interval_down, asked_at);
        debug!(service = %self.service.name, id = %self.service.id, reason, "probe failed");
        Some(Err(reason))
    }

    fn wait(&mut self, interval: Duration, asked_at: Instant) {
        self.next_at = asked_at + schedule::jittered(interval, self.chance.bits());
    }

    /// Why a call could not connect just now.
    async fn evidence(&mut self) -> String {
        tokio::time::sleep_until(self.next_evidence_at).await;
        self.workload.upstream.connector().refused().await
    }
}

/// Asks once; whoever waits no longer than `end` cuts it off.
async fn ask(
    workload: &Workload,
    service: &Service,
    question: &ProbeQuestion,
    end: Instant,
) -> Result<(), NotWell> {
    let connector = workload.upstream.connector().for_probe();
    let host = connector.host();
    match question {
        ProbeQuestion::Http { path } => {
            let io = connector.open_http(HttpVersion::Http1).await?;
            http::ask(io, &host, path, end).await?;
        }
        ProbeQuestion::Grpc { service } => {
            let io = connector.open_http(HttpVersion::Http2).await?;
            grpc::ask(io, &host, service).await?;
        }
        ProbeQuestion::Tcp => drop(connector.open(None).await?),
        ProbeQuestion::Exec { program, arguments } => {
            exec::ask(program, arguments, service).await?;
        }
    }
    Ok(())
}

impl From<ConnectFailure> for NotWell {
    fn from(failure: ConnectFailure) -> Self {
        match failure {
            ConnectFailure::Unreachable(why) => Self::Failed(why),
            ConnectFailure::HungUp => Self::Failed(failure.to_string()),
            other if other.is_other_version() => Self::Failed(other.to_string()),
            ConnectFailure::Refused(_, why) => Self::NotAsked(why),
        }
    }
}

impl From<String> for NotWell {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}
