//! Outbound TCP: a local program's connection becomes a stream to an instance.
//!
//! No byte of the client is read before an instance's workload has accepted, so until then another
//! instance can be tried, and a server that speaks first is heard first.

use std::net::IpAddr;
use std::time::Duration;

use starling_transport::stream::MeshStream;
use tracing::debug;

use crate::circuit::Kind;
use crate::endpoint::Flight;
use crate::proxy::attempt::{failure_of_connect, fate_of_connect};
use crate::proxy::failure::Failure;
use crate::proxy::gate::Pass;
use crate::proxy::local_socket;
use crate::proxy::outbound::{Outbound, Work};
use crate::proxy::tunnel;
use crate::proxy::workload::Plain;
use crate::telemetry::exchange::Exchange;

/// A stream to an instance whose workload has accepted, and what counts it.
pub(crate) struct Reached {
    pub(crate) stream: MeshStream,
    pub(crate) exchange: Exchange,
    _flight: Flight,
    _pass: Pass,
}

impl Outbound {
    /// Carries one connection to `service`; resets it if nobody takes it, or it breaks on the way,
    /// so that the client never mistakes a failure for an end. So does standing still for longer than
    /// `idle`, and so does the end of this process.
    pub(crate) async fn carry(&self, service: &str, mut client: Plain, idle: Option<Duration>) {
        tunnel::reset_plain_unless_ended(&client);
        let source = local_socket::source(&client);
        // On the heap: what is open needs no room for how it was opened.
        match Box::pin(self.reach(service, source)).await {
            Ok(mut reached) => {
                let Reached { stream, exchange, .. } = &mut reached;
                match tunnel::carry_moving(&mut client, stream, exchange, idle).await {
                    Ok(()) => tunnel::end_plain(&client),
                    Err(error) => debug!(service, %error, "connection broken"),
                }
            }
            Err(failure) => {
                debug!(service, flag = failure.flag.as_str(), detail = failure.detail, "connection refused");
            }
        }
    }

    /// Finds an instance of `service` that takes a connection.
    pub(crate) async fn reach(&self, service: &str, source: Option<IpAddr>) -> Result<Reached, Failure> {
        let mut exchange = self.unknown.start(&self.clock);
        let key = self.key_of_connection(service, source);
        let reached = self.try_endpoints(service, key, &mut exchange).await;
        match reached {
            Ok((stream, _flight, _pass)) => Ok(Reached { stream, exchange, _flight, _pass }),
            Err(failure) => {
                exchange.set_flag(failure.flag);
                Err(failure)
            }
        }
    }

    async fn try_endpoints(
        &self,
        service: &str,
        key: Option<u64>,
        exchange: &mut Exchange,
    ) -> Result<(MeshStream, Flight, Pass), Failure> {
        let pass = self.enter()?;
        let mut tried = Vec::new();
        let (mut last, mut room) = (None, None);
        // What the attempt under way takes up, if it is a retry.
        let mut retry;
        loop {
            let work = Work { kind: Kind::Connections, tried: &tried, key, now: self.clock.now() };
            let (endpoint, now) = match self.choose(service, work, exchange).await {
                Ok(chosen) => {
                    room = room.or(chosen.room);
                    (chosen.endpoint, chosen.at)
                }
                Err(failure) => return Err(last.unwrap_or(failure)),
            };
            let flight = endpoint.begin(now);
            exchange.set_attempt(endpoint.meter(), endpoint.target().owner.node.as_str());
            tried.push(endpoint.target().clone());
            match endpoint.open_tcp(|| self.enter_pending(service)).await {
                Ok(stream) => return Ok((stream, flight.holding(room), pass)),
                Err(failure) => {
                    drop(flight);
                    let told = failure_of_connect(&failure, &endpoint);
                    let fate = fate_of_connect(&failure);
                    if !self.has_other(service, &tried) {
                        return Err(told);
                    }
                    retry = self.may_retry(service, fate, tried.len()).await;
                    if retry.is_none() {
                        return Err(told);
                    }
                    last = Some(told);
                }
            }
        }
    }
}
