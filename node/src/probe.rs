//! Asks a local workload whether it is well.
//!
//! One question at a time, so a workload that hangs costs one connection. What the answers mean
//! is `gossip::health`'s.

use std::time::Duration;

use http::Request;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use starling_gossip::health::ProbeOutcome;
use tracing::debug;

use crate::config::{Probe, ProbeQuestion, Service};
use crate::proxy::workload::WorkloadConnect;
use crate::upstream::HttpVersion;

/// Probes one instance at its interval.
pub(crate) struct Prober {
    probe: Option<Probe>,
    connect: WorkloadConnect,
    host: String,
    /// The first question is asked at once.
    next_wait: Duration,
}

impl Prober {
    /// For `service`; one without a probe passes once and is not asked again.
    pub(crate) fn new(service: &Service) -> Self {
        let host = service.address.host_port().map_or("localhost".to_owned(), ToString::to_string);
        let connect = WorkloadConnect::new(service);
        Self { probe: service.probe.clone(), connect, host, next_wait: Duration::ZERO }
    }

    /// The next answer, at its time.
    pub(crate) async fn next(&mut self) -> ProbeOutcome {
        let wait = self.next_wait;
        let Some(probe) = &self.probe else {
            if wait.is_zero() {
                self.next_wait = Duration::MAX;
                return ProbeOutcome::Pass;
            }
            return std::future::pending().await;
        };
        tokio::time::sleep(wait).await;
        self.next_wait = probe.interval;
        match tokio::time::timeout(probe.timeout, self.ask(&probe.question)).await {
            Ok(Ok(())) => ProbeOutcome::Pass,
            Ok(Err(error)) => {
                debug!(host = self.host, %error, "probe failed");
                ProbeOutcome::Fail
            }
            Err(_elapsed) => {
                debug!(host = self.host, timeout = ?probe.timeout, "probe timed out");
                ProbeOutcome::Fail
            }
        }
    }

    async fn ask(&self, question: &ProbeQuestion) -> anyhow::Result<()> {
        let ProbeQuestion::Http { path } = question else {
            self.connect.open().await?;
            return Ok(());
        };
        let io = self.connect.open_http(HttpVersion::Http1).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        let request = Request::get(path.as_str())
            .header(http::header::HOST, &self.host)
            .header(http::header::USER_AGENT, "starling-probe")
            .body(Empty::<bytes::Bytes>::new())?;
        let response = tokio::select! {
            response = sender.send_request(request) => response?,
            ended = connection => {
                ended?;
                anyhow::bail!("the workload closed the connection without an answer");
            }
        };
        let status = response.status();
        anyhow::ensure!(status.is_success() || status.is_redirection(), "status {status}");
        Ok(())
    }
}
